"""Oversight as a service: the ledger's database, opened before it serves and closed after."""

from __future__ import annotations

import asyncio
import contextlib

import grpc

from rlaif.oversight import quality_metrics
from rlaif.oversight.database import Database
from rlaif.oversight.quality import QualityReader
from rlaif.oversight.review_servicer import ReviewServicer
from rlaif.oversight.schema import check_schema, upgrade_schema
from rlaif.oversight.servicer import LedgerServicer
from rlaif.oversight.settings import OversightSettings
from rlaif.runtime.server import Service
from rlaif.v1 import ledger_service_pb2_grpc, review_service_pb2_grpc


def make_service(settings: OversightSettings) -> Service:
    """The oversight service of these settings. Its database is opened when it starts."""
    process = _Process(settings)
    return Service(
        name="oversight",
        grpc_services=("rlaif.v1.LedgerService", "rlaif.v1.ReviewService"),
        register=process.register,
        start=process.start,
        stop=process.stop,
    )


class _Process:
    """Owns the database and the task that keeps the metrics of label quality."""

    def __init__(self, settings: OversightSettings) -> None:
        self._settings = settings
        self._database: Database | None = None
        self._ledger = LedgerServicer(settings.limits)
        self._quality = QualityReader()
        self._refreshing: asyncio.Task[None] | None = None

    def register(self, server: grpc.aio.Server) -> None:
        ledger_service_pb2_grpc.add_LedgerServiceServicer_to_server(self._ledger, server)
        review_service_pb2_grpc.add_ReviewServiceServicer_to_server(
            ReviewServicer(self._quality),  # type: ignore[abstract]  # methods it lacks answer NOT_SERVED
            server,
        )

    async def start(self) -> None:
        settings = self._settings
        self._database = Database(settings.database_url, num_readers=settings.limits.num_readers)
        if settings.migrate:
            await asyncio.to_thread(upgrade_schema, self._database.engine)
        await asyncio.to_thread(check_schema, self._database.engine)
        self._ledger.database = self._quality.database = self._database
        self._refreshing = asyncio.create_task(quality_metrics.refresh(self._quality, settings.quality))

    async def stop(self) -> None:
        if self._refreshing is not None:
            self._refreshing.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._refreshing
        await self._quality.close()
        if self._database is not None:
            await self._database.close()
