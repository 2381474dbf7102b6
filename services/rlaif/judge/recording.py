"""Labels go to the ledger before they are answered, and identical requests are answered from it."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Mapping, Sequence
from typing import Protocol

from rlaif.runtime.batching import Batcher
from rlaif.v1 import ledger_service_pb2

_MAX_LABELS_PER_CALL = 1024
_MAX_QUEUED_LABELS = 65536


class LabelLedger(Protocol):
    """What the judge needs of the ledger."""

    async def lookup(self, digests: Sequence[str]) -> Mapping[str, ledger_service_pb2.Label]:
        """The recorded labels among these request digests."""

    async def record(
        self, labels: Sequence[ledger_service_pb2.Label], request_id: str
    ) -> Sequence[ledger_service_pb2.Label]:
        """Labels as stored, in order; one already recorded under its digest is answered, not appended."""


class Recorder:
    """Looks up and records labels; single calls share ledger calls with their neighbours in time."""

    def __init__(self, ledger: LabelLedger, *, max_delay_seconds: float) -> None:
        self._ledger = ledger
        self._lookups: Batcher[str, ledger_service_pb2.Label | None] = Batcher(
            self._find,
            mix=True,
            max_batch_size=_MAX_LABELS_PER_CALL,
            max_delay_seconds=max_delay_seconds,
            max_queue_size=_MAX_QUEUED_LABELS,
        )
        self._records: Batcher[ledger_service_pb2.Label, ledger_service_pb2.Label] = Batcher(
            self._record,
            mix=True,
            max_batch_size=_MAX_LABELS_PER_CALL,
            max_delay_seconds=max_delay_seconds,
            max_queue_size=_MAX_QUEUED_LABELS,
        )
        self._writing: set[asyncio.Task[list[ledger_service_pb2.Label]]] = set()

    async def find(self, digests: Sequence[str]) -> dict[str, ledger_service_pb2.Label]:
        """Recorded labels by request digest; the digests must be distinct."""
        found = await (self._lookups.submit(digests) if len(digests) == 1 else self._find(digests))
        return {label.request_sha256: label for label in found if label is not None}

    async def record(self, labels: Sequence[ledger_service_pb2.Label]) -> list[ledger_service_pb2.Label]:
        """Labels as the ledger holds them. A batch is one ledger event, whatever becomes of its caller."""
        if len(labels) == 1:
            return await self._records.submit(labels)
        task = asyncio.create_task(self._record(labels))
        self._writing.add(task)
        task.add_done_callback(self._writing.discard)
        return await asyncio.shield(task)

    async def close(self) -> None:
        """Ends what is being written."""
        await self._lookups.close()
        await self._records.close()
        if self._writing:
            await asyncio.wait(self._writing)

    async def _find(self, digests: Sequence[str]) -> list[ledger_service_pb2.Label | None]:
        if not digests:
            return []
        found = await self._ledger.lookup(list(dict.fromkeys(digests)))
        return [found.get(digest) for digest in digests]

    async def _record(self, labels: Sequence[ledger_service_pb2.Label]) -> list[ledger_service_pb2.Label]:
        if not labels:
            return []
        distinct = {label.request_sha256: label for label in reversed(labels)}
        stored = await self._ledger.record(list(reversed(distinct.values())), str(uuid.uuid4()))
        by_digest = {label.request_sha256: label for label in stored}
        return [by_digest[label.request_sha256] for label in labels]
