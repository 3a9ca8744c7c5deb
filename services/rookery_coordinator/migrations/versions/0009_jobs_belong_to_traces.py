"""Jobs and their messages belong to traces."""

from alembic import op
import sqlalchemy as sa


revision = "0009"
down_revision = "0008"
branch_labels = None
depends_on = None


def upgrade() -> None:
    for table in ("jobs", "outbox"):
        with op.batch_alter_table(table) as batch:
            batch.add_column(sa.Column("trace", sa.String(), server_default="", nullable=False))


def downgrade() -> None:
    for table in ("jobs", "outbox"):
        with op.batch_alter_table(table) as batch:
            batch.drop_column("trace")
