"""The schema. Migrations in `migrations/` make it; a test compares the two.

Times are seconds since the epoch by the database's clock. Resource names (`runs/...`, `profiles/...`) are stored whole.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Any

from sqlalchemy import JSON, BigInteger, Enum, Float, ForeignKey, Index, Integer, String, Text, UniqueConstraint, false
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column, relationship

from rookery_coordinator.database import now
from rookery_coordinator.types import JobKind, JobState, Purpose, Role, Split, State, TrialState


def _stored(kind: type[StrEnum]) -> Enum:
    """An enum as the text of its value, so that adding a member needs no migration."""
    return Enum(kind, native_enum=False, length=20, values_callable=lambda members: [m.value for m in members])


_SEQUENCE = BigInteger().with_variant(Integer, "sqlite")  # SQLite numbers rows by itself only in an INTEGER


class Base(DeclarativeBase):
    __mapper_args__ = {"eager_defaults": False}  # noqa: RUF012  # SQLAlchemy's own form
    """What the database fills in is read when somebody looks at it: most rows are written and not looked at."""
    type_annotation_map = {  # noqa: RUF012  # SQLAlchemy's own form
        str: String(200),
        float: Float(53),
        int: BigInteger,
        dict[str, Any]: JSON,
        list[Any]: JSON,
    }


class Request(Base):
    """A create that carried a request id: repeating it returns what the first one made."""

    __tablename__ = "requests"
    id: Mapped[str] = mapped_column(primary_key=True)
    resource: Mapped[str]


class Profile(Base):
    __tablename__ = "profiles"
    name: Mapped[str] = mapped_column(primary_key=True)
    role: Mapped[Role] = mapped_column(_stored(Role))
    source: Mapped[str] = mapped_column(Text)
    revision: Mapped[str]
    engine: Mapped[str]
    dtype: Mapped[str]
    chat: Mapped[bool] = mapped_column(server_default=false())
    """Asked through its chat template."""
    limits: Mapped[dict[str, Any]]
    active_policy: Mapped[int]
    create_time: Mapped[float] = mapped_column(server_default=now())


class Policy(Base):
    """A version of a teacher. Version 0 is the base model."""

    __tablename__ = "policies"
    profile: Mapped[str] = mapped_column(ForeignKey("profiles.name"), primary_key=True)
    version: Mapped[int] = mapped_column(primary_key=True)
    adapter: Mapped[str | None]
    run: Mapped[str | None]
    create_time: Mapped[float] = mapped_column(server_default=now())


class Work:
    """What runs and adaptations have in common. Not a table."""

    name: Mapped[str] = mapped_column(primary_key=True)
    teacher: Mapped[str] = mapped_column(ForeignKey("profiles.name"))
    student: Mapped[str] = mapped_column(ForeignKey("profiles.name"))
    policy: Mapped[int]
    """The teacher's version that it starts from; fixed at creation."""
    plan: Mapped[dict[str, Any]]
    state: Mapped[State] = mapped_column(_stored(State))
    failure_reason: Mapped[str | None]
    failure_message: Mapped[str | None] = mapped_column(Text)
    create_time: Mapped[float] = mapped_column(server_default=now())
    end_time: Mapped[float | None]


class Run(Work, Base):
    __tablename__ = "runs"


class Adaptation(Work, Base):
    __tablename__ = "adaptations"
    trial: Mapped[str | None]
    """The trial whose adapter was chosen."""


class Context(Base):
    __tablename__ = "contexts"
    id: Mapped[str] = mapped_column(primary_key=True)
    parent: Mapped[str]
    split: Mapped[Split] = mapped_column(_stored(Split))
    position: Mapped[int]
    title: Mapped[str] = mapped_column(Text)
    passage: Mapped[str] = mapped_column(Text)
    questions: Mapped[list[Any]]
    """[{"question": ..., "answer": ...}]; of a context to train on without any, the teacher's, once written."""
    demonstrations: Mapped[list[Any]] = mapped_column(server_default="[]")
    """[{"input": ..., "output": ...}], of a task."""
    __table_args__ = (UniqueConstraint("parent", "split", "position"),)


