"""What runs told of themselves is counted, whatever becomes of the call, and of the service, in between."""

from __future__ import annotations

import asyncio
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from ledger_fixtures import new_id, serving_ledger
from rlaif.core.errors import DeadlineError
from rlaif.oversight import process
from rlaif.runtime.telemetry import REGISTRY
from rlaif.v1 import ledger_service_pb2 as pb
from tls_fixtures import until

GATES = ("rlaif_oversight_gates_total", {"outcome": "failed"})
PUBLISHED = ("rlaif_oversight_policies_published_total", {})


def scraped(metric: tuple[str, dict[str, str]]) -> float:
    """As the second of two scrapes tells it."""
    told = [REGISTRY.get_sample_value(*metric) for _ in range(2)]
    return told[1] or 0.0


def failed_gate() -> pb.RecordEventRequest:
    event = pb.Event(event_type="gate_decided", subject="runs/first")
    event.payload.update({"passed": False})
    return pb.RecordEventRequest(event=event, request_id=new_id())


async def test_a_repeated_request_is_counted_once(database_url: str) -> None:
    before = scraped(PUBLISHED)
    async with serving_ledger(database_url) as ledger:
        event = pb.Event(event_type="policy_published", subject="policies/first")
        request = pb.RecordEventRequest(event=event, request_id=new_id())
        await ledger.stub.RecordEvent(request)
        await ledger.stub.RecordEvent(request)
    assert scraped(PUBLISHED) == before + 1


async def test_an_event_just_before_a_restart_is_a_rise_after_it(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with serving_ledger(database_url) as ledger:
        await ledger.stub.RecordEvent(failed_gate())
    # As a new process has it.
    before = scraped(GATES)
    async with serving_ledger(database_url):
        assert scraped(GATES) == before + 1
    monkeypatch.setattr(process, "_RECENT_SECONDS", 0.0)
    async with serving_ledger(database_url):
        assert scraped(GATES) == before + 1, "an event of long before is not counted again"


async def test_an_event_whose_caller_did_not_wait_is_counted(tmp_path: Path) -> None:
    path = tmp_path / "ledger.sqlite"
    async with serving_ledger(f"sqlite:///{path}") as ledger, asyncio.timeout(20):
        before = scraped(GATES)
        with closing(sqlite3.connect(path, isolation_level=None)) as other:
            other.execute("BEGIN IMMEDIATE")
            request = failed_gate()
            with pytest.raises(DeadlineError):
                await ledger.stub.RecordEvent(request, timeout=0.5)
            other.execute("ROLLBACK")
        await until(lambda: scraped(GATES) == before + 1)
        # Asked again, it is answered by what was recorded.
        await ledger.stub.RecordEvent(request)
        assert len((await ledger.stub.ListEvents(pb.ListEventsRequest())).events) == 1
    assert scraped(GATES) == before + 1
