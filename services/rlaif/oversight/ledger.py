"""Appending to the ledger and reading from it; each function runs within the transaction it is given."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from sqlalchemy import Connection, Row, Select, insert, select, tuple_

from rlaif.core.canonical import sha256_hex
from rlaif.core.errors import ConflictError, NotFoundError
from rlaif.core.hashchain import GENESIS_SHA256
from rlaif.oversight.records import EventRow, LabelRow, freeze_label, labels_event, thaw_label
from rlaif.oversight.tables import events, labels, requests
from rlaif.v1 import ledger_service_pb2 as pb

# Databases bound how many parameters one statement takes.
_CHUNK = 1000


@dataclass(frozen=True)
class Caller:
    """Who asks, under which request id, when."""

    request_id: str
    method: str
    actor: str
    create_time_us: int


@dataclass(frozen=True)
class Cursor:
    """Place in a list: after this event, and after this label of it."""

    sequence: int = 0
    position: int = -1


@dataclass(frozen=True)
class RecordedLabels:
    """Labels as stored, in request order, and how many were new."""

    labels: tuple[pb.Label, ...]
    num_appended: int


def append_labels(
    connection: Connection, stripped: Sequence[pb.Label], *, event_type: str, caller: Caller
) -> RecordedLabels:
    """Stores the labels whose request digest is new, as one event, and answers all of them.

    A repeated request id gives the first result; ConflictError when it came with other labels.
    """
    digests = [label.request_sha256 for label in stripped]
    request_sha256 = _digest_of(label.SerializeToString(deterministic=True) for label in stripped)
    before = _find_request(connection, caller, request_sha256=request_sha256)
    if before is not None:
        return RecordedLabels(_in_order(connection, digests), num_appended=before.num_appended)
    recorded = find_labels(connection, digests)
    new = {label.request_sha256: label for label in reversed(stripped) if label.request_sha256 not in recorded}
    rows = [
        freeze_label(new.pop(digest), actor=caller.actor, create_time_us=caller.create_time_us)
        for digest in digests
        if digest in new
    ]
    sequence = _append_labels_event(connection, rows, event_type=event_type, caller=caller) if rows else None
    _remember(connection, caller, request_sha256=request_sha256, sequence=sequence, num_appended=len(rows))
    return RecordedLabels(_in_order(connection, digests), num_appended=len(rows))


def append_event(connection: Connection, event: EventRow, *, caller: Caller) -> Row[Any]:
    """Stores one event and gives its row; a repeated request id gives the first's."""
    request_sha256 = _digest_of([event.event_type.encode(), event.subject.encode(), event.payload])
    before = _find_request(connection, caller, request_sha256=request_sha256)
    if before is not None:
        return get_event(connection, before.sequence)
    sequence = _append(connection, event)
    _remember(connection, caller, request_sha256=request_sha256, sequence=sequence, num_appended=0)
    return get_event(connection, sequence)


def find_labels(connection: Connection, digests: Sequence[str]) -> dict[str, pb.Label]:
    """The recorded labels among these request digests, by digest."""
    found: dict[str, pb.Label] = {}
    for start in range(0, len(digests), _CHUNK):
        chosen = select(labels).where(labels.c.request_sha256.in_(digests[start : start + _CHUNK]))
        for row in connection.execute(chosen):
            found[row.request_sha256] = thaw(row)
    return found


def get_label(connection: Connection, digest: str) -> pb.Label:
    """The label of that request digest; NotFoundError if none is recorded."""
    found = find_labels(connection, [digest])
    if digest not in found:
        name = f"labels/{digest}"
        raise NotFoundError(
            f"{name} is not recorded", metadata={"resource_type": "rlaif.v1.Label", "resource_name": name}
        )
    return found[digest]


def get_event(connection: Connection, sequence: int) -> Row[Any]:
    """The row of that event."""
    return connection.execute(select(events).where(events.c.sequence == sequence)).one()


