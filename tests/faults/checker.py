"""Whether the system has kept its promises, from the history, the rows and the store. To be asked when all is quiet."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from functools import cached_property
from itertools import pairwise

from sqlalchemy import func, select

from rookery_coordinator.database import Database
from rookery_coordinator.inventory import Inventory, Kind
from rookery_coordinator.tables import Adaptation, Adapter, AuditEntry, Job, Outbox, Policy, Round, Run, SelfEdit, Trial
from rookery_coordinator.types import ENDED_TRIAL_STATES, OPEN_JOB_STATES, JobState, Purpose, State, TrialState
from rookery_shared.errors import AdapterCorrupt, AdapterRefused, ObjectMissing
from rookery_shared.faults import Point
from rookery_shared.store.adapters import read_manifest
from rookery_shared.store.base import ObjectStore
from tests.faults.history import Event, Transition

ENDED = {
    "jobs": {state.value for state in JobState if state not in OPEN_JOB_STATES},
    "trials": {state.value for state in ENDED_TRIAL_STATES},
    **{table: {state.value for state in State if state.ended} for table in ("rounds", "runs", "adaptations")},
}


class Promise(StrEnum):
    ONE_RESULT = "one result"
    """A job, trial, round, run or adaptation ends once, and nothing happens to it afterwards."""
    EPOCHS_RISE = "epochs rise"
    """Each attempt has a higher epoch than the last one, and one owner."""
    NOTHING_STUCK = "nothing stuck"
    """When the faults have stopped, everything ends."""
    NOTHING_LOST = "nothing lost"
    """What was accepted has succeeded, with all that it planned, nothing twice."""
    ADAPTERS_VERIFY = "adapters verify"
    """What a row refers to is in the store, whole, and made by the job that the row names."""
    NO_STALE_WRITER = "no stale writer"
    """What was accepted came from the job's last owner."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Violation:
    promise: Promise
    what: str

    def __str__(self) -> str:
        return f"{self.promise}: {self.what}"


@dataclass(frozen=True, kw_only=True)
class Evidence:
    database: Database
    store: ObjectStore
    accepted: Collection[str]
    """Runs and adaptations whose creation was answered."""
    transitions: Sequence[Transition]
    events: Sequence[Event]

    @cached_property
    def jobs(self) -> dict[str, Job]:
        with self.database.read() as session:
            return {job.id: job for job in session.scalars(select(Job))}

    @cached_property
    def works(self) -> dict[str, Run | Adaptation]:
        with self.database.read() as session:
            works: list[Run | Adaptation] = [*session.scalars(select(Run)), *session.scalars(select(Adaptation))]
        return {work.name: work for work in works}

    @cached_property
    def rounds(self) -> list[Round]:
        with self.database.read() as session:
            return [*session.scalars(select(Round))]

    @cached_property
    def lives(self) -> dict[tuple[str, str], list[Transition]]:
        """The transitions of each row."""
        found: defaultdict[tuple[str, str], list[Transition]] = defaultdict(list)
        for transition in self.transitions:
            found[transition.table, transition.name].append(transition)
        return found

    def said(self, point: Point) -> Iterator[Event]:
        return (event for event in self.events if event.point is point and not event.fault)


def check(evidence: Evidence) -> list[Violation]:
    """All violations."""
    checks = {
        Promise.ONE_RESULT: one_result,
        Promise.EPOCHS_RISE: epochs_rise,
        Promise.NOTHING_STUCK: nothing_stuck,
        Promise.NOTHING_LOST: nothing_lost,
        Promise.ADAPTERS_VERIFY: adapters_verify,
        Promise.NO_STALE_WRITER: no_stale_writer,
    }
    return [Violation(promise=promise, what=what) for promise, of in checks.items() for what in of(evidence)]


def one_result(evidence: Evidence) -> Iterator[str]:
    for (table, name), life in evidence.lives.items():
        for before, after in pairwise(life):
            if before.state in ENDED[table]:
                yield f"{table} {name} was {before.state} and became {after.state} at epoch {after.epoch}"
            elif before.state == after.state and table != "jobs":
                yield f"{table} {name} became {after.state} twice"
    with evidence.database.read() as session:
        ends = [f"work {state}" for state in ENDED["runs"]]
        ended = select(AuditEntry.subject, func.count()).where(AuditEntry.action.in_(ends))
        for subject, times in session.execute(ended.group_by(AuditEntry.subject).having(func.count() > 1)):
            yield f"the audit log has {times} ends of {subject}"


def epochs_rise(evidence: Evidence) -> Iterator[str]:
    for (table, name), life in evidence.lives.items():
        if table != "jobs":
            continue
        for before, after in pairwise(life):
            requeued = after.state == JobState.QUEUED
            if after.epoch != before.epoch + requeued:
                yield f"job {name} went from {before.state} at epoch {before.epoch} to {after.state} at {after.epoch}"
            if before.state == after.state == JobState.RUNNING and before.worker != after.worker:
                yield f"job {name} went from {before.worker} to {after.worker} within epoch {after.epoch}"
    owners: defaultdict[tuple[str, int], set[str]] = defaultdict(set)
    for event in evidence.said(Point.CLAIMED):
        owners[event.job, event.epoch].add(event.worker)
    for (job, epoch), workers in owners.items():
        if len(workers) > 1:
            yield f"job {job} was claimed at epoch {epoch} by {', '.join(sorted(workers))}"


