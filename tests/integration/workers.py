"""Workers without models: they take jobs as real ones do, and answer at once with results that follow from the texts.

A self-edit is worth what a test decides. Everything else is the product's code.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field

from sqlalchemy import select
from sqlalchemy.orm import Session

from rookery_coordinator import leases, outcomes, results, rounds
from rookery_coordinator.database import Database
from rookery_coordinator.tables import Context, Job, Outbox, Round, SelfEdit, Trial
from rookery_coordinator.types import JobKind
from rookery_coordinator.works import find_work, plan_of, to_context
from rookery_shared.domains import Domain, find_domain
from rookery_shared.types import Question, TrainingRecord

LEASE = 30.0
_WORST = {"exact": 0.0, "loglik": -2.0, "judge": 0.0}
"""Grades of an answer that is worth nothing."""
Worth = Callable[[Round, Context, int], float]


Luck = Callable[[Context, int, int], float]


def no_luck(context: Context, self_edit: int, seed: int) -> float:
    return 0.0


def no_worth(round_: Round, context: Context, position: int) -> float:
    return position / 10


def no_adapter(job: Job, what: str) -> results.TrainedAdapter:
    """The name of one that is in no store."""
    digest = hashlib.sha256(f"{job.id}/{job.epoch}/{what}".encode()).hexdigest()
    record = TrainingRecord(losses=(1.0, 0.5), tokens=10, seconds=0.1, weight_change=1.0)
    return results.TrainedAdapter(name=f"adapters/{digest}", size_bytes=100, training=record)


@dataclass
class Workers:
    """Does whatever the outbox announces."""

    database: Database
    worth: Worth = no_worth
    fails: Callable[[Context, int, int], bool] = lambda context, self_edit, seed: False
    """Whether a trial's training fails, by its context and the positions of its self-edit and its seed."""
    refuses: Callable[[Context, int, int], bool] = lambda context, self_edit, seed: False
    """Whether a student finds a fault in a trial's self-edit, likewise."""
    luck: Luck = no_luck
    """What a trial's seed adds to its self-edit's worth, by its context and both positions."""
    blank: int = 0
    """Answers of each trial that are blank."""
    questions: tuple[Question, ...] = ()
    """What teachers write for contexts without any."""
    text: Callable[[int], str] = lambda self_edit: ""
    """A self-edit, by its position; if it is empty, the workers' own."""
    fault: Callable[[Domain, Context, str], str] = lambda domain, context, text: domain.fault(
        to_context(context), text, recipe=domain.student_recipe
    )
    """What is said of a self-edit."""
    redrawn: int = 0
    """Self-edits of each context that were drawn again."""
    forgetting: Callable[[int], float] = lambda self_edit: 0.0
    """What a trial has forgotten, by the position of its self-edit."""
    make_adapter: Callable[[Job, str], results.TrainedAdapter] = no_adapter
    """By the trial that it is for, or "policy"."""
    grades: tuple[str, ...] = ("exact", "loglik")
    """Graders that they have."""
    done: list[tuple[str, JobKind]] = field(default_factory=list)

    def messages(self) -> list[tuple[str, int]]:
        """Take all messages from the outbox, as a relay does."""
        with self.database.write() as session:
            rows = session.scalars(select(Outbox).order_by(Outbox.id)).all()
            taken = [(row.job, row.epoch) for row in rows]
            for row in rows:
                session.delete(row)
        return taken

    def run_all(self) -> None:
        """Until there is nothing to do."""
        while messages := self.messages():
            for job, epoch in messages:
                self.do(job, epoch)

    def run(self, count: int) -> list[tuple[str, int]]:
        """Do some jobs; returns the messages that were not taken up."""
        messages = self.messages()
        while messages and count:
            self.do(*messages.pop(0))
            count -= 1
            messages += self.messages()
        return messages

    def do(self, job_id: str, epoch: int) -> None:
        self.claim(job_id, epoch)
        self.complete(job_id, epoch)

    def claim(self, job_id: str, epoch: int, *, worker: str = "w") -> None:
        with self.database.write() as session:
            leases.claim(session, job_id, epoch=epoch, worker=worker, lease_seconds=LEASE)

    def complete(self, job_id: str, epoch: int) -> None:
        with self.database.write() as session:
            outcomes.complete(session, job_id, epoch=epoch, apply=self._apply)
            self.done.append((job_id, session.get_one(Job, job_id).kind))

    def _apply(self, session: Session, job: Job) -> None:
        match job.kind:
            case JobKind.GENERATE:
                rounds.apply_generated(session, job, [self._written(session, job, c) for c in job.scope])
            case JobKind.TRAIN:
                adapters = {trial: self.make_adapter(job, trial) for trial in job.scope}
                failures = {trial: "no luck" for trial in job.scope if self._is(self.fails, session, trial)}
                refused = {trial: "no good" for trial in job.scope if self._is(self.refuses, session, trial)}
                rounds.apply_trained(session, job, adapters, failures, refused)
            case JobKind.EVALUATE:
                items = [self._evaluated(session, trial) for trial in job.scope]
                rounds.apply_evaluated(session, job, items, base_model="m", graders=["exact/1"])
            case JobKind.IMPROVE:
                rounds.apply_improved(session, job, self.make_adapter(job, "policy"))
            case JobKind.ACTIVATE:
                pass

    def _is(self, which: Callable[[Context, int, int], bool], session: Session, trial_id: str) -> bool:
        trial = session.get_one(Trial, trial_id)
        self_edit = session.get_one(SelfEdit, trial.self_edit)
        return which(session.get_one(Context, self_edit.context), self_edit.position, trial.position)

    def _written(self, session: Session, job: Job, context_id: str) -> results.Written:
        work, round_ = find_work(session, job.parent), session.get_one(Round, job.round)
        context = session.get_one(Context, context_id)
        seeds = rounds.self_edit_seeds(work, round_, context)
        texts = [
            self.text(i) or f"worth {self.worth(round_, context, i)} in round {round_.position}"
            for i in range(len(seeds))
        ]
        self_edits = [
            results.WrittenSelfEdit(
                prompt=f"prompt of {context.title}",
                text=text,
                seed=seed,
                truncated=False,
                prompt_tokens=1,
                completion_tokens=1,
                fault=self.fault(find_domain(plan_of(work).domain), context, text),
            )
            for seed, text in zip(seeds, texts, strict=True)
        ]
        return results.Written(self_edits=self_edits, questions=self.questions, redrawn=self.redrawn)

    def _evaluated(self, session: Session, trial_id: str) -> results.Evaluated:
        trial = session.get_one(Trial, trial_id)
        self_edit = session.get_one(SelfEdit, trial.self_edit)
        context = session.get_one(Context, self_edit.context)
        round_ = session.get_one(Round, self_edit.round)
        worth = self.worth(round_, context, self_edit.position) if self_edit.text else 0.1
        worth += self.luck(context, self_edit.position, trial.position)
        answers = [
            results.Answered(
                before="no",
                after="yes",
                grades_before={grader: _WORST[grader] for grader in self.grades},
                grades_after={grader: _WORST[grader] + worth for grader in self.grades},
            )
            for _ in context.questions
        ]
        return results.Evaluated(
            trial=trial_id,
            question_set="q",
            questions=answers,
            blank_before=0,
            blank_after=self.blank,
            forgetting=self.forgetting(self_edit.position),
        )
