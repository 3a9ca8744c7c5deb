"""A round that ends finds those that wait for it without reading all rounds that there ever were."""

from alembic import op


revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None


def upgrade() -> None:
    with op.batch_alter_table("rounds") as batch:
        batch.create_index("ix_rounds_after", ["after"])


def downgrade() -> None:
    with op.batch_alter_table("rounds") as batch:
        batch.drop_index("ix_rounds_after")
