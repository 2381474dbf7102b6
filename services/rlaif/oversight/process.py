"""Oversight as a service: the ledger's database, opened before it serves and closed after."""

from __future__ import annotations

import asyncio
import contextlib

import grpc

from rlaif.oversight import quality_metrics
from rlaif.oversight.database import Database
from rlaif.oversight.ledger import recent_events
from rlaif.oversight.metrics import ledger_metrics, run_metrics
from rlaif.oversight.quality import QualityReader
from rlaif.oversight.records import now_us
from rlaif.oversight.review_servicer import ReviewServicer
from rlaif.oversight.run_events import EVENT_TYPES, RunEvents
from rlaif.oversight.schema import check_schema, upgrade_schema
from rlaif.oversight.servicer import LedgerServicer
from rlaif.oversight.settings import OversightSettings
from rlaif.oversight.verification import Verifier
from rlaif.runtime.server import Service
from rlaif.v1 import ledger_service_pb2_grpc, review_service_pb2_grpc

# What was recorded so long before a start may never have been scraped: an interval of scrapes, and a slow restart.
_RECENT_SECONDS = 300.0


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
    """Owns the database and the tasks that verify the ledger and keep the metrics of label quality."""

    def __init__(self, settings: OversightSettings) -> None:
        self._settings = settings
        self._database: Database | None = None
        self._verifier = Verifier(ledger_metrics())
        self._run_events = RunEvents(run_metrics())
        self._ledger = LedgerServicer(
            settings.limits, verifier=self._verifier, metrics=ledger_metrics(), run_events=self._run_events
        )
        self._quality = QualityReader()
        self._tasks: list[asyncio.Task[None]] = []

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
        await self._count_recent(self._database)
        self._ledger.database = self._quality.database = self._verifier.database = self._database
        self._tasks = [
            asyncio.create_task(quality_metrics.refresh(self._quality, settings.quality)),
            asyncio.create_task(self._verifier.run(every_seconds=settings.verify_every_hours * 3600)),
        ]

    async def _count_recent(self, database: Database) -> None:
        since_us = now_us() - round(_RECENT_SECONDS * 1e6)
        for event in await database.read(lambda connection: recent_events(connection, EVENT_TYPES, since_us=since_us)):
            self._run_events.count(event)

    async def stop(self) -> None:
        for task in self._tasks:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task
        await self._quality.close()
        if self._database is not None:
            await self._database.close()
