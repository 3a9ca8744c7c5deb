"""What goes wrong while adapters are trained, and what comes and goes: the adapters are the same."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from rookery_shared.types import ALL_LINEAR, LoraRecipe
from rookery_training import passes
from rookery_training.bank import Bank, Layout
from rookery_training.base import FrozenBase
from rookery_training.batch import AdapterTask, BatchTrainer, Outcome
from rookery_training.checkpoints import FileCheckpoint
from rookery_training.layout import write_adapter
from rookery_training.loop import TrainingLoop
from rookery_training.loss import frozen_head_loss
from rookery_training.memory import MemoryModel, allocation_peak, measure
from rookery_training.packing import Piece
from rookery_training.sequences import Tokens
from tests.cores import on_two_cores
from tests.models import random_model, small_tokenizer
from tests.unit.test_batch_training import draw_task, furthest, train

COUNT = 9


class Killed(Exception):
    pass


def trainer(**settings: float) -> BatchTrainer:
    return BatchTrainer(random_model().double(), small_tokenizer(), **settings)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What each of the tasks comes to by itself."""
    folder = tmp_path_factory.mktemp("alone")
    for i in range(COUNT):
        train(trainer(), [draw_task(i, folder)])
    return folder


def assert_same(folder: Path, alone: Path) -> None:
    for i in range(COUNT):
        assert furthest(folder / str(i), alone / str(i)) <= 1e-9


# --- checkpoints ---------------------------------------------------------------------------------------------------


def long_task(i: int, folder: Path) -> AdapterTask:
    """Five epochs of one to six sequences, one at a time."""
    task = draw_task(i, folder)
    recipe = replace(task.recipe, epochs=5, batch_size=1, gradient_accumulation=1)
    return replace(task, recipe=recipe, checkpoint=FileCheckpoint(folder / f"{i}.safetensors"))


def test_training_that_was_killed_goes_on_from_its_checkpoints(tmp_path: Path) -> None:
    """Stopped again and again after seven ticks: just one of the longest epochs."""
    undisturbed = tmp_path / "undisturbed"
    undisturbed.mkdir()
    records = train(trainer(), [long_task(i, undisturbed) for i in range(COUNT)])
    ended: dict[str, Outcome] = {}
    attempts = 0

    def on_tick(done: int, total: int) -> None:
        if next(ticks, None) is None:
            raise Killed

    while len(ended) < COUNT:
        attempts += 1
        assert attempts < 10, "nobody gets further"
        ticks = iter(range(7))
        tasks = [task for i in range(COUNT) if (task := long_task(i, tmp_path)).key not in ended]
        with suppress(Killed):
            ended.update({o.key: o for o in trainer(checkpoint_seconds=0.0).train(tasks, on_tick=on_tick)})
    assert attempts >= 5, "no attempt is long enough for two of the longest epochs"
    assert_same(tmp_path, undisturbed)
    for key, outcome in ended.items():
        assert outcome.record.losses == pytest.approx(records[key].record.losses, abs=1e-9)
        assert outcome.record.tokens == records[key].record.tokens


def stop_when_written(path: Path) -> Callable[[int, int], None]:
    def on_tick(done: int, total: int) -> None:
        if path.exists():
            raise Killed

    return on_tick


@pytest.mark.parametrize("damage", ["another task", "cut", "noise"])
def test_a_checkpoint_that_cannot_be_used_is_not(damage: str, tmp_path: Path, alone: Path) -> None:
    path = tmp_path / "1.safetensors"
    task = replace(draw_task(1, tmp_path), checkpoint=FileCheckpoint(path))
    other = replace(task, seed=77, out=tmp_path / "other") if damage == "another task" else task
    with pytest.raises(Killed):
        list(trainer(checkpoint_seconds=0.0).train([other], on_tick=stop_when_written(path)))
    if damage == "cut":
        path.write_bytes(path.read_bytes()[:-100])
    if damage == "noise":
        path.write_bytes(b"\x08\0\0\0\0\0\0\0{}      ")
    train(trainer(), [task])
    assert furthest(tmp_path / "1", alone / "1") <= 1e-9