class Round(Base):
    __tablename__ = "rounds"
    id: Mapped[str] = mapped_column(primary_key=True)
    parent: Mapped[str] = mapped_column(index=True)
    position: Mapped[int]
    purpose: Mapped[Purpose] = mapped_column(_stored(Purpose))
    label: Mapped[str]
    """The row of the report that it measures; empty if it measures none."""
    state: Mapped[State] = mapped_column(_stored(State))
    after: Mapped[str | None] = mapped_column(ForeignKey("rounds.id"), index=True)
    """The round that must have succeeded first; its next policy is this one's policy."""
    self_edits_from: Mapped[str | None] = mapped_column(ForeignKey("rounds.id"))
    """Use the self-edits of that round, and its policy, instead of generating."""
    split: Mapped[Split] = mapped_column(_stored(Split))
    first_context: Mapped[int]
    contexts: Mapped[int]
    self_edits: Mapped[int]
    """Self-edits per context, k."""
    seeds: Mapped[int]
    """Trials per self-edit, s; 0 for a round without trials."""
    policy: Mapped[int | None]
    next_policy: Mapped[int | None]


class SelfEdit(Base):
    __tablename__ = "self_edits"
    id: Mapped[str] = mapped_column(primary_key=True)
    round: Mapped[str] = mapped_column(ForeignKey("rounds.id"), index=True)
    context: Mapped[str] = mapped_column(ForeignKey("contexts.id"))
    position: Mapped[int]
    prompt: Mapped[str] = mapped_column(Text)
    text: Mapped[str] = mapped_column(Text)
    seed: Mapped[int]
    truncated: Mapped[bool]
    prompt_tokens: Mapped[int]
    completion_tokens: Mapped[int]
    fault: Mapped[str] = mapped_column(Text, server_default="")
    """Why it cannot be used, as the worker that had it written says; empty if it can."""
    __table_args__ = (UniqueConstraint("round", "context", "position"),)


class Kept(Base):
    """A self-edit that a round trains its policy on."""

    __tablename__ = "kept"
    round: Mapped[str] = mapped_column(ForeignKey("rounds.id"), primary_key=True)
    self_edit: Mapped[str] = mapped_column(ForeignKey("self_edits.id"), primary_key=True)


class Trial(Base):
    __tablename__ = "trials"
    id: Mapped[str] = mapped_column(primary_key=True)
    round: Mapped[str] = mapped_column(ForeignKey("rounds.id"), index=True)
    self_edit: Mapped[str] = mapped_column(ForeignKey("self_edits.id"))
    position: Mapped[int]
    """Which of the seeds."""
    seed: Mapped[int]
    recipe: Mapped[str]
    """SHA-256 of everything that decides the adapter: base model, what its examples follow from, hyper-parameters,
    seed. Empty if there will be none."""
    state: Mapped[TrialState] = mapped_column(_stored(TrialState))
    adapter: Mapped[str | None]
    training: Mapped[dict[str, Any] | None] = mapped_column(JSON)
    """The adapter's TrainingRecord."""
    failure: Mapped[str | None] = mapped_column(Text)
    """Why there is no adapter."""
    score_before: Mapped[float | None]
    """Mean over the questions of the paying grader, for the base model."""
    score_after: Mapped[float | None]
    evaluation: Mapped[dict[str, Any] | None] = mapped_column(JSON)
    """What was measured: base model, question set, graders, and every answer with all of its grades."""
    __table_args__ = (UniqueConstraint("self_edit", "position"),)


class Adapter(Base):
    __tablename__ = "adapters"
    name: Mapped[str] = mapped_column(primary_key=True)
    profile: Mapped[str] = mapped_column(ForeignKey("profiles.name"), index=True)
    parent: Mapped[str]
    job: Mapped[str]
    base_model: Mapped[str] = mapped_column(Text)
    rank: Mapped[int]
    size_bytes: Mapped[int]
    recipe: Mapped[str | None] = mapped_column(index=True)
    """As in Trial; null for a policy's adapter."""
    training: Mapped[dict[str, Any]]
    self_edit: Mapped[str | None]
    create_time: Mapped[float] = mapped_column(server_default=now(), index=True)


