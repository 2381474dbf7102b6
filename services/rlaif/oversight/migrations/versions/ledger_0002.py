"""Labels found by who made them and when: people's among the judge's, and those of the last days."""

from __future__ import annotations

from alembic import op

revision = "ledger_0002"
down_revision = "ledger_0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_index("labels_by_source", "labels", ["source", "create_time_us"])