def nothing_stuck(evidence: Evidence) -> Iterator[str]:
    for job in evidence.jobs.values():
        if job.state in OPEN_JOB_STATES:
            yield f"job {job.id} ({job.kind.value}) is {job.state.value} at epoch {job.epoch}"
    for work in evidence.works.values():
        if not work.state.ended:
            yield f"{work.name} is {work.state.value}"
    for round_ in evidence.rounds:
        if not round_.state.ended:
            yield f"round {round_.position} of {round_.parent} is {round_.state.value}"
    with evidence.database.read() as session:
        if waiting := session.scalar(select(func.count()).select_from(Outbox)):
            yield f"{waiting} messages are in the outbox"


def nothing_lost(evidence: Evidence) -> Iterator[str]:
    for name in evidence.accepted:
        if name not in evidence.works:
            yield f"{name} was accepted and is not there"
    for work in evidence.works.values():
        if work.state is not State.SUCCEEDED:
            yield f"{work.name} is {work.state.value}: {work.failure_reason} {work.failure_message}"
    for round_ in evidence.rounds:
        if round_.state is State.SUCCEEDED:
            yield from _lost_trials(evidence, round_)
    yield from _lost_policies(evidence)


def _lost_trials(evidence: Evidence, round_: Round) -> Iterator[str]:
    """Every self-edit and every trial of a round that gives each self-edit as many seeds."""
    where = f"round {round_.position} of {round_.parent}"
    with evidence.database.read() as session:
        self_edits = session.scalars(select(SelfEdit).where(SelfEdit.round == round_.id)).all()
        trials = session.scalars(select(Trial).where(Trial.round == round_.id)).all()
    planned = 0 if round_.self_edits_from else round_.contexts * round_.self_edits
    if round_.purpose is not Purpose.CONTROL and len(self_edits) != planned:
        yield f"{where} has {len(self_edits)} self-edits of {planned}"
    positions: defaultdict[str, list[int]] = defaultdict(list)
    for trial in trials:
        positions[trial.self_edit].append(trial.position)
        if trial.state is not TrialState.SCORED:
            yield f"trial {trial.id} of {where} is {trial.state.value}: {trial.failure}"
    for self_edit in self_edits:
        if sorted(positions[self_edit.id]) != [*range(round_.seeds)]:
            yield f"self-edit {self_edit.id} of {where} has trials {sorted(positions[self_edit.id])} of {round_.seeds}"


def _lost_policies(evidence: Evidence) -> Iterator[str]:
    """Each round that has learned made one policy, and nobody else made one."""
    with evidence.database.read() as session:
        made = {(p.profile, p.version): p.run for p in session.scalars(select(Policy)) if p.version}
    asked: Counter[tuple[str, int]] = Counter()
    for round_ in evidence.rounds:
        if round_.next_policy is not None and round_.next_policy != round_.policy:
            asked[evidence.works[round_.parent].teacher, round_.next_policy] += 1
    for policy, run in made.items():
        if asked[policy] != 1:
            yield f"policy {policy[1]} of {policy[0]}, made by {run}, is the next one of {asked[policy]} rounds"
    for policy in asked.keys() - made.keys():
        yield f"policy {policy[1]} of {policy[0]} is the next one of a round and is not there"


def adapters_verify(evidence: Evidence) -> Iterator[str]:
    for step in Inventory(evidence.database, evidence.store).take():
        if step.finding is not None and step.finding.kind in (Kind.MISSING, Kind.CORRUPT):
            yield f"{step.finding.key} is {step.finding.kind}: {step.finding.message}"
    with evidence.database.read() as session:
        adapters = session.scalars(select(Adapter)).all()
    for adapter in adapters:
        try:
            manifest = read_manifest(evidence.store, adapter.name)
        except (ObjectMissing, AdapterCorrupt, AdapterRefused):
            continue  # that is told above
        job = evidence.jobs[adapter.job]
        if manifest.job != job.id or manifest.epoch > job.epoch:
            made = f"{manifest.job} at epoch {manifest.epoch}"
            yield f"{adapter.name} was made by job {made}; its row says {job.id} at epoch {job.epoch}"


def no_stale_writer(evidence: Evidence) -> Iterator[str]:
    for event in evidence.said(Point.COMPLETED):
        job = evidence.jobs.get(event.job)
        if job is None:
            yield f"a result of job {event.job}, which there is not, was accepted"
        elif (event.epoch, event.worker) != (job.epoch, job.worker):
            yield (
                f"a result of job {job.id} was accepted from {event.worker} at epoch {event.epoch}; "
                f"it ended at epoch {job.epoch} with {job.worker}"
            )
    for (table, name), life in evidence.lives.items():
        for before, after in pairwise(life):
            if table == "jobs" and after.state == JobState.SUCCEEDED:
                owners = (before.state, before.epoch, before.worker), ("running", after.epoch, after.worker)
                if owners[0] != owners[1]:
                    yield f"job {name} succeeded with {owners[1]} when it was {owners[0]}"
    claims = {(life.name, life.epoch) for life in evidence.transitions if life.state == JobState.RUNNING}
    for point in (Point.CLAIMED, Point.BEAT):
        for event in evidence.said(point):
            if (event.job, event.epoch) not in claims:
                yield f"job {event.job} was never claimed at epoch {event.epoch}, and pid {event.pid} was told so"
