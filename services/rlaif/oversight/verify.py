"""Finding the first event of a ledger that does not hold."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from google.protobuf.message import DecodeError
from sqlalchemy import Connection, Row, func, select

from rlaif.core.canonical import sha256_hex
from rlaif.core.errors import UnavailableError
from rlaif.core.hashchain import GENESIS_SHA256
from rlaif.oversight.ledger import Cursor, list_events, list_labels
from rlaif.oversight.records import LABEL_EVENTS, EventRow, row_of
from rlaif.oversight.tables import labels, requests
from rlaif.v1 import ledger_service_pb2 as pb

# An event of a full batch is 650 kB.
_EVENTS_AT_ONCE = 32
_LABELS_AT_ONCE = 1000

Fault: TypeAlias = "pb.LedgerFault.ValueType"
"""A value of rlaif.v1.LedgerFault; 0 when nothing is wrong."""


@dataclass(frozen=True)
class ChainReport:
    """What was checked. `broken_at` is the sequence of the first event that does not hold, None when all do."""

    num_events: int
    num_labels: int
    head_sha256: str
    broken_at: int | None = None
    fault: Fault = pb.LEDGER_FAULT_UNSPECIFIED


def verify_chain(connection: Connection, *, given_up: threading.Event) -> ChainReport:
    """Recomputes every hash of the ledger, events and labels, within one view of the database.

    UnavailableError, and no report, once it is given up.
    """
    head, num_events, num_labels = GENESIS_SHA256, 0, 0
    stored = _LabelsByEvent(connection)
    for row in _all_events(connection):
        if given_up.is_set():
            raise UnavailableError("the verification was given up", reason="GIVEN_UP")
        expected = num_events + 1
        if row.sequence != expected:
            return ChainReport(num_events, num_labels, head, expected, pb.LEDGER_FAULT_MISSING)
        fault = _event_fault(row, previous_sha256=head)
        if not fault:
            own = stored.of(row.sequence)
            fault = _labels_fault(row, own)
            num_labels += len(own)
        if fault:
            return ChainReport(num_events, num_labels, head, row.sequence, fault)
        num_events, head = expected, row.chain_sha256
    if _last_mentioned(connection) > num_events:
        return ChainReport(num_events, num_labels, head, num_events + 1, pb.LEDGER_FAULT_MISSING)
    return ChainReport(num_events, num_labels, head)


def _event_fault(row: Row[Any], *, previous_sha256: str) -> Fault:
    if not isinstance(row.payload, bytes):
        return pb.LEDGER_FAULT_ALTERED
    event = EventRow(
        event_type=row.event_type,
        actor=row.actor,
        subject=row.subject,
        payload=row.payload,
        create_time_us=row.create_time_us,
    )
    try:
        whole = event.link(row.previous_sha256) == row.chain_sha256
    except (ValueError, TypeError):  # not even hex digits, or no text
        whole = False
    if not whole:
        return pb.LEDGER_FAULT_ALTERED
    # It is what it was; it is only not where it was.
    return pb.LEDGER_FAULT_UNSPECIFIED if row.previous_sha256 == previous_sha256 else pb.LEDGER_FAULT_REORDERED


def _labels_fault(event: Row[Any], rows: Sequence[Row[Any]]) -> Fault:
    sealed = _sealed(event) if event.event_type in LABEL_EVENTS else []
    found = [{"label_sha256": row.label_sha256, "request_sha256": row.request_sha256} for row in rows]
    whole = found == sealed and all(_is_whole(row, position=position) for position, row in enumerate(rows))
    return pb.LEDGER_FAULT_UNSPECIFIED if whole else pb.LEDGER_FAULT_LABEL_MISMATCH


def _sealed(event: Row[Any]) -> Any:
    """What the event says of its labels; None where whoever rebuilt the chain wrote something else."""
    try:
        return json.loads(event.payload)["labels"]
    except (ValueError, TypeError, LookupError):
        return None


def _is_whole(row: Row[Any], *, position: int) -> bool:
    data = row.label
    if not isinstance(data, bytes) or sha256_hex(data) != row.label_sha256 or row.position != position:
        return False
    try:
        # A column that was changed would hide the label from lists, though its bytes are as they were.
        said = row_of(pb.Label.FromString(data), data=data)
    except (DecodeError, ValueError):
        return False
    columns = (row.request_sha256, row.source, row.constitution, row.judge_digest, row.create_time_us)
    return columns == (said.request_sha256, said.source, said.constitution, said.judge_digest, said.create_time_us)


def _all_events(connection: Connection) -> Iterator[Row[Any]]:
    # Sequences start at 1, but a forged one may lie below.
    after = Cursor(sequence=-(2**62))
    while page := list_events(connection, after=after, limit=_EVENTS_AT_ONCE):
        yield from page
        after = Cursor(sequence=page[-1].sequence)


class _LabelsByEvent:
    """Labels in the order of the events that hold them, read a page at a time."""

    def __init__(self, connection: Connection) -> None:
        self._rows = self._read(connection)
        self._next = next(self._rows, None)

    def of(self, sequence: int) -> list[Row[Any]]:
        """Labels that name this event, or one before it that does not exist."""
        own: list[Row[Any]] = []
        while self._next is not None and _number(self._next.sequence, otherwise=0) <= sequence:
            own.append(self._next)
            self._next = next(self._rows, None)
        return own

    @staticmethod
    def _read(connection: Connection) -> Iterator[Row[Any]]:
        after = Cursor(sequence=-(2**62))
        while page := list_labels(connection, after=after, limit=_LABELS_AT_ONCE):
            yield from page
            after = Cursor(sequence=page[-1].sequence, position=page[-1].position)


def _last_mentioned(connection: Connection) -> int:
    """The last event that a label or a request says it was recorded by."""
    last = [connection.execute(select(func.max(table.c.sequence))).scalar() for table in (labels, requests)]
    return max(0 if sequence is None else _number(sequence, otherwise=2**62) for sequence in last)


def _number(value: Any, *, otherwise: int) -> int:
    """The value, which in SQLite need not be of its column's type."""
    return value if isinstance(value, int) else otherwise
