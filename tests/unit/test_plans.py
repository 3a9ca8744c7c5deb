"""Which rounds a run consists of."""

from __future__ import annotations

from rookery_coordinator.plans import slices, write_run_rounds
from rookery_coordinator.tables import Round
from rookery_coordinator.types import Purpose, RunPlan


class Recorder:
    """Stands where a session is expected, and keeps what is added."""

    def __init__(self) -> None:
        self.rounds: list[Round] = []

    def add_all(self, rounds: list[Round]) -> None:
        self.rounds += rounds


def rounds_of(plan: RunPlan, *, train: int, test: int) -> list[Round]:
    recorder = Recorder()
    write_run_rounds(recorder, "runs/x", plan, train=train, test=test)  # type: ignore[arg-type]  # it only adds
    return recorder.rounds


def test_contexts_are_divided_evenly_over_the_rounds() -> None:
    assert slices(7, 3) == [(0, 3), (3, 2), (5, 2)]
    assert slices(4, 2) == [(0, 2), (2, 2)]


def test_two_rounds_with_a_control() -> None:
    rounds = rounds_of(RunPlan(rounds=2, control=True, self_edits=5, seeds=3, test_self_edits=2), train=10, test=4)
    by_id = {r.id: r for r in rounds}
    described = [
        (r.purpose.value, r.label, r.first_context, r.contexts, by_id[r.after].position if r.after else None)
        for r in rounds
    ]
    assert described == [
        ("baseline", "passage only", 0, 4, None),
        ("test", "self-edits before RL", 0, 4, None),
        ("train", "", 0, 5, None),
        ("test", "after round 1", 0, 4, 2),
        ("control", "", 0, 5, 2),
        ("train", "", 5, 5, 2),
        ("test", "after round 2", 0, 4, 5),
        ("control", "", 5, 5, 4),
        ("test", "control", 0, 4, 7),
    ]
    control = rounds[4]
    assert control.self_edits_from == rounds[2].id, "the control's first update is on the same self-edits"
    assert rounds[7].self_edits_from is None
    assert (control.seeds, rounds[2].seeds, rounds[1].self_edits) == (0, 3, 2)


def test_policies_between_may_be_left_unmeasured() -> None:
    rounds = rounds_of(RunPlan(rounds=5, test_every=2), train=5, test=4)
    measured = [r.label for r in rounds if r.purpose is Purpose.TEST]
    assert measured == ["self-edits before RL", "after round 2", "after round 4", "after round 5"]


def test_without_test_contexts_nothing_is_measured() -> None:
    assert [r.purpose for r in rounds_of(RunPlan(rounds=2), train=2, test=0)] == [Purpose.TRAIN, Purpose.TRAIN]


def test_no_rounds_only_measures() -> None:
    purposes = [r.purpose for r in rounds_of(RunPlan(rounds=0, control=True), train=0, test=3)]
    assert purposes == [Purpose.BASELINE, Purpose.TEST]
