"""One thread that trains the adapters of everybody in this process together.

Callers hand in tasks and get outcomes as they come, each in a thread of its own; their tasks share the batch. Tasks for
another base model wait until the tasks before them have ended.
"""

from __future__ import annotations

import queue
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import Generic, TypeVar

from rookery_training.batch import AdapterTask, BatchTrainer, Outcome, Ticket

Source = TypeVar("Source")

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
        party = _Party(source, tasks, on_tick)
        self._inbox.put(party)
        try:
            for _ in tasks:
                outcome = party.outcomes.get()
                if isinstance(outcome, BaseException):
                    raise outcome
                yield outcome
        finally:
            party.gone = True

    # --- in the thread ---------------------------------------------------------------------------------------------

    def _work(self) -> None:
        while True:
            self._take_in()
            self._seat()
            if self._active and self._trainer is not None:
                self._poll(self._trainer)
                self._tick(self._trainer)

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
                party.join(self._trainer_for(party.source))
            except Exception as error:
                party.outcomes.put(error)
            else:
                self._active.append(party)

    def _trainer_for(self, source: Source) -> BatchTrainer:
        if self._trainer is None or source != self._source:
            self._trainer = None  # let go of the old model before the new one is loaded
            self._trainer, self._source = self._load(source), source
        return self._trainer

    def _poll(self, trainer: BatchTrainer) -> None:
        """Tell everybody how far they are; who stops, leaves."""
        for party in [*self._active]:
            try:
                party.report()
            except Exception as stopped:
                party.leave(trainer)
                party.outcomes.put(stopped)
            if party.gone:
                party.leave(trainer)
            if party.left:
                self._active.remove(party)

    def _tick(self, trainer: BatchTrainer) -> None:
        try:
            ended = trainer.tick()
        except Exception as error:
            for party in self._active:
                party.leave(trainer)
                party.outcomes.put(error)
            self._active.clear()
            self._trainer = None  # what state it is in, nobody knows
            return
        for ticket in ended:
            for party in self._active:
                party.hand_out(ticket)
        self._active = [party for party in self._active if not party.served]


class _Party(Generic[Source]):
    """A caller and its tasks."""

    def __init__(self, source: Source, tasks: Sequence[AdapterTask], on_tick: OnTick) -> None:
        self.source = source
        self.outcomes: queue.SimpleQueue[Outcome | BaseException] = queue.SimpleQueue()
        self.gone = False
        """The caller waits no more."""
        self.left = False
        self._tasks, self._on_tick = tasks, on_tick
        self._tickets: list[Ticket] = []

    @property
    def served(self) -> bool:
        return all(ticket.outcome is not None for ticket in self._tickets)

    def join(self, trainer: BatchTrainer) -> None:
        self._tickets = [trainer.add(task) for task in self._tasks]

    def leave(self, trainer: BatchTrainer) -> None:
        self.left = True
        for ticket in self._tickets:
            trainer.drop(ticket)

    def report(self) -> None:
        self._on_tick(sum(ticket.done for ticket in self._tickets), sum(ticket.steps for ticket in self._tickets))

    def hand_out(self, ticket: Ticket) -> None:
        if ticket in self._tickets and ticket.outcome is not None:
            self.outcomes.put(ticket.outcome)
