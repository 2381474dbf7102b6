"""Work of which nobody wants the end any more: it frees its reader, and holds up no stop."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Connection, Row

from label_fixtures import FIRST, human_label, judge_label, pair_subject
from ledger_fixtures import ServedLedger, make_label, new_id, serving_ledger
from rlaif.client.channel import open_aio_channel
from rlaif.core.errors import DeadlineError
from rlaif.oversight import quality, verification, verify
from rlaif.oversight.verify import ChainReport
from rlaif.v1 import ledger_service_pb2 as pb
from rlaif.v1 import review_service_pb2, review_service_pb2_grpc
from tls_fixtures import until

NUM_EVENTS = 40


@pytest.fixture
async def ledger(tmp_path: Path) -> AsyncIterator[ServedLedger]:
    async with serving_ledger(f"sqlite:///{tmp_path}/ledger.sqlite") as served:
        for number in range(NUM_EVENTS):
            await served.record(make_label(str(number)))
        yield served


class SlowChain:
    """The verification as it is, but for a page of one event that takes a while."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.num_pages = self.num_running = self.most_running = 0
        self._list_events, self._verify_chain = verify.list_events, verification.verify_chain
        monkeypatch.setattr(verify, "_EVENTS_AT_ONCE", 1)
        monkeypatch.setattr(verify, "list_events", self.list_events)
        monkeypatch.setattr(verification, "verify_chain", self.verify_chain)

    def list_events(self, connection: Connection, **page: Any) -> Sequence[Row[Any]]:
        self.num_pages += 1
        time.sleep(0.05)
        return self._list_events(connection, **page)

    def verify_chain(self, *arguments: Any, **options: Any) -> ChainReport:
        self.num_running += 1
        self.most_running = max(self.most_running, self.num_running)
        try:
            return self._verify_chain(*arguments, **options)
        finally:
            self.num_running -= 1


async def test_a_verification_whose_caller_left_ends_and_keeps_no_reader(
    ledger: ServedLedger, monkeypatch: pytest.MonkeyPatch
) -> None:
    chain = SlowChain(monkeypatch)
    for _ in range(5):
        with pytest.raises(DeadlineError):
            await ledger.stub.VerifyLedger(pb.VerifyLedgerRequest(), timeout=0.3)
    async with asyncio.timeout(20):
        await until(lambda: not chain.num_running)
    assert 0 < chain.num_pages < NUM_EVENTS, "none was read to its end"
    # One that was given up ends at its next page, when another may have begun.
    assert chain.most_running <= 2


async def test_a_service_that_stops_waits_for_no_verification(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    url = f"sqlite:///{tmp_path}/ledger.sqlite"
    async with serving_ledger(url) as ledger:
        for number in range(NUM_EVENTS):
            await ledger.record(make_label(str(number)))
    chain = SlowChain(monkeypatch)
    async with serving_ledger(url, verify_every_hours=0.01 / 3600), asyncio.timeout(20):
        await until(lambda: chain.num_pages > 2)
    assert chain.num_running == 0
    assert chain.num_pages < NUM_EVENTS


async def test_a_service_that_stops_waits_for_no_label_quality(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    url = f"sqlite:///{tmp_path}/ledger.sqlite"
    pairs = [pair_subject(f"Question {number}", "Yes.", "No.") for number in range(NUM_EVENTS)]
    num_read, thaw = 0, quality.ledger.thaw

    def slow_thaw(row: Row[Any]) -> pb.Label:
        nonlocal num_read
        num_read += 1
        time.sleep(0.02)
        return thaw(row)

    async with serving_ledger(url) as ledger:
        await ledger.record(*(judge_label(pair, when_first=0.9, when_second=0.7) for pair in pairs))
        votes = [human_label(pair, FIRST) for pair in pairs]
        await ledger.stub.ImportLabels(pb.ImportLabelsRequest(labels=votes, request_id=new_id()))
        monkeypatch.setattr(quality.ledger, "thaw", slow_thaw)
        async with open_aio_channel(ledger.client) as channel:
            with pytest.raises(DeadlineError):
                await review_service_pb2_grpc.ReviewServiceStub(channel).GetLabelQuality(
                    review_service_pb2.GetLabelQualityRequest(), timeout=0.3
                )
    assert 0 < num_read < 2 * NUM_EVENTS
