"""Relays share the outbox, and the reaper finds the last claims of a queue."""

from alembic import op
import sqlalchemy as sa


revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None


def upgrade() -> None:
    with op.batch_alter_table("outbox") as batch:
        batch.add_column(sa.Column("claimed_until", sa.Float(precision=53), nullable=True))
    with op.batch_alter_table("jobs") as batch:
        batch.create_index("jobs_by_claim", ["queue", "start_time"])
        batch.create_index("jobs_by_queueing", ["queue", "queue_time"])
        batch.drop_index("ix_jobs_queue")


def downgrade() -> None:
    with op.batch_alter_table("jobs") as batch:
        batch.create_index("ix_jobs_queue", ["queue"])
        batch.drop_index("jobs_by_queueing")
        batch.drop_index("jobs_by_claim")
    with op.batch_alter_table("outbox") as batch:
        batch.drop_column("claimed_until")
