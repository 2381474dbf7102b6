"""Events, labels and request ids of the ledger, and triggers that keep them append-only.

There is no downgrade: a ledger is not taken back.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "ledger_0001"
down_revision = None
branch_labels = None
depends_on = None

_BigInteger = sa.BigInteger().with_variant(sa.Integer, "sqlite")
_TABLES = ("events", "labels", "requests")


def upgrade() -> None:
    op.create_table(
        "events",
        sa.Column("sequence", _BigInteger, primary_key=True, autoincrement=False),
        sa.Column("event_type", sa.String(64), nullable=False),
        sa.Column("actor", sa.String(256), nullable=False),
        sa.Column("subject", sa.String(512), nullable=False),
        sa.Column("payload", sa.LargeBinary, nullable=False),
        sa.Column("create_time_us", _BigInteger, nullable=False),
        sa.Column("previous_sha256", sa.String(64), nullable=False),
        sa.Column("chain_sha256", sa.String(64), nullable=False),
    )
    op.create_index("events_by_type", "events", ["event_type", "sequence"])
    op.create_index("events_by_subject", "events", ["subject", "sequence"])
    op.create_table(
        "labels",
        sa.Column("request_sha256", sa.String(64), primary_key=True),
        sa.Column("sequence", _BigInteger, sa.ForeignKey("events.sequence"), nullable=False),
        sa.Column("position", sa.Integer, nullable=False),
        sa.Column("source", sa.SmallInteger, nullable=False),
        sa.Column("constitution", sa.String(256), nullable=False),
        sa.Column("judge_digest", sa.String(64), nullable=False),
        sa.Column("create_time_us", _BigInteger, nullable=False),
        sa.Column("label", sa.LargeBinary, nullable=False),
        sa.Column("label_sha256", sa.String(64), nullable=False),
        sa.UniqueConstraint("sequence", "position", name="labels_in_order"),
    )
    op.create_index("labels_by_constitution", "labels", ["constitution", "sequence", "position"])
    op.create_table(
        "requests",
        sa.Column("request_id", sa.String(36), primary_key=True),
        sa.Column("method", sa.String(64), nullable=False),
        sa.Column("request_sha256", sa.String(64), nullable=False),
        sa.Column("sequence", _BigInteger, sa.ForeignKey("events.sequence"), nullable=True),
        sa.Column("num_appended", sa.Integer, nullable=False),
        sa.Column("create_time_us", _BigInteger, nullable=False),
    )
    if op.get_bind().dialect.name == "postgresql":
        _refuse_changes_in_postgresql()
    else:
        _refuse_changes_in_sqlite()


def _refuse_changes_in_sqlite() -> None:
    for table in _TABLES:
        for verb in ("UPDATE", "DELETE"):
            op.execute(
                f"CREATE TRIGGER {table}_refuse_{verb.lower()} BEFORE {verb} ON {table} "
                "BEGIN SELECT RAISE(ABORT, 'the ledger is append-only'); END"
            )


def _refuse_changes_in_postgresql() -> None:
    op.execute(
        "CREATE FUNCTION rlaif_append_only() RETURNS trigger LANGUAGE plpgsql AS "
        "$$ BEGIN RAISE EXCEPTION 'the ledger is append-only'; END $$"
    )
    for table in _TABLES:
        op.execute(
            f"CREATE TRIGGER {table}_append_only BEFORE UPDATE OR DELETE OR TRUNCATE ON {table} "
            "FOR EACH STATEMENT EXECUTE FUNCTION rlaif_append_only()"
        )
