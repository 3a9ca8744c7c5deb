"""What the trials of a round earned, and what follows: who races on, what the teacher learns, which adapter is best.

Reads rows and changes none. How rewards are made, compared and learned from is decided in `rewards`, `racing` and
`optimisers`.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy import select
from sqlalchemy.orm import Session

from rookery_coordinator import racing, rewards
from rookery_coordinator.optimisers import Lesson, Sample, optimiser_of
from rookery_coordinator.tables import Adaptation, Context, Round, SelfEdit, Trial
from rookery_coordinator.types import ENDED_TRIAL_STATES, Purpose, RewardShape, RunPlan, TrialState
from rookery_coordinator.works import Plan, Work, plan_of, round_contexts, to_measured
from rookery_shared.seeds import derive_seed


@dataclass(frozen=True, slots=True, kw_only=True)
class _Entry:
    """A self-edit of a context and its trials, which have ended."""

    self_edit: SelfEdit
    trials: Sequence[Trial]
    earned: rewards.Candidate | None
    """None without a scored trial."""

    @property
    def is_refused(self) -> bool:
        return any(trial.state is TrialState.REFUSED for trial in self.trials)

    @property
    def sample(self) -> Sample:
        row = self.self_edit
        return Sample(prompt=row.prompt, text=row.text, truncated=row.truncated)


def next_heats(session: Session, plan: RunPlan, round_: Round) -> list[tuple[SelfEdit, int]]:
    """The self-edits of a racing round that get one more trial, and the position that it has."""
    scored: list[list[_Entry]] = []
    fields: list[racing.Field] = []
    for context in round_contexts(session, round_):
        entries = _entries(session, plan, round_.id, context)
        # Those that are refused have lost, and there is nothing to train.
        racers = [entry for entry in entries if entry.earned and not entry.is_refused]
        scored.append(racers)
        fields.append(
            racing.Field(
                scores=[entry.earned.scores for entry in racers if entry.earned],
                left=round_.self_edits * round_.seeds - sum(len(entry.trials) for entry in entries),
            )
        )
    heats = racing.next_heats(fields, confidence=plan.race_confidence)
    return [
        (entries[i].self_edit, len(entries[i].trials))
        for entries, heat in zip(scored, heats, strict=True)
        for i in heat
    ]


def lessons(session: Session, work: Work, round_: Round) -> list[tuple[SelfEdit, Lesson]]:
    """What a round's next policy is trained on, in the order of its contexts. Follows from trials that have ended.

    A context that nobody could ask about teaches nothing, the control line neither.
    """
    plan = plan_of(work)
    assert isinstance(plan, RunPlan), "only runs train a teacher"
    optimiser, source = optimiser_of(plan), round_.self_edits_from or round_.id
    learned: list[tuple[SelfEdit, Lesson]] = []
    for context in round_contexts(session, round_):
        if not context.questions:
            continue
        entries = _entries(session, plan, source, context)
        if any(entry.trials for entry in entries):
            entries = [entry for entry in entries if entry.earned]
        samples = [entry.sample for entry in entries]
        if round_.purpose is Purpose.CONTROL:
            rng = random.Random(derive_seed(plan.seed, "control", round_.position, context.position))
            found = optimiser.control_lessons(samples, rng)
        else:
            found = optimiser.lessons(samples, [entry.earned for entry in entries if entry.earned])
        learned += [(entries[lesson.index].self_edit, lesson) for lesson in found]
    return learned


def best_trial(session: Session, work: Adaptation, round_: Round) -> Trial:
    """Of the best self-edit by its mean reward, the best trial; the first of ties."""
    [context] = round_contexts(session, round_)
    entries = [
        entry
        for entry in _entries(session, plan_of(work), round_.id, context)
        if any(trial.state is TrialState.SCORED for trial in entry.trials)
    ]
    best = entries[rewards.best_of([entry.earned for entry in entries if entry.earned])]
    trials = [trial for trial in best.trials if trial.state is TrialState.SCORED]
    return max(trials, key=lambda trial: (trial.score_after, -trial.position))


def _entries(session: Session, plan: Plan, round_: str, context: Context) -> list[_Entry]:
    of_context = (SelfEdit.round == round_, SelfEdit.context == context.id)
    written = session.scalars(select(SelfEdit).where(*of_context).order_by(SelfEdit.position)).all()
    query = select(Trial).join(SelfEdit, SelfEdit.id == Trial.self_edit).where(*of_context).order_by(Trial.position)
    trials: dict[str, list[Trial]] = {row.id: [] for row in written}
    for trial in session.scalars(query):
        assert trial.state in ENDED_TRIAL_STATES, "rounds are settled when all trials have ended"
        trials[trial.self_edit].append(trial)
    return [_Entry(self_edit=row, trials=trials[row.id], earned=earned(plan, row, trials[row.id])) for row in written]


def earned(plan: Plan, self_edit: SelfEdit, trials: Sequence[Trial]) -> rewards.Candidate | None:
    """By those of its trials that are scored or refused; None without any."""
    shape = plan.reward_shape if isinstance(plan, RunPlan) else RewardShape()
    measured = [to_measured(trial) for trial in trials if trial.state in (TrialState.SCORED, TrialState.REFUSED)]
    if not measured:
        return None
    return rewards.Candidate(
        text=self_edit.text,
        scores=[rewards.shaped(m, shape) for m in measured],
        baseline=rewards.trial_score([m.score_before for m in measured]),
    )
