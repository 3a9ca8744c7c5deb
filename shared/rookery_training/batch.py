"""Train many LoRA adapters over one frozen base at once, each exactly as it would be trained alone.

Owns the training loop: which adapters share a pass, when each of them takes its steps, how one leaves and another takes
its place. It knows nothing of jobs, stores or services. Torch, transformers and peft are all that it needs.

A *tick* takes one micro-batch of every adapter in the bank. Its forward and backward pass runs over all of them packed
into one row without padding; if that is more tokens than memory allows, over as many as fit, then the next. Adapters
whose optimiser step is complete then take it together. None of this shows in an adapter: order, number and size of its
steps are its own.
"""

from __future__ import annotations

import logging
import math
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from itertools import chain, islice
from pathlib import Path

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from rookery_shared.peft_format import factor_key
from rookery_shared.types import Example, LoraRecipe, PolicyGradient, TrainingRecord
from rookery_training import checkpoints
from rookery_training.bank import Bank, Layout, Site, initial_a, own_sites
from rookery_training.base import FrozenBase, NotTrainable
from rookery_training.checkpoints import Checkpoint
from rookery_training.layout import read_factors, write_adapter
from rookery_training.memory import MemoryModel, free_memory, is_out_of_memory, measure, used_peak
from rookery_training.optimizer import Step, clear_gradients, gradient_norms, take_steps
from rookery_training.packing import Piece
from rookery_training.passes import Passes, split
from rookery_training.schedules import schedule_scale
from rookery_training.sequences import MicroBatch, Tokens, count_steps, micro_batches, tokenize

