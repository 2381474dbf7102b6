"""Oversight as a service: the ledger's database, opened before it serves and closed after."""

from __future__ import annotations

import asyncio

import grpc

from rlaif.oversight.database import Database
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
    """Owns the database."""

    def __init__(self, settings: OversightSettings) -> None:
        self._settings = settings
        self._database: Database | None = None
        self._ledger = LedgerServicer(settings.limits)

    def register(self, server: grpc.aio.Server) -> None:
        ledger_service_pb2_grpc.add_LedgerServiceServicer_to_server(self._ledger, server)
        review_service_pb2_grpc.add_ReviewServiceServicer_to_server(
            review_service_pb2_grpc.ReviewServiceServicer(),  # type: ignore[abstract]  # each method answers NOT_SERVED
            server,
        )

    async def start(self) -> None:
        settings = self._settings
        self._database = Database(settings.database_url, num_readers=settings.limits.num_readers)
        if settings.migrate:
            await asyncio.to_thread(upgrade_schema, self._database.engine)
        await asyncio.to_thread(check_schema, self._database.engine)
        self._ledger.database = self._database

    async def stop(self) -> None:
        if self._database is not None:
            await self._database.close()
