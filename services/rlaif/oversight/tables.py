"""Tables of the ledger. Rows are only ever added; triggers made by the migrations refuse anything else."""

from __future__ import annotations

from sqlalchemy import (
    BigInteger,
    Column,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    SmallInteger,
    String,
    Table,
    UniqueConstraint,
)

metadata = MetaData()

_BigInteger = BigInteger().with_variant(Integer, "sqlite")

events = Table(
    "events",
    metadata,
    Column("sequence", _BigInteger, primary_key=True, autoincrement=False),
    Column("event_type", String(64), nullable=False),
    Column("actor", String(256), nullable=False),
    Column("subject", String(512), nullable=False),
    # Canonical JSON.
    Column("payload", LargeBinary, nullable=False),
    # Microseconds since 1970, UTC.
    Column("create_time_us", _BigInteger, nullable=False),
    Column("previous_sha256", String(64), nullable=False),
    Column("chain_sha256", String(64), nullable=False),
    Index("events_by_type", "event_type", "sequence"),
    Index("events_by_subject", "subject", "sequence"),
)

labels = Table(
    "labels",
    metadata,
    Column("request_sha256", String(64), primary_key=True),
    Column("sequence", _BigInteger, ForeignKey("events.sequence"), nullable=False),
    # Place in its event, from 0.
    Column("position", Integer, nullable=False),
    # rlaif.v1.LabelSource
    Column("source", SmallInteger, nullable=False),
    Column("constitution", String(256), nullable=False),
    Column("judge_digest", String(64), nullable=False),
    Column("create_time_us", _BigInteger, nullable=False),
    # rlaif.v1.Label, serialized, all but its event.
    Column("label", LargeBinary, nullable=False),
    Column("label_sha256", String(64), nullable=False),
    UniqueConstraint("sequence", "position", name="labels_in_order"),
    Index("labels_by_constitution", "constitution", "sequence", "position"),
    Index("labels_by_source", "source", "create_time_us"),
)

requests = Table(
    "requests",
    metadata,
    Column("request_id", String(36), primary_key=True),
    Column("method", String(64), nullable=False),
    Column("request_sha256", String(64), nullable=False),
    # The event it appended; null when it appended none.
    Column("sequence", _BigInteger, ForeignKey("events.sequence"), nullable=True),
    Column("num_appended", Integer, nullable=False),
    Column("create_time_us", _BigInteger, nullable=False),
)
