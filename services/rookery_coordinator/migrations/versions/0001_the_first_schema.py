"""The first schema."""

from alembic import op
import sqlalchemy as sa

from rookery_coordinator.database import now


revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "audit",
        sa.Column("sequence", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), autoincrement=True, nullable=False),
        sa.Column("time", sa.Float(precision=53), server_default=now(), nullable=False),
        sa.Column("action", sa.String(length=200), nullable=False),
        sa.Column("subject", sa.String(length=200), nullable=False),
        sa.Column("details", sa.JSON(), nullable=False),
        sa.PrimaryKeyConstraint("sequence"),
    )
    op.create_table(
        "contexts",
        sa.Column("id", sa.String(length=200), nullable=False),
        sa.Column("parent", sa.String(length=200), nullable=False),
        sa.Column("split", sa.Enum("train", "test", name="split", native_enum=False, length=20), nullable=False),
        sa.Column("position", sa.BigInteger(), nullable=False),
        sa.Column("title", sa.Text(), nullable=False),
        sa.Column("passage", sa.Text(), nullable=False),
        sa.Column("questions", sa.JSON(), nullable=False),
        sa.PrimaryKeyConstraint("id"),
        sa.UniqueConstraint("parent", "split", "position"),
    )
    op.create_table(
        "events",
        sa.Column("sequence", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), autoincrement=True, nullable=False),
        sa.Column("parent", sa.String(length=200), nullable=False),
        sa.Column("time", sa.Float(precision=53), server_default=now(), nullable=False),
        sa.Column("message", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("sequence"),
    )
    with op.batch_alter_table("events", schema=None) as batch_op:
        batch_op.create_index("events_by_parent", ["parent", "sequence"], unique=False)

    op.create_table(
        "outbox",
        sa.Column("id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), autoincrement=True, nullable=False),
        sa.Column("job", sa.String(length=200), nullable=False),
        sa.Column("epoch", sa.BigInteger(), nullable=False),
        sa.Column("queue", sa.String(length=200), nullable=False),
        sa.Column("not_before", sa.Float(precision=53), nullable=False),
        sa.PrimaryKeyConstraint("id"),
    )
    op.create_table(
        "profiles",
        sa.Column("name", sa.String(length=200), nullable=False),
        sa.Column("role", sa.Enum("teacher", "student", name="role", native_enum=False, length=20), nullable=False),
        sa.Column("source", sa.Text(), nullable=False),
        sa.Column("revision", sa.String(length=200), nullable=False),
        sa.Column("engine", sa.String(length=200), nullable=False),
        sa.Column("dtype", sa.String(length=200), nullable=False),
        sa.Column("limits", sa.JSON(), nullable=False),
        sa.Column("active_policy", sa.BigInteger(), nullable=False),
        sa.Column("create_time", sa.Float(precision=53), server_default=now(), nullable=False),
        sa.PrimaryKeyConstraint("name"),
    )
    op.create_table(
        "requests",
        sa.Column("id", sa.String(length=200), nullable=False),
        sa.Column("resource", sa.String(length=200), nullable=False),
        sa.PrimaryKeyConstraint("id"),
    )
    op.create_table(
        "rounds",
        sa.Column("id", sa.String(length=200), nullable=False),
        sa.Column("parent", sa.String(length=200), nullable=False),
        sa.Column("position", sa.BigInteger(), nullable=False),
        sa.Column(
            "purpose",
            sa.Enum("baseline", "train", "test", "control", "adapt", name="purpose", native_enum=False, length=20),
            nullable=False,
        ),
        sa.Column("label", sa.String(length=200), nullable=False),
        sa.Column(
            "state",
            sa.Enum(
                "waiting", "running", "succeeded", "failed", "cancelled", name="state", native_enum=False, length=20
            ),
            nullable=False,
        ),
        sa.Column("after", sa.String(length=200), nullable=True),
        sa.Column("self_edits_from", sa.String(length=200), nullable=True),
        sa.Column("split", sa.Enum("train", "test", name="split", native_enum=False, length=20), nullable=False),
        sa.Column("first_context", sa.BigInteger(), nullable=False),
        sa.Column("contexts", sa.BigInteger(), nullable=False),
        sa.Column("self_edits", sa.BigInteger(), nullable=False),
        sa.Column("seeds", sa.BigInteger(), nullable=False),
        sa.Column("policy", sa.BigInteger(), nullable=True),
        sa.Column("next_policy", sa.BigInteger(), nullable=True),
        sa.ForeignKeyConstraint(
            ["after"],
            ["rounds.id"],
        ),
        sa.ForeignKeyConstraint(
            ["self_edits_from"],
            ["rounds.id"],
        ),
        sa.PrimaryKeyConstraint("id"),
    )
    with op.batch_alter_table("rounds", schema=None) as batch_op:
        batch_op.create_index(batch_op.f("ix_rounds_parent"), ["parent"], unique=False)

    op.create_table(
        "adaptations",
        sa.Column("trial", sa.String(length=200), nullable=True),
        sa.Column("name", sa.String(length=200), nullable=False),
        sa.Column("teacher", sa.String(length=200), nullable=False),
        sa.Column("student", sa.String(length=200), nullable=False),
        sa.Column("policy", sa.BigInteger(), nullable=False),
        sa.Column("plan", sa.JSON(), nullable=False),
        sa.Column(
            "state",
            sa.Enum(
                "waiting", "running", "succeeded", "failed", "cancelled", name="state", native_enum=False, length=20
            ),
            nullable=False,
        ),
        sa.Column("failure_reason", sa.String(length=200), nullable=True),
        sa.Column("failure_message", sa.Text(), nullable=True),
        sa.Column("create_time", sa.Float(precision=53), server_default=now(), nullable=False),
        sa.Column("end_time", sa.Float(precision=53), nullable=True),
        sa.ForeignKeyConstraint(
            ["student"],
            ["profiles.name"],
        ),
        sa.ForeignKeyConstraint(
            ["teacher"],
            ["profiles.name"],
        ),
        sa.PrimaryKeyConstraint("name"),
    )
    op.create_table(
        "adapters",
        sa.Column("name", sa.String(length=200), nullable=False),
        sa.Column("profile", sa.String(length=200), nullable=False),
        sa.Column("parent", sa.String(length=200), nullable=False),
        sa.Column("job", sa.String(length=200), nullable=False),
        sa.Column("base_model", sa.Text(), nullable=False),
        sa.Column("rank", sa.BigInteger(), nullable=False),
        sa.Column("size_bytes", sa.BigInteger(), nullable=False),
        sa.Column("recipe", sa.String(length=200), nullable=True),
        sa.Column("training", sa.JSON(), nullable=False),
        sa.Column("self_edit", sa.String(length=200), nullable=True),
        sa.Column("create_time", sa.Float(precision=53), server_default=now(), nullable=False),
        sa.ForeignKeyConstraint(
            ["profile"],
            ["profiles.name"],
        ),
        sa.PrimaryKeyConstraint("name"),
    )
    with op.batch_alter_table("adapters", schema=None) as batch_op:
        batch_op.create_index(batch_op.f("ix_adapters_create_time"), ["create_time"], unique=False)
        batch_op.create_index(batch_op.f("ix_adapters_profile"), ["profile"], unique=False)
        batch_op.create_index(batch_op.f("ix_adapters_recipe"), ["recipe"], unique=False)

    op.create_table(
        "alias_moves",
        sa.Column("profile", sa.String(length=200), nullable=False),
        sa.Column("alias", sa.String(length=200), nullable=False),
        sa.Column("version", sa.BigInteger(), nullable=False),
        sa.Column("adapter", sa.String(length=200), nullable=False),
        sa.Column("back_to", sa.BigInteger(), nullable=False),
        sa.Column("create_time", sa.Float(precision=53), server_default=now(), nullable=False),
        sa.ForeignKeyConstraint(
            ["profile"],
            ["profiles.name"],
        ),
        sa.PrimaryKeyConstraint("profile", "alias", "version"),
    )
    op.create_table(
        "jobs",
        sa.Column("id", sa.String(length=200), nullable=False),
        sa.Column(
            "kind",
            sa.Enum(
                "generate", "train", "evaluate", "improve", "activate", name="jobkind", native_enum=False, length=20
            ),
            nullable=False,
        ),
        sa.Column("queue", sa.String(length=200), nullable=False),
        sa.Column("parent", sa.String(length=200), nullable=False),
        sa.Column("round", sa.String(length=200), nullable=True),
        sa.Column("scope", sa.JSON(), nullable=False),
        sa.Column(
            "state",
            sa.Enum(
                "queued", "running", "succeeded", "failed", "cancelled", name="jobstate", native_enum=False, length=20
            ),
            nullable=False,
        ),
        sa.Column("epoch", sa.BigInteger(), nullable=False),
        sa.Column("worker", sa.String(length=200), nullable=True),
        sa.Column("lease_until", sa.Float(precision=53), nullable=True),
        sa.Column("done", sa.BigInteger(), nullable=False),
        sa.Column("total", sa.BigInteger(), nullable=False),
        sa.Column("failure_reason", sa.String(length=200), nullable=True),
        sa.Column("failure_message", sa.Text(), nullable=True),
        sa.Column("queue_time", sa.Float(precision=53), server_default=now(), nullable=False),
        sa.Column("start_time", sa.Float(precision=53), nullable=True),
        sa.Column("end_time", sa.Float(precision=53), nullable=True),
        sa.ForeignKeyConstraint(
            ["round"],
            ["rounds.id"],
        ),
        sa.PrimaryKeyConstraint("id"),
    )
    with op.batch_alter_table("jobs", schema=None) as batch_op:
        batch_op.create_index(batch_op.f("ix_jobs_parent"), ["parent"], unique=False)
        batch_op.create_index(batch_op.f("ix_jobs_queue"), ["queue"], unique=False)
        batch_op.create_index(batch_op.f("ix_jobs_round"), ["round"], unique=False)
        batch_op.create_index(batch_op.f("ix_jobs_state"), ["state"], unique=False)

    op.create_table(
        "policies",
        sa.Column("profile", sa.String(length=200), nullable=False),
        sa.Column("version", sa.BigInteger(), nullable=False),
        sa.Column("adapter", sa.String(length=200), nullable=True),
        sa.Column("run", sa.String(length=200), nullable=True),
        sa.Column("create_time", sa.Float(precision=53), server_default=now(), nullable=False),
        sa.ForeignKeyConstraint(
            ["profile"],
            ["profiles.name"],
        ),
        sa.PrimaryKeyConstraint("profile", "version"),
    )
    op.create_table(
        "runs",
        sa.Column("name", sa.String(length=200), nullable=False),
        sa.Column("teacher", sa.String(length=200), nullable=False),
        sa.Column("student", sa.String(length=200), nullable=False),
        sa.Column("policy", sa.BigInteger(), nullable=False),
        sa.Column("plan", sa.JSON(), nullable=False),
        sa.Column(
            "state",
            sa.Enum(
                "waiting", "running", "succeeded", "failed", "cancelled", name="state", native_enum=False, length=20
            ),
            nullable=False,
        ),
        sa.Column("failure_reason", sa.String(length=200), nullable=True),
        sa.Column("failure_message", sa.Text(), nullable=True),
        sa.Column("create_time", sa.Float(precision=53), server_default=now(), nullable=False),
        sa.Column("end_time", sa.Float(precision=53), nullable=True),
        sa.ForeignKeyConstraint(
            ["student"],
            ["profiles.name"],
        ),
        sa.ForeignKeyConstraint(
            ["teacher"],
            ["profiles.name"],
        ),
        sa.PrimaryKeyConstraint("name"),
    )
    op.create_table(
        "self_edits",
        sa.Column("id", sa.String(length=200), nullable=False),
        sa.Column("round", sa.String(length=200), nullable=False),
        sa.Column("context", sa.String(length=200), nullable=False),
        sa.Column("position", sa.BigInteger(), nullable=False),
        sa.Column("prompt", sa.Text(), nullable=False),
        sa.Column("text", sa.Text(), nullable=False),
        sa.Column("seed", sa.BigInteger(), nullable=False),
        sa.Column("truncated", sa.Boolean(), nullable=False),
        sa.Column("prompt_tokens", sa.BigInteger(), nullable=False),
        sa.Column("completion_tokens", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(
            ["context"],
            ["contexts.id"],
        ),
        sa.ForeignKeyConstraint(
            ["round"],
            ["rounds.id"],
        ),
        sa.PrimaryKeyConstraint("id"),
        sa.UniqueConstraint("round", "context", "position"),
    )
    with op.batch_alter_table("self_edits", schema=None) as batch_op:
        batch_op.create_index(batch_op.f("ix_self_edits_round"), ["round"], unique=False)

    op.create_table(
        "kept",
        sa.Column("round", sa.String(length=200), nullable=False),
        sa.Column("self_edit", sa.String(length=200), nullable=False),
        sa.ForeignKeyConstraint(
            ["round"],
            ["rounds.id"],
        ),
        sa.ForeignKeyConstraint(
            ["self_edit"],
            ["self_edits.id"],
        ),
        sa.PrimaryKeyConstraint("round", "self_edit"),
    )
    op.create_table(
        "trials",
        sa.Column("id", sa.String(length=200), nullable=False),
        sa.Column("round", sa.String(length=200), nullable=False),
        sa.Column("self_edit", sa.String(length=200), nullable=False),
        sa.Column("position", sa.BigInteger(), nullable=False),
        sa.Column("seed", sa.BigInteger(), nullable=False),
        sa.Column("recipe", sa.String(length=200), nullable=False),
        sa.Column(
            "state",
            sa.Enum("planned", "trained", "scored", name="trialstate", native_enum=False, length=20),
            nullable=False,
        ),
        sa.Column("adapter", sa.String(length=200), nullable=True),
        sa.Column("training", sa.JSON(), nullable=True),
        sa.Column("score_before", sa.Float(precision=53), nullable=True),
        sa.Column("score_after", sa.Float(precision=53), nullable=True),
        sa.Column("evaluation", sa.JSON(), nullable=True),
        sa.ForeignKeyConstraint(
            ["round"],
            ["rounds.id"],
        ),
        sa.ForeignKeyConstraint(
            ["self_edit"],
            ["self_edits.id"],
        ),
        sa.PrimaryKeyConstraint("id"),
        sa.UniqueConstraint("self_edit", "position"),
    )
    with op.batch_alter_table("trials", schema=None) as batch_op:
        batch_op.create_index(batch_op.f("ix_trials_round"), ["round"], unique=False)


def downgrade() -> None:
    with op.batch_alter_table("trials", schema=None) as batch_op:
        batch_op.drop_index(batch_op.f("ix_trials_round"))

    op.drop_table("trials")
    op.drop_table("kept")
    with op.batch_alter_table("self_edits", schema=None) as batch_op:
        batch_op.drop_index(batch_op.f("ix_self_edits_round"))

    op.drop_table("self_edits")
    op.drop_table("runs")
    op.drop_table("policies")
    with op.batch_alter_table("jobs", schema=None) as batch_op:
        batch_op.drop_index(batch_op.f("ix_jobs_state"))
        batch_op.drop_index(batch_op.f("ix_jobs_round"))
        batch_op.drop_index(batch_op.f("ix_jobs_queue"))
        batch_op.drop_index(batch_op.f("ix_jobs_parent"))

    op.drop_table("jobs")
    op.drop_table("alias_moves")
    with op.batch_alter_table("adapters", schema=None) as batch_op:
        batch_op.drop_index(batch_op.f("ix_adapters_recipe"))
        batch_op.drop_index(batch_op.f("ix_adapters_profile"))
        batch_op.drop_index(batch_op.f("ix_adapters_create_time"))

    op.drop_table("adapters")
    op.drop_table("adaptations")
    with op.batch_alter_table("rounds", schema=None) as batch_op:
        batch_op.drop_index(batch_op.f("ix_rounds_parent"))

    op.drop_table("rounds")
    op.drop_table("requests")
    op.drop_table("profiles")
    op.drop_table("outbox")
    with op.batch_alter_table("events", schema=None) as batch_op:
        batch_op.drop_index("events_by_parent")

    op.drop_table("events")
    op.drop_table("contexts")
    op.drop_table("audit")