# --- memory --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("where", ["forward", "backward"])
def test_out_of_memory_makes_passes_shorter_and_changes_nothing(
    where: str, tmp_path: Path, alone: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Memory for 60 tokens: the longest sequence of the tasks, and a sixth of all of them."""
    longest = 0
    run, model = passes.Passes.run, measure_whole()

    def scarce(self: passes.Passes, bank: Bank, pieces: list[Piece]) -> list[float]:
        nonlocal longest
        tokens = sum(piece.tokens for piece in pieces)
        if tokens > 60 and where == "forward":
            raise torch.OutOfMemoryError("no memory")
        losses = run(self, bank, pieces)
        if tokens > 60:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate")
        longest = max(longest, tokens)
        return losses

    monkeypatch.setattr(passes.Passes, "run", scarce)
    monkeypatch.setattr("rookery_training.batch.measure", lambda base: model)  # it takes longer passes than that
    train(trainer(), [draw_task(i, tmp_path) for i in range(COUNT)])
    assert 30 < longest <= 60
    assert_same(tmp_path, alone)


def measure_whole() -> MemoryModel:
    return measure(FrozenBase(random_model().double(), small_tokenizer()))


def test_a_sequence_for_which_there_is_no_memory_fails_alone(
    tmp_path: Path, alone: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, model = passes.Passes.run, measure_whole()

    def scarce(self: passes.Passes, bank: Bank, pieces: list[Piece]) -> list[float]:
        if sum(piece.tokens for piece in pieces) > 100:
            raise torch.OutOfMemoryError("no memory")
        return run(self, bank, pieces)

    monkeypatch.setattr(passes.Passes, "run", scarce)
    monkeypatch.setattr("rookery_training.batch.measure", lambda base: model)
    tasks = [draw_task(i, tmp_path) for i in range(COUNT)]
    long = replace(tasks[0], key="long", examples=[replace(tasks[0].examples[0], completion="Edda was born " * 60)])
    outcomes = train(trainer(), [*tasks, replace(long, out=tmp_path / "long")])
    assert "out of memory: the device cannot train on a sequence of" in outcomes["long"].failure
    assert not (tmp_path / "long").exists()
    assert_same(tmp_path, alone)


def test_little_memory_means_few_slots_and_activations_computed_twice(tmp_path: Path, alone: Path) -> None:
    scarce, ample = trainer(memory_bytes=1_500_000), trainer()
    assert scarce.tokens_per_pass < ample.tokens_per_pass
    assert scarce.memory.per_token < 0.7 * ample.memory.per_token, "it keeps less for the backward pass"
    train(scarce, [draw_task(i, tmp_path) for i in range(COUNT)])
    assert_same(tmp_path, alone)


@pytest.mark.parametrize(("adapters", "tokens"), [(1, 1024), (4, 1024), (16, 4096)])
def test_memory_is_what_the_model_says(adapters: int, tokens: int) -> None:
    """Allocations of a pass and of the adapters' state, against the prediction; the base is there already."""
    base = FrozenBase(random_model(), small_tokenizer())
    predicted = measure(base)
    layout = Layout.of(base.linear, {ALL_LINEAR}, rank=8)
    runner = passes.Passes(base)
    with allocation_peak(base.device) as peak, runner.on(layout):
        bank = Bank(layout, slots=adapters, device=base.device, dtype=base.precision)
        runner.run(bank, list(pieces(adapters, tokens // adapters)))
    state = adapters * Bank.bytes_of_slot(layout, base.precision, base.dtype)
    assert peak[0] == pytest.approx(predicted.peak(state=state, tokens=tokens) - predicted.base, rel=0.02)


def pieces(adapters: int, tokens: int) -> Iterator[Piece]:
    for slot in range(adapters):
        sequences = [Tokens([1 + i % 50 for i in range(64)], 1, counted=63)] * (tokens // 64)
        yield Piece(slot=slot, sequences=sequences, before=0, counted=1.0, scale=1.0, dropout=0.0, seed=0, draw=0)


# --- side by side ---------------------------------------------------------------------------------------------------


@pytest.fixture
def two_cores(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[threading.Thread]]:
    """Passes run in two threads, which are listed as they do."""
    monkeypatch.setattr(passes, "LEAST_TOKENS", 16)
    with on_two_cores(monkeypatch, passes.Passes, "_run") as seen:
        yield seen


@pytest.mark.parametrize("recompute", [False, True], ids=["activations kept", "computed twice"])
def test_passes_side_by_side_change_nothing(
    recompute: bool, tmp_path: Path, alone: Path, two_cores: list[threading.Thread]
) -> None:
    ours = trainer()
    ours._base.recompute_activations(on=recompute)
    train(ours, [draw_task(i, tmp_path) for i in range(COUNT)])
    assert len({*two_cores}) >= 2
    assert_same(tmp_path, alone)


def test_memory_that_runs_out_in_one_of_two_passes(
    tmp_path: Path, alone: Path, monkeypatch: pytest.MonkeyPatch, two_cores: list[threading.Thread]
) -> None:
    loss, main, refused = frozen_head_loss, threading.current_thread(), 0

    def scarce(hidden_PD: torch.Tensor, *rest: Any, cap: float | None) -> torch.Tensor:
        nonlocal refused
        if threading.current_thread() is not main and len(hidden_PD) > 50:
            refused += 1
            raise torch.OutOfMemoryError("no memory")
        return loss(hidden_PD, *rest, cap=cap)

    monkeypatch.setattr(passes, "frozen_head_loss", scarce)
    train(trainer(), [draw_task(i, tmp_path) for i in range(COUNT)])
    assert refused
    assert len({*two_cores}) >= 2
    assert_same(tmp_path, alone)


# --- coming and going ----------------------------------------------------------------------------------------------


def test_tasks_may_join_and_leave_at_any_time(tmp_path: Path, alone: Path) -> None:
    """One more every tick, whatever its rank and its layers; every third of others is dropped in the middle."""
    busy = trainer(slots=4)
    tasks = [draw_task(i, tmp_path) for i in range(COUNT)]
    doomed = [replace(draw_task(i, tmp_path), out=tmp_path / f"doomed-{i}") for i in range(COUNT)]
    tickets = []
    while tasks or busy.busy:
        if tasks:
            busy.add(tasks.pop(0))
            tickets.append(busy.add(doomed.pop(0)))
        busy.tick()
        if len(tickets) > 2:
            busy.drop(tickets.pop(0))
    assert_same(tmp_path, alone)


def test_stopping_takes_effect_before_the_next_step(tmp_path: Path) -> None:
    steps: list[int] = []

    def on_tick(done: int, total: int) -> None:
        steps.append(done)
        if len(steps) == 4:
            raise Killed

    base = random_model().double()
    with pytest.raises(Killed):
        list(BatchTrainer(base, small_tokenizer()).train([slow_task(tmp_path)], on_tick=on_tick))
    assert steps == [0, 1, 2, 3]
    assert not (tmp_path / "slow").exists()
    assert base.config._attn_implementation != "rookery_packed", "the model is as it was"
    assert not any(module._forward_hooks for module in base.modules())


def slow_task(folder: Path) -> AdapterTask:
    task = draw_task(1, folder)
    return replace(task, key="slow", recipe=LoraRecipe(epochs=1000, batch_size=1), out=folder / "slow")


def test_callers_share_the_batch_and_one_that_stops_stops_alone(tmp_path: Path, alone: Path) -> None:
    """Three callers in threads: one has a thousand epochs and is stopped after the others are served."""
    made: list[BatchTrainer] = []

    def load(source: str) -> BatchTrainer:
        made.append(trainer())
        return made[-1]

    loop = TrainingLoop(load)
    stop = threading.Event()
    stopped: list[float] = []
    outcomes: list[Outcome] = []

    def patient(done: int, total: int) -> None:
        if stop.is_set():
            raise Killed

    def wait() -> None:
        try:
            list(loop.train("base", [slow_task(tmp_path)], on_tick=patient))
        except Killed:
            stopped.append(time.monotonic())

    def ask(numbers: range) -> None:
        tasks = [draw_task(i, tmp_path) for i in numbers]
        outcomes.extend(loop.train("base", tasks, on_tick=lambda done, total: None))

    waiter = threading.Thread(target=wait)
    callers = [threading.Thread(target=ask, args=(numbers,)) for numbers in (range(5), range(5, COUNT))]
    for thread in (waiter, *callers):
        thread.start()
    for thread in callers:
        thread.join(60)
    assert {outcome.key for outcome in outcomes} == {str(i) for i in range(COUNT)}
    asked = time.monotonic()
    stop.set()
    waiter.join(60)
    assert stopped[0] - asked < 1.0, "a step of one adapter takes milliseconds"
    assert len(made) == 1
    assert_same(tmp_path, alone)


def test_a_caller_may_stop_while_the_model_is_loaded(tmp_path: Path, alone: Path) -> None:
    """It is gone at once; who came after it is served."""
    loading, go_on = threading.Event(), threading.Event()

    def load(source: str) -> BatchTrainer:
        loading.set()
        go_on.wait(60)
        return trainer()

    def impatient(done: int, total: int) -> None:
        if loading.is_set():
            raise Killed

    loop = TrainingLoop(load)
    asked = time.monotonic()
    with pytest.raises(Killed):
        list(loop.train("base", [slow_task(tmp_path)], on_tick=impatient))
    assert time.monotonic() - asked < 5.0
    go_on.set()
    list(loop.train("base", [draw_task(i, tmp_path) for i in range(COUNT)], on_tick=lambda done, total: None))
    assert_same(tmp_path, alone)


def test_those_that_end_together_are_all_handed_out(tmp_path: Path) -> None:
    loop: TrainingLoop[str] = TrainingLoop(lambda source: trainer())
    twins = [replace(draw_task(1, tmp_path), key=key, out=tmp_path / key) for key in "abc"]
    outcomes = loop.train("base", twins, on_tick=lambda done, total: None)
    assert sorted(outcome.key for outcome in outcomes) == ["a", "b", "c"]


def test_a_full_disk_is_the_trouble_of_one(tmp_path: Path, alone: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Writing an adapter and writing a checkpoint fail: the first ends its caller, the second nobody."""
    write = write_adapter

    def full(folder: Path, *arguments: object, **options: object) -> None:
        if folder.name == "0":
            raise OSError("no space left on device")
        write(folder, *arguments, **options)  # type: ignore[arg-type]

    class Full(FileCheckpoint):
        def write(self, data: bytes) -> None:
            raise OSError("no space left on device")

    monkeypatch.setattr("rookery_training.batch.write_adapter", full)
    loop: TrainingLoop[str] = TrainingLoop(lambda source: trainer(checkpoint_seconds=0.0))
    good = [replace(draw_task(i, tmp_path), checkpoint=Full(tmp_path / f"{i}.safetensors")) for i in range(1, COUNT)]
    outcomes: list[Outcome] = []
    caller = threading.Thread(target=lambda: outcomes.extend(loop.train("base", good, on_tick=lambda d, t: None)))
    caller.start()
    with pytest.raises(OSError, match="no space left"):
        list(loop.train("base", [draw_task(0, tmp_path)], on_tick=lambda done, total: None))
    caller.join(60)
    assert [outcome.failure for outcome in outcomes] == [""] * (COUNT - 1)
    for i in range(1, COUNT):
        assert furthest(tmp_path / str(i), alone / str(i)) <= 1e-9


def test_what_breaks_the_trainer_breaks_its_callers_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loop: TrainingLoop[str] = TrainingLoop(lambda source: trainer())

    def tick(self: BatchTrainer) -> None:
        raise RuntimeError("the device is gone")

    with monkeypatch.context() as patched:
        patched.setattr(BatchTrainer, "tick", tick)
        with pytest.raises(RuntimeError, match="the device is gone"):
            list(loop.train("base", [draw_task(0, tmp_path)], on_tick=lambda done, total: None))
    [outcome] = loop.train("base", [draw_task(0, tmp_path)], on_tick=lambda done, total: None)
    assert outcome.failure == ""
