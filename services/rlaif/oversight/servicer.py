"""LedgerService: requests checked, work sent to the database's threads, rows answered as messages."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from typing import Any, NamedTuple

from google.protobuf import json_format
from sqlalchemy import Row

from rlaif.core.errors import CorruptionError, InvalidInputError
from rlaif.oversight import checks, ledger
from rlaif.oversight.database import Database
from rlaif.oversight.ledger import Caller, Cursor, RecordedLabels
from rlaif.oversight.metrics import SOURCES, LedgerMetrics
from rlaif.oversight.paging import page_token, read_page_token
from rlaif.oversight.records import (
    LABEL_EVENTS,
    LABELS_IMPORTED,
    LABELS_RECORDED,
    EventRow,
    now_us,
    payload_bytes,
    strip_label,
    timestamp,
)
from rlaif.oversight.run_events import RunEvents
from rlaif.oversight.settings import LedgerLimits
from rlaif.oversight.verification import Verifier
from rlaif.runtime.context import current_actor
from rlaif.v1 import ledger_service_pb2 as pb
from rlaif.v1 import ledger_service_pb2_grpc

_EXPORT_ROWS = 500
_SOURCES = dict(zip((pb.LABEL_SOURCE_AI, pb.LABEL_SOURCE_HUMAN), SOURCES, strict=True))


class _Page(NamedTuple):
    rows: Sequence[Row[Any]]
    more: bool


class LedgerServicer(ledger_service_pb2_grpc.LedgerServiceServicer):
    """Serves the ledger in `database`, which is set once it is open."""

    database: Database

    def __init__(
        self, limits: LedgerLimits, *, verifier: Verifier, metrics: LedgerMetrics, run_events: RunEvents
    ) -> None:
        self._limits, self._verifier, self._metrics, self._run_events = limits, verifier, metrics, run_events

    async def RecordLabels(  # noqa: N802 - named by the contract
        self, request: pb.RecordLabelsRequest, context: Any
    ) -> pb.RecordLabelsResponse:
        recorded = await self._append(
            request.labels, request_id=request.request_id, source=pb.LABEL_SOURCE_AI, event_type=LABELS_RECORDED
        )
        return pb.RecordLabelsResponse(labels=recorded.labels, num_appended=recorded.num_appended)

    async def ImportLabels(  # noqa: N802 - named by the contract
        self, request: pb.ImportLabelsRequest, context: Any
    ) -> pb.ImportLabelsResponse:
        recorded = await self._append(
            request.labels, request_id=request.request_id, source=pb.LABEL_SOURCE_HUMAN, event_type=LABELS_IMPORTED
        )
        return pb.ImportLabelsResponse(num_appended=recorded.num_appended)

    async def LookupLabels(  # noqa: N802 - named by the contract
        self, request: pb.LookupLabelsRequest, context: Any
    ) -> pb.LookupLabelsResponse:
        digests = list(request.request_sha256s)
        checks.check_count(digests, field="request_sha256s", most=self._limits.max_labels)
        for index, digest in enumerate(digests):
            checks.check_sha256(digest, field=f"request_sha256s[{index}]")
        found = await self.database.read(lambda connection: ledger.find_labels(connection, digests))
        return pb.LookupLabelsResponse(labels=[found[digest] for digest in digests if digest in found])

    async def GetLabel(  # noqa: N802 - named by the contract
        self, request: pb.GetLabelRequest, context: Any
    ) -> pb.GetLabelResponse:
        collection, _, digest = request.name.partition("/")
        if collection != "labels":
            raise InvalidInputError("name must be of the form labels/{request_sha256}", field="name")
        checks.check_sha256(digest, field="name")
        label = await self.database.read(lambda connection: ledger.get_label(connection, digest))
        return pb.GetLabelResponse(label=label)

    async def ListLabels(  # noqa: N802 - named by the contract
        self, request: pb.ListLabelsRequest, context: Any
    ) -> pb.ListLabelsResponse:
        size = checks.check_page_size(request.page_size)
        checks.check_constitution(request.constitution, field="constitution")
        listing = ("labels", str(request.source), request.constitution)
        after = read_page_token(request.page_token, listing=listing)
        rows = await self.database.read(
            lambda connection: ledger.list_labels(
                connection, after=after, limit=size + 1, source=request.source, constitution=request.constitution
            )
        )
        page = self._fit(rows, size=size, column="label")
        token = page_token(_after(page.rows[-1]), listing=listing) if page.more else ""
        return pb.ListLabelsResponse(labels=[ledger.thaw(row) for row in page.rows], next_page_token=token)

    async def ExportLabels(  # noqa: N802 - named by the contract
        self, request: pb.ExportLabelsRequest, context: Any
    ) -> AsyncIterator[pb.ExportLabelsResponse]:
        checks.check_constitution(request.constitution, field="constitution")
        after: Cursor = Cursor()
        while True:
            rows = await self.database.read(
                lambda connection, after=after: ledger.list_labels(  # type: ignore[misc]  # bound now, not later
                    connection,
                    after=after,
                    limit=_EXPORT_ROWS,
                    source=request.source,
                    constitution=request.constitution,
                )
            )
            for row in rows:
                yield pb.ExportLabelsResponse(label=ledger.thaw(row))
            if len(rows) < _EXPORT_ROWS:
                return
            after = _after(rows[-1])

    async def RecordEvent(  # noqa: N802 - named by the contract
        self, request: pb.RecordEventRequest, context: Any
    ) -> pb.RecordEventResponse:
        event_type = checks.check_event_type(request.event.event_type, field="event.event_type")
        if event_type in LABEL_EVENTS:
            raise InvalidInputError(f"{event_type} is what the ledger itself records", field="event.event_type")
        caller = _caller(request.request_id, method="RecordEvent")
        event = EventRow(
            event_type=event_type,
            actor=caller.actor,
            subject=checks.check_subject(request.event.subject, field="event.subject"),
            payload=payload_bytes(request.event.payload, field="event.payload", most=self._limits.max_payload_bytes),
            create_time_us=caller.create_time_us,
        )
        # Not given up with the call: what is recorded all the same must be counted.
        row = await asyncio.shield(self._record(event, caller=caller))
        return pb.RecordEventResponse(event=_event(row))

    async def _record(self, event: EventRow, *, caller: Caller) -> Row[Any]:
        with self._metrics.append_seconds.time():
            row = await self.database.write(lambda connection: ledger.append_event(connection, event, caller=caller))
        # A repeated request gets the row of the first, which was counted then.
        if row.create_time_us == event.create_time_us:
            self._metrics.events_recorded.labels(kind="fact").inc()
            self._run_events.count(event)
        return row

    async def ListEvents(  # noqa: N802 - named by the contract
        self, request: pb.ListEventsRequest, context: Any
    ) -> pb.ListEventsResponse:
        size = checks.check_page_size(request.page_size)
        if request.event_type:
            checks.check_event_type(request.event_type, field="event_type")
        checks.check_subject(request.subject, field="subject")
        listing = ("events", request.event_type, request.subject)
        after = read_page_token(request.page_token, listing=listing)
        rows = await self.database.read(
            lambda connection: ledger.list_events(
                connection, after=after, limit=size + 1, event_type=request.event_type, subject=request.subject
            )
        )
        page = self._fit(rows, size=size, column="payload")
        token = page_token(Cursor(sequence=page.rows[-1].sequence), listing=listing) if page.more else ""
        return pb.ListEventsResponse(events=[_event(row) for row in page.rows], next_page_token=token)

    async def VerifyLedger(  # noqa: N802 - named by the contract
        self, request: pb.VerifyLedgerRequest, context: Any
    ) -> pb.VerifyLedgerResponse:
        report = await self._verifier.verify()
        return pb.VerifyLedgerResponse(
            num_events=report.num_events,
            num_labels=report.num_labels,
            broken_at="" if report.broken_at is None else f"events/{report.broken_at}",
            fault=report.fault,
            head_sha256=report.head_sha256,
        )

    async def _append(
        self, labels: Sequence[pb.Label], *, request_id: str, source: pb.LabelSource.ValueType, event_type: str
    ) -> RecordedLabels:
        caller = _caller(request_id, method=event_type)
        checks.check_count(labels, field="labels", most=self._limits.max_labels)
        for index, label in enumerate(labels):
            if label.source != source:
                raise InvalidInputError(
                    f"labels[{index}].source must be {pb.LabelSource.Name(source)} here",
                    field=f"labels[{index}].source",
                )
            checks.check_label(label, field=f"labels[{index}]")
        stripped = [strip_label(label) for label in labels]
        with self._metrics.append_seconds.time():
            recorded = await self.database.write(
                lambda connection: ledger.append_labels(connection, stripped, event_type=event_type, caller=caller)
            )
        self._metrics.labels_recorded.labels(source=_SOURCES[source]).inc(recorded.num_appended)
        self._metrics.labels_answered.inc(len(labels) - recorded.num_appended)
        self._metrics.events_recorded.labels(kind="labels").inc(recorded.num_appended > 0)
        return recorded

    def _fit(self, rows: Sequence[Row[Any]], *, size: int, column: str) -> _Page:
        """The rows of one page: at most `size`, and at most max_page_bytes after the first."""
        total = 0
        for index, row in enumerate(rows[:size]):
            total += len(getattr(row, column))
            if index and total > self._limits.max_page_bytes:
                return _Page(rows[:index], more=True)
        return _Page(rows[:size], more=len(rows) > size)


def _caller(request_id: str, *, method: str) -> Caller:
    return Caller(
        request_id=checks.check_request_id(request_id),
        method=method,
        actor=current_actor()[:256],
        create_time_us=now_us(),
    )


def _after(row: Row[Any]) -> Cursor:
    return Cursor(sequence=row.sequence, position=row.position)


def _event(row: Row[Any]) -> pb.Event:
    event = pb.Event(
        name=f"events/{row.sequence}",
        event_type=row.event_type,
        actor=row.actor,
        subject=row.subject,
        create_time=timestamp(row.create_time_us),
        previous_sha256=row.previous_sha256,
        chain_sha256=row.chain_sha256,
    )
    try:
        json_format.Parse(row.payload, event.payload)
    except (json_format.ParseError, ValueError, TypeError) as error:
        raise CorruptionError(
            f"{event.name} is not what was recorded; verify the ledger", reason="EVENT_ALTERED"
        ) from error
    return event
