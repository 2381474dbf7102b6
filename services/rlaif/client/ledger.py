"""Clients of the ledger: facts and reports for pipelines, labels for the judge."""

from __future__ import annotations

import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Literal, Self

from google.protobuf import struct_pb2

from rlaif.client.channel import open_aio_channel, open_channel
from rlaif.runtime.settings import ClientSettings
from rlaif.v1 import ledger_service_pb2 as pb
from rlaif.v1 import ledger_service_pb2_grpc

_PAGE_SIZE = 1000
_LOOKUP_SIZE = 4096
# Reading a whole ledger takes longer than a call about a few labels.
_WHOLE_LEDGER_SECONDS = 3600.0

Fault = Literal["", "altered", "missing", "reordered", "label_mismatch"]
_FAULTS: Mapping[int, Fault] = {
    pb.LEDGER_FAULT_ALTERED: "altered",
    pb.LEDGER_FAULT_MISSING: "missing",
    pb.LEDGER_FAULT_REORDERED: "reordered",
    pb.LEDGER_FAULT_LABEL_MISMATCH: "label_mismatch",
}


@dataclass(frozen=True)
class LedgerReport:
    """What a check of the whole ledger found. `broken_at` and `fault` are empty when the chain holds."""

    num_events: int
    num_labels: int
    broken_at: str
    fault: Fault
    head_sha256: str


class LedgerClient:
    """The ledger for blocking callers. Close it, or use it as a context manager."""

    def __init__(self, settings: ClientSettings) -> None:
        self._channel = open_channel(settings)
        self._stub = ledger_service_pb2_grpc.LedgerServiceStub(self._channel)

    def record_event(
        self, event_type: str, *, subject: str, payload: Mapping[str, Any], request_id: str | None = None
    ) -> str:
        """Appends one fact and gives its name. A repeated `request_id` with the same fact gives the first's."""
        body = struct_pb2.Struct()
        body.update(payload)
        request = pb.RecordEventRequest(
            event=pb.Event(event_type=event_type, subject=subject, payload=body),
            request_id=request_id or str(uuid.uuid4()),
        )
        return self._stub.RecordEvent(request).event.name

    def list_events(self, event_type: str = "", subject: str = "") -> Iterator[pb.Event]:
        """Events, oldest first, of that type and about that resource; empty means any."""
        request = pb.ListEventsRequest(page_size=_PAGE_SIZE, event_type=event_type, subject=subject)
        while True:
            page = self._stub.ListEvents(request)
            yield from page.events
            if not page.next_page_token:
                return
            request.page_token = page.next_page_token

    def get_label(self, name: str) -> pb.Label:
        """The label called "labels/{request_sha256}"."""
        return self._stub.GetLabel(pb.GetLabelRequest(name=name)).label

    def import_labels(self, labels: Sequence[pb.Label], *, request_id: str | None = None) -> int:
        """Appends labels that people made, and says how many were new."""
        request = pb.ImportLabelsRequest(labels=labels, request_id=request_id or str(uuid.uuid4()))
        return self._stub.ImportLabels(request).num_appended

    def export_labels(
        self, *, source: pb.LabelSource.ValueType = pb.LABEL_SOURCE_UNSPECIFIED, constitution: str = ""
    ) -> Iterator[pb.Label]:
        """Every label, oldest first."""
        request = pb.ExportLabelsRequest(source=source, constitution=constitution)
        for response in self._stub.ExportLabels(request, timeout=_WHOLE_LEDGER_SECONDS):
            yield response.label

    def verify(self, *, timeout_seconds: float = _WHOLE_LEDGER_SECONDS) -> LedgerReport:
        """Recomputes the whole chain on the server."""
        found = self._stub.VerifyLedger(pb.VerifyLedgerRequest(), timeout=timeout_seconds)
        return LedgerReport(
            num_events=found.num_events,
            num_labels=found.num_labels,
            broken_at=found.broken_at,
            fault=_FAULTS.get(found.fault, ""),
            head_sha256=found.head_sha256,
        )

    def close(self) -> None:
        self._channel.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


class AioLedgerClient:
    """The ledger for the judge. Make it inside a running event loop; close it."""

    def __init__(self, settings: ClientSettings) -> None:
        self._channel = open_aio_channel(settings)
        self._stub = ledger_service_pb2_grpc.LedgerServiceStub(self._channel)

    async def lookup(self, digests: Sequence[str]) -> dict[str, pb.Label]:
        """The recorded labels among these request digests, by digest."""
        found: dict[str, pb.Label] = {}
        for start in range(0, len(digests), _LOOKUP_SIZE):
            request = pb.LookupLabelsRequest(request_sha256s=digests[start : start + _LOOKUP_SIZE])
            response = await self._stub.LookupLabels(request)
            found.update((label.request_sha256, label) for label in response.labels)
        return found

    async def record(self, labels: Sequence[pb.Label], request_id: str) -> list[pb.Label]:
        """Labels as stored, in order; one already recorded under its digest is answered, not appended."""
        response = await self._stub.RecordLabels(pb.RecordLabelsRequest(labels=labels, request_id=request_id))
        return list(response.labels)

    async def close(self) -> None:
        await self._channel.close(None)
