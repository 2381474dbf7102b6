"""The ledger verified: when somebody asks, and every so often by itself."""

from __future__ import annotations

import asyncio
import threading
import time

from rlaif.core.errors import CorruptionError, RlaifError
from rlaif.oversight.database import Database
from rlaif.oversight.metrics import LedgerMetrics
from rlaif.oversight.verify import ChainReport, verify_chain
from rlaif.runtime.logging import EventLogger
from rlaif.v1 import ledger_service_pb2 as pb

_log = EventLogger(__name__)

# A service that just started has more urgent things to do than to read its whole ledger.
_FIRST_SECONDS = 30.0


class Verifier:
    """Verifies the ledger in `database`, which is set once it is open, and says as metrics what it found."""

    database: Database

    def __init__(self, metrics: LedgerMetrics) -> None:
        self._metrics = metrics
        # Reads the whole ledger: one at a time leaves readers to everybody else.
        self._turn = asyncio.Lock()

    async def verify(self) -> ChainReport:
        """What was found just now. Cancelled, it reads no further."""
        async with self._turn:
            started = time.perf_counter()
            given_up = threading.Event()
            try:
                report = await self.database.read(lambda connection: verify_chain(connection, given_up=given_up))
            except CorruptionError:  # not even a database any more
                self._metrics.intact.set(0)
                raise
            finally:
                given_up.set()
        self._metrics.verify_seconds.set(time.perf_counter() - started)
        self._metrics.verify_time.set_to_current_time()
        self._metrics.intact.set(report.broken_at is None)
        if report.broken_at is not None:
            fault = pb.LedgerFault.Name(report.fault)
            _log.error("ledger is broken", broken_at=f"events/{report.broken_at}", fault=fault)
        return report

    async def run(self, *, every_seconds: float) -> None:
        """Verifies soon, then again and again; returns only by cancellation."""
        self._metrics.verify_interval.set(every_seconds)
        pause = min(_FIRST_SECONDS, every_seconds)
        while True:
            await asyncio.sleep(pause)
            try:
                await self.verify()
            except RlaifError as error:
                _log.error("ledger cannot be verified", reason=error.reason, error=error.message)
            except Exception:  # noqa: BLE001 - what failed once must not end the looking
                _log.exception("ledger cannot be verified")
            pause = every_seconds