class AliasMove(Base):
    """Every move of an alias; the one with the highest version is where it points now."""

    __tablename__ = "alias_moves"
    profile: Mapped[str] = mapped_column(ForeignKey("profiles.name"), primary_key=True)
    alias: Mapped[str] = mapped_column(primary_key=True)
    version: Mapped[int] = mapped_column(primary_key=True)
    adapter: Mapped[str]
    back_to: Mapped[int]
    """The version that a rollback from here returns to; 0 if there is none."""
    create_time: Mapped[float] = mapped_column(server_default=now())


class Job(Base):
    __tablename__ = "jobs"
    id: Mapped[str] = mapped_column(primary_key=True)
    kind: Mapped[JobKind] = mapped_column(_stored(JobKind))
    queue: Mapped[str]
    parent: Mapped[str] = mapped_column(index=True)
    round: Mapped[str | None] = mapped_column(ForeignKey("rounds.id"), index=True)
    round_row: Mapped[Round | None] = relationship(lazy="raise")
    """Never read: it has a round written before its jobs."""
    scope: Mapped[list[Any]]
    """Ids of what the job covers: contexts to generate for, trials to train or evaluate."""
    state: Mapped[JobState] = mapped_column(_stored(JobState), index=True)
    epoch: Mapped[int]
    """Rises with every attempt. A write under another epoch has no effect."""
    attempts: Mapped[int] = mapped_column(server_default="0")
    """Those that failed or lost their lease. One that gave the job back is none."""
    deaths: Mapped[int] = mapped_column(server_default="0")
    """Those of them that ended because the process that they ran in did."""
    worker: Mapped[str | None]
    lease_until: Mapped[float | None]
    done: Mapped[int]
    total: Mapped[int]
    failure_reason: Mapped[str | None]
    failure_message: Mapped[str | None] = mapped_column(Text)
    queue_time: Mapped[float] = mapped_column(server_default=now())
    """When this attempt was queued, or announced again."""
    start_time: Mapped[float | None]
    end_time: Mapped[float | None]
    trace: Mapped[str] = mapped_column(server_default="")
    """The span that has made it, as a W3C `traceparent`; empty if nobody traces."""
    __table_args__ = (Index("jobs_by_claim", "queue", "start_time"), Index("jobs_by_queueing", "queue", "queue_time"))


class Outbox(Base):
    """Messages that must be sent, written in the transaction that makes them true."""

    __tablename__ = "outbox"
    id: Mapped[int] = mapped_column(_SEQUENCE, primary_key=True, autoincrement=True)
    job: Mapped[str]
    epoch: Mapped[int]
    queue: Mapped[str]
    not_before: Mapped[float] = mapped_column(insert_default=now())
    claimed_until: Mapped[float | None]
    """Until then it is a relay's to send."""
    trace: Mapped[str] = mapped_column(server_default="")
    """As the job's."""


class Event(Base):
    """What watchers are told."""

    __tablename__ = "events"
    sequence: Mapped[int] = mapped_column(_SEQUENCE, primary_key=True, autoincrement=True)
    parent: Mapped[str]
    time: Mapped[float] = mapped_column(server_default=now())
    message: Mapped[str] = mapped_column(Text)
    __table_args__ = (Index("events_by_parent", "parent", "sequence"),)


class AuditEntry(Base):
    """What was decided. Rows are only ever added."""

    __tablename__ = "audit"
    sequence: Mapped[int] = mapped_column(_SEQUENCE, primary_key=True, autoincrement=True)
    time: Mapped[float] = mapped_column(server_default=now())
    action: Mapped[str]
    subject: Mapped[str]
    details: Mapped[dict[str, Any]]