def list_labels(
    connection: Connection, *, after: Cursor, limit: int, source: int = 0, constitution: str = ""
) -> Sequence[Row[Any]]:
    """Rows of labels after that place, oldest first."""
    chosen = (
        select(labels)
        .where(tuple_(labels.c.sequence, labels.c.position) > (after.sequence, after.position))
        .order_by(labels.c.sequence, labels.c.position)
        .limit(limit)
    )
    if source:
        chosen = chosen.where(labels.c.source == source)
    if constitution:
        chosen = chosen.where(labels.c.constitution == constitution)
    return connection.execute(chosen).all()


def list_events(
    connection: Connection, *, after: Cursor, limit: int, event_type: str = "", subject: str = ""
) -> Sequence[Row[Any]]:
    """Rows of events after that place, oldest first."""
    chosen: Select[Any] = (
        select(events).where(events.c.sequence > after.sequence).order_by(events.c.sequence).limit(limit)
    )
    if event_type:
        chosen = chosen.where(events.c.event_type == event_type)
    if subject:
        chosen = chosen.where(events.c.subject == subject)
    return connection.execute(chosen).all()


def recent_events(connection: Connection, event_types: Sequence[str], *, since_us: int) -> list[EventRow]:
    """Events of these types that were recorded since then, oldest first."""
    chosen = (
        select(events)
        .where(events.c.event_type.in_(event_types), events.c.create_time_us >= since_us)
        .order_by(events.c.sequence)
    )
    return [
        EventRow(row.event_type, row.actor, row.subject, row.payload, row.create_time_us)
        for row in connection.execute(chosen)
    ]


def thaw(row: Row[Any]) -> pb.Label:
    """The label in a row."""
    return thaw_label(row.label, label_sha256=row.label_sha256, sequence=row.sequence)


def _append_labels_event(connection: Connection, rows: Sequence[LabelRow], *, event_type: str, caller: Caller) -> int:
    event = labels_event(event_type, rows=rows, actor=caller.actor, create_time_us=caller.create_time_us)
    sequence = _append(connection, event)
    connection.execute(
        insert(labels),
        [asdict(row) | {"sequence": sequence, "position": position} for position, row in enumerate(rows)],
    )
    return sequence


def _append(connection: Connection, event: EventRow) -> int:
    last = connection.execute(
        select(events.c.sequence, events.c.chain_sha256).order_by(events.c.sequence.desc()).limit(1)
    ).first()
    sequence, previous = (last.sequence + 1, last.chain_sha256) if last else (1, GENESIS_SHA256)
    connection.execute(
        insert(events).values(
            **asdict(event), sequence=sequence, previous_sha256=previous, chain_sha256=event.link(previous)
        )
    )
    return int(sequence)


def _find_request(connection: Connection, caller: Caller, *, request_sha256: str) -> Row[Any] | None:
    row = connection.execute(select(requests).where(requests.c.request_id == caller.request_id)).first()
    if row is not None and (row.method, row.request_sha256) != (caller.method, request_sha256):
        raise ConflictError(
            f"request_id {caller.request_id} was used for another request",
            reason="REQUEST_ID_REUSED",
            field="request_id",
        )
    return row


def _remember(
    connection: Connection, caller: Caller, *, request_sha256: str, sequence: int | None, num_appended: int
) -> None:
    connection.execute(
        insert(requests).values(
            request_id=caller.request_id,
            method=caller.method,
            request_sha256=request_sha256,
            sequence=sequence,
            num_appended=num_appended,
            create_time_us=caller.create_time_us,
        )
    )


def _in_order(connection: Connection, digests: Sequence[str]) -> tuple[pb.Label, ...]:
    found = find_labels(connection, digests)
    return tuple(found[digest] for digest in digests)


def _digest_of(parts: Iterator[bytes] | Sequence[bytes]) -> str:
    return sha256_hex("\n".join(sha256_hex(part) for part in parts).encode())
