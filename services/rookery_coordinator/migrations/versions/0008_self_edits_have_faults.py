"""Self-edits say why they cannot be used."""

from alembic import op
import sqlalchemy as sa


revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None


def upgrade() -> None:
    with op.batch_alter_table("self_edits") as batch:
        batch.add_column(sa.Column("fault", sa.Text(), server_default="", nullable=False))


def downgrade() -> None:
    with op.batch_alter_table("self_edits") as batch:
        batch.drop_column("fault")