MAX_TOKENS_ON_CPU, MAX_TOKENS_ON_GPU = 16_384, 65_536
"""Passes need not be longer than this to keep a device busy."""
MIN_TOKENS = 2_048
"""If memory is for less than this, activations are computed twice instead of kept."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class AdapterTask:
    """One adapter to train."""

    key: str
    """The caller's name for it."""
    examples: Sequence[Example]
    recipe: LoraRecipe
    seed: int
    """Decides the first A and the order of the sequences."""
    out: Path
    """Folder that the adapter is written to, in PEFT's layout."""
    start: Path | None = None
    """Folder of an adapter of the same shape to go on from."""
    checkpoint: Checkpoint | None = None
    """Where to go on from if there is one, and where to put one at the end of an epoch."""
    gradient: PolicyGradient | None = None
    """What the examples are trained for; None learns them by their likelihood."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """How a task ended. An adapter that failed has a reason and no files."""

    key: str
    record: TrainingRecord
    failure: str = ""


@dataclass(slots=True, eq=False)
class Ticket:
    """A task from the time it was handed in."""

    task: AdapterTask
    sequences: list[Tokens]
    truncated: int
    steps: int
    """Optimiser steps in all."""
    done: int = 0
    outcome: Outcome | None = None
    error: Exception | None = None
    """What went wrong around its training, such as a full disk; another attempt may fare better."""
    dropped: bool = False


@dataclass(slots=True, eq=False)
class _Member:
    """An adapter in the bank."""

    ticket: Ticket
    sites: list[Site]
    batches: Iterator[MicroBatch]
    batch: MicroBatch
    """The next one."""
    began: float
    saved: float
    """When its last checkpoint was written, or it began."""
    steps_taken: Tensor
    """On the device, where the fused optimiser wants it."""
    draws: int = 0
    """Micro-batches taken."""
    loss: float = 0.0
    """Sum over the micro-batches of the current step."""
    losses: list[float] = field(default_factory=list)
    tokens: int = 0
    failure: str = ""

    @property
    def task(self) -> AdapterTask:
        return self.ticket.task

    @property
    def scale(self) -> float:
        return self.task.recipe.alpha / self.task.recipe.rank


class BatchTrainer:
    """One frozen base model that trains up to `slots` adapters at once.

    Either `train` some tasks; or `add` tasks and call `tick` while the trainer is `busy`, which lets tasks join and
    leave at any time. Not for several threads at once.

    `memory_bytes` is what training may take beside the base model; 0 takes what the device has free, when training
    starts. `tokens_per_pass` bounds a pass; 0 leaves it to memory. Raises NotTrainable for a base that is not served.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        *,
        slots: int = 32,
        tokens_per_pass: int = 0,
        memory_bytes: int = 0,
        checkpoint_seconds: float = 30.0,
    ) -> None:
        self._base = FrozenBase(model, tokenizer)
        self._passes = Passes(self._base)
        self._max_slots = slots
        self._max_tokens = tokens_per_pass or (
            MAX_TOKENS_ON_GPU if self._base.device.type == "cuda" else MAX_TOKENS_ON_CPU
        )
        self._checkpoint_seconds = checkpoint_seconds
        self._budget = memory_bytes or free_memory(self._base.device)
        self.memory = self._choose_memory()
        """What a pass needs."""
        self._waiting: deque[Ticket] = deque()
        self._members: list[_Member] = []
        self._ended: list[Ticket] = []
        self._bank = self._new_bank(Layout(), 0)
        self._hooks = ExitStack()
        self._hooked: Layout | None = None
        """The layout that the base's layers are hooked for."""

    # --- what callers do -------------------------------------------------------------------------------------------

    @property
    def busy(self) -> bool:
        return bool(self._waiting or self._members or self._ended)

    @property
    def tokens_per_pass(self) -> int:
        """As many as the memory beside the bank allows."""
        state = self._bank.slots * self._bytes_of_slot(self._bank.layout)
        return min(self._max_tokens, self.memory.tokens(self._budget - state))

    def add(self, task: AdapterTask) -> Ticket:
        """Hand in a task; it starts when there is room."""
        sequences, truncated = tokenize(task.examples, self._base.tokenizer, task.recipe, task.gradient)
        steps = count_steps(len(sequences), task.recipe) if sequences else 0
        ticket = Ticket(task, sequences, truncated, steps)
        self._waiting.append(ticket)
        return ticket

    def drop(self, ticket: Ticket) -> None:
        """Give a task up; it takes no further step and writes nothing. Harmless for one that has ended."""
        ticket.dropped = True
        self._drop_dropped()

    def tick(self) -> list[Ticket]:
        """A micro-batch of every adapter that has room. Returns the tasks that have ended, with their outcomes."""
        try:
            self._admit()
            if self._members:
                self._hook()
                self._run_micro_batches()
                self._step()
                self._advance()
        except BaseException:
            self._unhook()
            raise
        if not self._members:
            self._rest()
        ended, self._ended = self._ended, []
        return ended

    def train(
        self, tasks: Sequence[AdapterTask], *, on_tick: Callable[[int, int], None] = lambda done, total: None
    ) -> Iterator[Outcome]:
        """Train all tasks, and yield each when it has ended and its files are written.

        `on_tick(done, total)` is called before every tick, with optimiser steps over all tasks, and may raise to stop.
        """
        tickets = [self.add(task) for task in tasks]
        total = sum(ticket.steps for ticket in tickets)
        try:
            while any(ticket.outcome is None for ticket in tickets):
                on_tick(sum(ticket.done for ticket in tickets), total)
                for ticket in self.tick():
                    assert ticket.outcome is not None
                    yield ticket.outcome
        finally:
            for ticket in tickets:
                self.drop(ticket)
            self._ended.clear()

    def train_one(self, task: AdapterTask) -> TrainingRecord:
        """Train a single adapter. Raises NotTrainable with the reason if it fails."""
        [outcome] = self.train([task])
        if outcome.failure:
            raise NotTrainable(outcome.failure)
        return outcome.record

    # --- memory ----------------------------------------------------------------------------------------------------

    def _choose_memory(self) -> MemoryModel:
        """Keep activations if there is room for a good pass of them; else compute them twice, if that saves any."""
        kept = self._measured()
        if kept is not None and kept.tokens(self._budget // 2) >= MIN_TOKENS:
            return kept
        self._base.recompute_activations(on=True)
        recomputed = self._measured()
        if recomputed is not None and (kept is None or recomputed.per_token < kept.per_token):
            return recomputed
        if kept is None:
            raise NotTrainable("the device has no memory for training on this base model")
        self._base.recompute_activations(on=False)
        return kept

    def _measured(self) -> MemoryModel | None:
        """None if there is no memory for measuring it."""
        try:
            return measure(self._base)
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            return None

    def _bytes_of_slot(self, layout: Layout) -> int:
        return Bank.bytes_of_slot(layout, self._base.precision, self._base.dtype)

    def _slots_for(self, layout: Layout) -> int:
        """As many adapters as half of the memory holds, at least 1."""
        fit = self._budget // 2 // max(1, self._bytes_of_slot(layout))
        return max(1, min(self._max_slots, fit))

    def _new_bank(self, layout: Layout, slots: int) -> Bank:
        return Bank(layout, slots=slots, device=self._base.device, dtype=self._base.precision)

    # --- who takes part --------------------------------------------------------------------------------------------

    def _drop_dropped(self) -> None:
        self._waiting = deque(ticket for ticket in self._waiting if not ticket.dropped)
        for slot in reversed(range(len(self._members))):
            if self._members[slot].ticket.dropped:
                self._leave(slot)
        if not self._members:
            self._rest()

    def _admit(self) -> None:
        """Fill the free slots, in order of arrival; who needs a wider bank waits until there is memory for it."""
        if not self._waiting or len(self._members) >= self._max_slots or not self._make_room():
            return
        while self._waiting and len(self._members) < self._bank.slots:
            ticket = self._waiting[0]
            if not self._bank.layout.covers(self._layout_for([ticket])):
                return
            self._waiting.popleft()
            try:
                self._enter(ticket)
            except Exception as error:  # the others go on
                ticket.error = None if isinstance(error, NotTrainable) else error
                self._end(ticket, TrainingRecord(truncated=ticket.truncated, seed=ticket.task.seed), str(error))

    def _make_room(self) -> bool:
        """A bank for the adapters that it holds and those that wait, or for the first of them; False if it is full."""
        for candidates in ([*self._waiting], [self._waiting[0]]):
            layout = self._layout_for(candidates)
            slots = min(self._slots_for(layout), len(self._members) + len(candidates))
            if slots <= len(self._members):
                continue
            fits = self._bank.layout.covers(layout) if self._members else self._bank.layout == layout
            if not fits or self._bank.slots < slots:
                return self._rebuild(layout, slots)
            return True
        return False

    def _layout_for(self, tickets: Sequence[Ticket]) -> Layout:
        recipes = [member.task.recipe for member in self._members] + [ticket.task.recipe for ticket in tickets]
        targets = {target for recipe in recipes for target in recipe.targets}
        return Layout.of(self._base.linear, targets, max(recipe.rank for recipe in recipes))

    def _rebuild(self, layout: Layout, slots: int) -> bool:
        """Another bank with the same adapters in it, of fewer slots if memory is not enough for so many.

        False if it is not enough for one more: then the bank stays as it is until somebody leaves.
        """
        least = len(self._members) + 1
        while True:
            try:
                bank = self._new_bank(layout, slots)
            except RuntimeError as error:
                if not is_out_of_memory(error) or (slots <= least and not self._members):
                    raise
                if slots <= least:
                    return False
                slots = max(least, slots // 2)
                self._max_slots = min(self._max_slots, slots)
                _log.warning("out of memory; at most %d adapters at once from now on", self._max_slots)
            else:
                break
        bank.copy_rows(self._bank, len(self._members))
        for member in self._members:
            member.sites = own_sites(layout, member.task.recipe.targets)
        self._bank = bank
        return True

    def _hook(self) -> None:
        if self._hooked != self._bank.layout:
            self._unhook()
            self._hooks.enter_context(self._passes.on(self._bank.layout))
            self._hooked = self._bank.layout

    def _rest(self) -> None:
        """Nobody takes part: the base as it was, and no memory for adapters."""
        self._unhook()
        self._bank = self._new_bank(Layout(), 0)

    def _unhook(self) -> None:
        self._hooks.close()
        self._hooked = None

    def _enter(self, ticket: Ticket) -> None:
        """Raises NotTrainable for a task that cannot be trained."""
        task = ticket.task
        if not ticket.sequences:
            raise NotTrainable("no example has a token to predict")
        missing = {t for t in task.recipe.targets if not own_sites(self._bank.layout, [t])}
        if missing:
            raise NotTrainable(f"the model has no linear layer named {', '.join(sorted(missing))}")
        slot, now = len(self._members), time.perf_counter()
        self._bank.clear(slot)
        sites = own_sites(self._bank.layout, task.recipe.targets)
        if task.gradient is not None:
            self._recall(ticket, sites)
        restored = self._restore(ticket, slot, sites)
        if restored is None:
            self._fill(self._bank.weights_NW[slot], task, sites)
        first_epoch = restored.epochs if restored else 0
        batches = micro_batches(ticket.sequences, task.recipe, seed=task.seed, first_epoch=first_epoch)
        steps_taken = torch.zeros((), device=self._base.device)
        member = _Member(ticket, sites, batches, next(batches), began=now, saved=now, steps_taken=steps_taken)
        if restored is not None:
            member.draws, member.losses, member.tokens = restored.draws, restored.losses, restored.tokens
            member.began -= restored.seconds
            member.steps_taken.fill_(restored.steps)
            ticket.done = restored.steps
        self._members.append(member)

    def _fill(self, row_W: Tensor, task: AdapterTask, sites: Sequence[Site]) -> None:
        """The first weights: random A and zero B, or those of the adapter to go on from."""
        rank = task.recipe.rank
        stored = read_factors(task.start) if task.start is not None else None
        generator = torch.Generator().manual_seed(task.seed)
        for site in sites:
            a_RI, b_OR = self._bank.layout.factors(row_W, site, rank)
            if stored is None:
                a_RI.copy_(initial_a(site.inputs, rank, generator, self._base.precision))
                continue
            stored_a, stored_b = stored.get(factor_key(site.name, "A")), stored.get(factor_key(site.name, "B"))
            if stored_a is None or stored_b is None or stored_a.shape != a_RI.shape or stored_b.shape != b_OR.shape:
                raise NotTrainable("the adapter to go on from has another rank or other layers")
            a_RI.copy_(stored_a)
            b_OR.copy_(stored_b)

    def _recall(self, ticket: Ticket, sites: Sequence[Site]) -> None:
        """How likely the sequences are to the base, and to the adapter to go on from if there is one."""
        self._hook()
        adapter_1W = torch.zeros_like(self._bank.weights_NW[:1])
        old = reference = self._log_likelihoods(ticket, adapter_1W)
        if ticket.task.start is not None:
            self._fill(adapter_1W[0], ticket.task, sites)
            old = self._log_likelihoods(ticket, adapter_1W)
        for i, sequence in enumerate(ticket.sequences):
            assert sequence.sampled is not None
            sampled = replace(sequence.sampled, old=old[i], reference=reference[i])
            ticket.sequences[i] = replace(sequence, sampled=sampled)

    def _log_likelihoods(self, ticket: Ticket, adapter_1W: Tensor) -> list[list[float]]:
        """Of each sequence's predicted tokens, in nats."""
        plain = [replace(sequence, sampled=None) for sequence in ticket.sequences]
        scale = ticket.task.recipe.alpha / ticket.task.recipe.rank
        whole = Piece(slot=0, sequences=plain, before=0, counted=1.0, scale=scale, dropout=0.0, seed=0, draw=0)
        found = chain.from_iterable(
            self._passes.log_likelihoods(self._bank.layout, adapter_1W, pieces).tolist()
            for pieces in split([whole], self.tokens_per_pass)
        )
        return [[*islice(found, sequence.predicted)] for sequence in plain]

    def _leave(self, slot: int) -> None:
        """Out of the bank; the last slot moves up."""
        last = self._members.pop()
        if slot < len(self._members):
            self._members[slot] = last
            self._bank.move(len(self._members), slot)

    def _end(self, ticket: Ticket, record: TrainingRecord, failure: str) -> None:
        ticket.outcome = Outcome(key=ticket.task.key, record=record, failure=failure)
        ticket.done = ticket.steps
        self._ended.append(ticket)

    # --- passes ----------------------------------------------------------------------------------------------------

    def _run_micro_batches(self) -> None:
        pieces = [
            Piece(
                slot=slot,
                sequences=member.batch.sequences,
                before=0,
                counted=member.batch.counted,
                scale=member.scale,
                dropout=member.task.recipe.dropout,
                seed=member.task.seed,
                draw=member.draws,
            )
            for slot, member in enumerate(self._members)
        ]
        for together in split(pieces, self.tokens_per_pass):
            self._run(together)
        for member in self._members:
            member.draws += 1

    def _run(self, pieces: Sequence[Piece]) -> None:
        """One pass; smaller ones if memory is not enough for it."""
        gradients_NW = self._bank.gradients_NW[pieces[0].slot : pieces[-1].slot + 1]
        has_some = any(piece.before or not self._members[piece.slot].batch.begins_step for piece in pieces)
        before_NW = None
        try:
            before_NW = gradients_NW.clone() if has_some else None
            losses = self._passes.run(self._bank, pieces)
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            failed = str(error).splitlines()[0]
        else:
            for piece, loss in zip(pieces, losses, strict=True):
                self._members[piece.slot].loss += loss
                self._members[piece.slot].tokens += sum(len(s.tokens) - s.silent for s in piece.sequences)
            return
        if before_NW is not None:
            gradients_NW.copy_(before_NW)
        elif not has_some:  # else there was no memory for the copy, and nothing has been added
            gradients_NW.zero_()
        self._run_smaller(pieces, failed)

    def _run_smaller(self, pieces: Sequence[Piece], failed: str) -> None:
        """After a pass for which there was no memory: from now on, half as long."""
        if self._base.device.type == "cuda":
            torch.cuda.empty_cache()
        tokens = sum(piece.tokens for piece in pieces)
        if sum(len(piece.sequences) for piece in pieces) == 1:
            member = self._members[pieces[0].slot]
            member.failure = f"out of memory: the device cannot train on a sequence of {tokens} tokens"
            return
        self._max_tokens = max(1, tokens // 2)
        _log.warning("out of memory; passes have at most %d tokens from now on: %s", self._max_tokens, failed)
        for together in split(pieces, self._max_tokens):
            self._run(together)

    # --- steps -----------------------------------------------------------------------------------------------------

    def _step(self) -> None:
        """The optimiser steps of those whose last micro-batch completed one."""
        slots = [slot for slot, member in enumerate(self._members) if member.batch.ends_step]
        if not slots:
            return
        norms = gradient_norms(self._bank)
        steps = []
        for slot in slots:
            member = self._members[slot]
            member.losses.append(member.loss)
            if not math.isfinite(member.loss) or not math.isfinite(norms[slot]):
                what = "loss" if not math.isfinite(member.loss) else "gradient"
                at = f"step {member.batch.step + 1} of {member.ticket.steps}"
                member.failure = member.failure or f"the {what} was not a number at {at}"
                continue
            member.loss = 0.0
            member.ticket.done += 1
            steps.append(self._step_of(slot, member))
        take_steps(self._bank, steps, norms)
        clear_gradients(self._bank, slots, used=len(self._members))

    def _step_of(self, slot: int, member: _Member) -> Step:
        recipe = member.task.recipe
        scale = schedule_scale(
            recipe.schedule, step=member.batch.step, steps=member.ticket.steps, warmup=recipe.warmup_steps
        )
        return Step(
            slot=slot,
            rate=recipe.learning_rate * scale,
            decay=recipe.weight_decay,
            clip=recipe.max_gradient_norm,
            taken=member.steps_taken,
        )

    def _advance(self) -> None:
        """Everybody to the next micro-batch; who has none, or has failed, leaves."""
        for slot in reversed(range(len(self._members))):
            member = self._members[slot]
            following = None if member.failure else next(member.batches, None)
            if following is None:
                record = self._finish(slot)
                self._end(member.ticket, record, member.failure)
                self._leave(slot)
                continue
            if member.batch.ends_epoch:
                self._save(slot)
            member.batch = following

    def _finish(self, slot: int) -> TrainingRecord:
        """Write the adapter, unless it failed."""
        member = self._members[slot]
        task, seconds, change = member.task, time.perf_counter() - member.began, 0.0
        if not member.failure:
            try:
                change = self._write(slot)
            except Exception as error:  # the others go on
                member.ticket.error, member.failure = error, str(error)
        return TrainingRecord(
            losses=tuple(member.losses),
            tokens=member.tokens,
            truncated=member.ticket.truncated,
            seconds=seconds,
            weight_change=change,
            peak_memory_bytes=used_peak(self._base.device),
            seed=task.seed,
        )

    def _write(self, slot: int) -> float:
        """Write the adapter; the norm of its change of the weights."""
        member = self._members[slot]
        weights: dict[str, Tensor] = {}
        squares: list[Tensor] = []
        for site in member.sites:
            a_RI, b_OR = self._bank.layout.factors(self._bank.weights_NW[slot], site, member.task.recipe.rank)
            weights[factor_key(site.name, "A")], weights[factor_key(site.name, "B")] = a_RI, b_OR
            # |BA|^2 = trace(A A^T B^T B), without forming the product
            squares.append(((a_RI @ a_RI.T) * (b_OR.T @ b_OR)).sum())
        write_adapter(
            member.task.out,
            weights,
            member.task.recipe,
            base=self._base.model.name_or_path or "",
            targets={site.name.rpartition(".")[2] for site in member.sites},
        )
        return member.scale * math.sqrt(torch.stack(squares).sum().item())

    # --- checkpoints -----------------------------------------------------------------------------------------------

    def _digest(self, task: AdapterTask) -> str:
        base = f"{self._base.model.name_or_path} {task.start.name if task.start else ''}"
        return checkpoints.task_digest(task.examples, task.recipe, task.gradient, task.seed, base)

    def _stored(self, slot: int, sites: Sequence[Site], rank: int) -> dict[str, Tensor]:
        """Views of what a checkpoint keeps of a slot."""
        bank = self._bank
        return {
            f"{kind}.{site.name}.{factor}": view
            for kind, matrix_NW in (("weights", bank.weights_NW), ("first", bank.first_NW), ("second", bank.second_NW))
            for site in sites
            for factor, view in zip("AB", bank.layout.factors(matrix_NW[slot], site, rank), strict=True)
        }

    def _save(self, slot: int) -> None:
        """At the end of an epoch, unless the last checkpoint is fresh."""
        member, now = self._members[slot], time.perf_counter()
        checkpoint = member.task.checkpoint
        if checkpoint is None or now - member.saved < self._checkpoint_seconds or not checkpoint.ready:
            return
        progress = checkpoints.Progress(
            epochs=member.batch.epoch + 1,
            steps=member.ticket.done,
            draws=member.draws,
            losses=member.losses,
            tokens=member.tokens,
            seconds=now - member.began,
        )
        tensors = self._stored(slot, member.sites, member.task.recipe.rank)
        try:
            checkpoint.write(checkpoints.encode(progress, tensors, self._digest(member.task)))
        except Exception as error:  # training goes on without
            _log.warning("no checkpoint of %s: %s", member.task.key, error)
        member.saved = now

    def _restore(self, ticket: Ticket, slot: int, sites: Sequence[Site]) -> checkpoints.Progress | None:
        """Go on from the task's checkpoint. None if it has none that can be used."""
        task = ticket.task
        data = task.checkpoint.read() if task.checkpoint is not None else None
        decoded = checkpoints.decode(data, self._digest(task)) if data is not None else None
        if decoded is None:
            return None
        progress, tensors = decoded
        views = self._stored(slot, sites, task.recipe.rank)
        if {key: view.shape for key, view in views.items()} != {key: t.shape for key, t in tensors.items()}:
            return None
        for key, view in views.items():
            view.copy_(tensors[key])
        _log.info("%s goes on after epoch %d of %d", task.key, progress.epochs, task.recipe.epochs)
        return progress
