"""What rounds a run or an adaptation consists of. They are all written down at creation; `rounds` works them off.

A run with R rounds of training and test contexts:

    baseline         the student on the passages alone    "passage only"
    baseline         each of the plan's                   by its name
    test             policy 0                             "self-edits before RL"
    train 1 ─ test   policy 1                             "after round 1"
      └ train 2 ─ test                                    "after round 2"
      └ control 1 (the self-edits of train 1, as if rewards were random) ─ control 2 ─ test   "control"

Policies between may be left unmeasured (`test_every`). Rounds hang on the one that makes their policy and otherwise go
on side by side.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from sqlalchemy.orm import Session

from rookery_coordinator.identifiers import new_id
from rookery_coordinator.tables import Round
from rookery_coordinator.types import AdaptationPlan, Purpose, RunPlan, Split, State

BASE = "base"
PASSAGE_ONLY = "passage only"
BEFORE = "self-edits before RL"
CONTROL = "control"


def after_round(number: int) -> str:
    """The report's row for the policy of a round, counted from 1."""
    return f"after round {number}"


@dataclass(slots=True, kw_only=True)
class _Plan:
    parent: str
    rounds: list[Round] = field(default_factory=list)

    def add(
        self,
        purpose: Purpose,
        *,
        split: Split,
        contexts: int,
        first: int = 0,
        self_edits: int,
        seeds: int,
        label: str = "",
        after: Round | None = None,
        self_edits_from: Round | None = None,
    ) -> Round:
        added = Round(
            id=new_id(),
            parent=self.parent,
            position=len(self.rounds),
            purpose=purpose,
            label=label,
            state=State.WAITING,
            after=after.id if after else None,
            self_edits_from=self_edits_from.id if self_edits_from else None,
            split=split,
            first_context=first,
            contexts=contexts,
            self_edits=self_edits,
            seeds=seeds,
        )
        self.rounds.append(added)
        return added


def slices(count: int, parts: int) -> list[tuple[int, int]]:
    """(first, length) of `parts` even shares of `count`, the longer ones first."""
    share, rest = divmod(count, parts)
    lengths = [share + (i < rest) for i in range(parts)]
    return [(sum(lengths[:i]), length) for i, length in enumerate(lengths)]


def write_run_rounds(session: Session, parent: str, plan: RunPlan, *, train: int, test: int) -> list[Round]:
    """The rounds of a run with this many train and test contexts."""
    rounds = _Plan(parent=parent)

    def measure(label: str, after: Round | None) -> None:
        if test:
            rounds.add(
                Purpose.TEST,
                split=Split.TEST,
                contexts=test,
                self_edits=plan.test_self_edits,
                seeds=1,
                label=label,
                after=after,
            )

    if test:
        for label in (PASSAGE_ONLY, *plan.baselines):
            self_edits = 1 if label == PASSAGE_ONLY else plan.test_self_edits
            rounds.add(Purpose.BASELINE, split=Split.TEST, contexts=test, self_edits=self_edits, seeds=1, label=label)
    measure(BEFORE, None)
    parts = slices(train, plan.rounds) if plan.rounds else []
    trained: Round | None = None
    control: Round | None = None
    for number, (first, contexts) in enumerate(parts, start=1):
        previous = trained
        trained = rounds.add(
            Purpose.TRAIN,
            split=Split.TRAIN,
            first=first,
            contexts=contexts,
            self_edits=plan.self_edits,
            seeds=plan.seeds,
            after=previous,
        )
        if number % plan.test_every == 0 or number == plan.rounds:
            measure(after_round(number), trained)
        if plan.control:
            control = rounds.add(
                Purpose.CONTROL,
                split=Split.TRAIN,
                first=first,
                contexts=contexts,
                self_edits=plan.self_edits,
                seeds=0,
                after=control or trained,
                self_edits_from=None if control else trained,
            )
    if control is not None:
        measure(CONTROL, control)
    session.add_all(rounds.rounds)
    return rounds.rounds


def write_adaptation_round(session: Session, parent: str, plan: AdaptationPlan) -> list[Round]:
    """The one round of an adaptation."""
    rounds = _Plan(parent=parent)
    rounds.add(Purpose.ADAPT, split=Split.TRAIN, contexts=1, self_edits=plan.self_edits, seeds=plan.seeds)
    session.add_all(rounds.rounds)
    return rounds.rounds
