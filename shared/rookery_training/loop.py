"""One thread that trains the adapters of everybody in this process together.

Callers hand in tasks and get outcomes as they come, each in a thread of its own; their tasks share the batch. Tasks for
another base model wait until the tasks before them have ended.
"""

from __future__ import annotations

import gc
import logging
import queue
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import Generic, TypeVar

import torch

from rookery_training.batch import AdapterTask, BatchTrainer, Outcome, Ticket
from rookery_training.memory import give_back_freed_memory

Source = TypeVar("Source")

_log = logging.getLogger(__name__)

GRACE_SECONDS = 60.0
"""How long a caller that gives up waits for the tick that its tasks are in."""

LOOK_SECONDS = 0.2
"""How often a caller whose turn has not come looks whether it should stop."""

OnTick = Callable[[int, int], None]
"""Told how many optimiser steps are done, of how many, before every tick; may raise to stop."""


class TrainingLoop(Generic[Source]):
    """Owns the device. `load` makes the trainer of a base model, when the first task for it comes."""

    def __init__(self, load: Callable[[Source], BatchTrainer]) -> None:
        self._load = load
        self._inbox: queue.SimpleQueue[_Party[Source]] = queue.SimpleQueue()
        self._waiting: deque[_Party[Source]] = deque()
        self._active: list[_Party[Source]] = []
        self._source: Source | None = None
        self._trainer: BatchTrainer | None = None
        threading.Thread(target=self._work, name="training", daemon=True).start()

    def train(self, source: Source, tasks: Sequence[AdapterTask], *, on_tick: OnTick) -> Iterator[Outcome]:
        """Train tasks together with whatever else there is; each outcome as soon as it is there.

        Raises what `on_tick` raises, in the caller's thread, and what `load` raises. Tasks that are not waited for any
        more are given up.
        """
        if not tasks:
            return
        party = _Party(source, tasks, on_tick)
        self._inbox.put(party)
        try:
            party.wait_for_seat()
            for _ in tasks:
                outcome = party.outcomes.get()
                if isinstance(outcome, BaseException):
                    raise outcome
                yield outcome
        finally:
            if party.leave():
                party.out.wait(GRACE_SECONDS)  # its folders are in use until then

    # --- in the thread ---------------------------------------------------------------------------------------------

    def _work(self) -> None:
        while True:
            self._take_in()
            self._seat()
            self._poll()
            if self._active:
                self._tick()

    def _take_in(self) -> None:
        """Who has come; waits for somebody if nobody is here."""
        if not self._active and not self._waiting:
            self._waiting.append(self._inbox.get())
        while not self._inbox.empty():
            self._waiting.append(self._inbox.get())

    def _seat(self) -> None:
        """Those whose turn it is, in order of arrival."""
        while self._waiting and (not self._active or self._waiting[0].source == self._source):
            party = self._waiting.popleft()
            try:
                trainer = self._trainer_for(party.source)
                if party.sit_down():
                    self._active.append(party)
                    party.join(trainer)
            except BaseException as error:  # whatever it is, this thread serves the others
                self._turn_away(party, error)

    def _trainer_for(self, source: Source) -> BatchTrainer:
        if self._trainer is None or source != self._source:
            self._trainer = None  # let go of the old model before the new one is loaded
            gc.collect()
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
            self._trainer, self._source = self._load(source), source
        return self._trainer

    def _poll(self) -> None:
        """Tell everybody how far they are; who stops, leaves."""
        for party in [*self._active]:
            try:
                party.report()
            except BaseException as stopped:
                self._turn_away(party, stopped)
            else:
                if party.gone:
                    self._let_go(party)

    def _tick(self) -> None:
        assert self._trainer is not None
        try:
            ended = self._trainer.tick()
        except BaseException as error:
            _log.exception("the trainer broke; it is made again")
            for party in [*self._active]:
                self._turn_away(party, error)
            self._trainer = None  # what state it is in, nobody knows
            return
        for party in [*self._active]:
            self._hand_out(party, [ticket for ticket in ended if ticket in party.tickets])

    def _hand_out(self, party: _Party[Source], ended: Sequence[Ticket]) -> None:
        for ticket in ended:
            if ticket.error is not None:
                self._turn_away(party, ticket.error)
                return
            assert ticket.outcome is not None
            party.outcomes.put(ticket.outcome)
        if all(ticket.outcome is not None for ticket in party.tickets):
            self._let_go(party)

    def _turn_away(self, party: _Party[Source], why: BaseException) -> None:
        self._let_go(party)
        party.outcomes.put(why.with_traceback(None))  # which would keep the trainer, and its model, in memory

    def _let_go(self, party: _Party[Source]) -> None:
        if self._trainer is not None:
            for ticket in party.tickets:
                self._trainer.drop(ticket)
        if party in self._active:
            self._active.remove(party)
        give_back_freed_memory()
        party.seated.set()
        party.out.set()


class _Party(Generic[Source]):
    """A caller and its tasks."""

    def __init__(self, source: Source, tasks: Sequence[AdapterTask], on_tick: OnTick) -> None:
        self.source = source
        self.outcomes: queue.SimpleQueue[Outcome | BaseException] = queue.SimpleQueue()
        self.tickets: list[Ticket] = []
        self.gone = False
        """The caller waits no more."""
        self.seated = threading.Event()
        """Its tasks are in the batch, or never will be."""
        self.out = threading.Event()
        """Nobody works for it any more."""
        self._tasks, self._on_tick = tasks, on_tick
        self._lock = threading.Lock()

    def wait_for_seat(self) -> None:
        """In the caller's thread, which may stop meanwhile: the other one may have a model to load first."""
        while not self.seated.wait(LOOK_SECONDS):
            self._on_tick(0, 0)

    def sit_down(self) -> bool:
        """False if the caller has gone."""
        with self._lock:
            if not self.gone:
                self.seated.set()
            return not self.gone

    def leave(self) -> bool:
        """Returns whether somebody may be working for it."""
        with self._lock:
            self.gone = True
            return self.seated.is_set()

    def join(self, trainer: BatchTrainer) -> None:
        for task in self._tasks:
            self.tickets.append(trainer.add(task))

    def report(self) -> None:
        self._on_tick(sum(ticket.done for ticket in self.tickets), sum(ticket.steps for ticket in self.tickets))
