"""What was changed behind the ledger's back is found, and nobody changes it by accident."""

from __future__ import annotations

import asyncio
import sqlite3
from pathlib import Path
from typing import Any

import psycopg
import pytest
from sqlalchemy import Connection, text
from sqlalchemy.exc import DBAPIError

from ledger_fixtures import ServedLedger, make_label, new_id, serving_ledger, sha256
from rlaif.core.errors import CorruptionError
from rlaif.core.hashchain import GENESIS_SHA256
from rlaif.oversight import verification
from rlaif.oversight.database import open_engine
from rlaif.oversight.records import EventRow
from rlaif.oversight.verify import ChainReport
from rlaif.runtime.telemetry import REGISTRY
from rlaif.v1 import ledger_service_pb2 as pb

ALTERED = pb.LEDGER_FAULT_ALTERED
MISSING = pb.LEDGER_FAULT_MISSING
REORDERED = pb.LEDGER_FAULT_REORDERED
LABEL_MISMATCH = pb.LEDGER_FAULT_LABEL_MISMATCH

SWAP = (
    "UPDATE events SET sequence = -1 WHERE sequence = 2",
    "UPDATE events SET sequence = 2 WHERE sequence = 3",
    "UPDATE events SET sequence = 3 WHERE sequence = -1",
)
COPY_LABEL = (
    "INSERT INTO labels SELECT '{d}', sequence, 9, source, constitution, judge_digest, create_time_us, label, "
    "label_sha256 FROM labels WHERE request_sha256 = '{a}'"
)


# Without NOT NULL, which whoever may alter the schema can take away.
WITHOUT_RULES = (
    "PRAGMA writable_schema = ON",
    "UPDATE sqlite_schema SET sql = replace(sql, ' NOT NULL', '') WHERE type = 'table'",
    "PRAGMA writable_schema = RESET",
)


async def fill(ledger: ServedLedger) -> None:
    """Events 1: labels a and b; 2 and 3: facts; 4: label c."""
    await ledger.record(make_label("a"), make_label("b"))
    for event_type in ("gate_decided", "policy_published"):
        event = pb.Event(event_type=event_type, subject="runs/first")
        await ledger.stub.RecordEvent(pb.RecordEventRequest(event=event, request_id=new_id()))
    await ledger.record(make_label("c"))


def tamper(database_url: str, *statements: str) -> None:
    """Does what an administrator of the database could do: no trigger and no foreign key stops it."""
    digests = {key: sha256(key) for key in "abcd"}
    if database_url.startswith("sqlite"):
        with sqlite3.connect(database_url.removeprefix("sqlite:///")) as connection:
            for table in ("events", "labels", "requests"):
                for verb in ("update", "delete"):
                    connection.execute(f"DROP TRIGGER IF EXISTS {table}_refuse_{verb}")
            for statement in statements:
                connection.execute(statement.format(**digests, blob="x'00'"))
        connection.close()
        return
    with psycopg.connect(database_url.replace("+psycopg", "")) as server:
        server.execute("SET session_replication_role = replica")
        for statement in statements:
            server.execute(statement.format(**digests, blob="'\\x00'").encode())


@pytest.mark.parametrize(
    ("statements", "broken_at", "fault"),
    [
        (("UPDATE events SET subject = 'runs/other' WHERE sequence = 2",), 2, ALTERED),
        (("UPDATE events SET actor = 'somebody' WHERE sequence = 3",), 3, ALTERED),
        (("UPDATE events SET create_time_us = 0 WHERE sequence = 1",), 1, ALTERED),
        (("UPDATE events SET event_type = 'other' WHERE sequence = 4",), 4, ALTERED),
        (("UPDATE events SET payload = {blob} WHERE sequence = 2",), 2, ALTERED),
        (("UPDATE events SET chain_sha256 = 'not even hex' WHERE sequence = 2",), 2, ALTERED),
        (("DELETE FROM events WHERE sequence = 2",), 2, MISSING),
        (("DELETE FROM events WHERE sequence = 1",), 1, MISSING),
        (SWAP, 2, REORDERED),
        (("UPDATE labels SET label = {blob} WHERE request_sha256 = '{b}'",), 1, LABEL_MISMATCH),
        (("UPDATE labels SET constitution = 'constitutions/x' WHERE request_sha256 = '{b}'",), 1, LABEL_MISMATCH),
        (("UPDATE labels SET source = 2 WHERE request_sha256 = '{c}'",), 4, LABEL_MISMATCH),
        (("UPDATE labels SET sequence = 2, position = 0 WHERE request_sha256 = '{c}'",), 2, LABEL_MISMATCH),
        (("DELETE FROM labels WHERE request_sha256 = '{c}'",), 4, LABEL_MISMATCH),
        ((COPY_LABEL,), 1, LABEL_MISMATCH),
    ],
)
async def test_the_first_event_that_does_not_hold_is_named(
    database_url: str, statements: tuple[str, ...], broken_at: int, fault: int
) -> None:
    async with serving_ledger(database_url) as ledger:
        await fill(ledger)
        before = await ledger.verify()
        assert (before.num_events, before.num_labels, before.broken_at) == (4, 3, "")
        assert REGISTRY.get_sample_value("rlaif_oversight_intact_ratio") == 1
        tamper(database_url, *statements)
        after = await ledger.verify()
    assert (after.broken_at, after.fault) == (f"events/{broken_at}", fault)
    assert after.num_events == broken_at - 1
    assert REGISTRY.get_sample_value("rlaif_oversight_intact_ratio") == 0
    assert after.head_sha256 != before.head_sha256


@pytest.mark.parametrize(
    ("statement", "broken_at", "fault"),
    [
        ("UPDATE events SET payload = '{{}}' WHERE sequence = 2", 2, ALTERED),
        ("UPDATE events SET payload = NULL WHERE sequence = 2", 2, ALTERED),
        ("UPDATE events SET subject = x'ff' WHERE sequence = 2", 2, ALTERED),
        ("UPDATE events SET create_time_us = 'now' WHERE sequence = 2", 2, ALTERED),
        ("UPDATE events SET previous_sha256 = 7 WHERE sequence = 2", 2, ALTERED),
        ("UPDATE events SET chain_sha256 = x'00' WHERE sequence = 2", 2, ALTERED),
        ("UPDATE labels SET label = 'text' WHERE request_sha256 = '{b}'", 1, LABEL_MISMATCH),
        ("UPDATE labels SET label = NULL WHERE request_sha256 = '{b}'", 1, LABEL_MISMATCH),
        ("UPDATE labels SET label_sha256 = NULL WHERE request_sha256 = '{b}'", 1, LABEL_MISMATCH),
        ("UPDATE events SET payload = 100000000000 WHERE sequence = 2", 2, ALTERED),
        ("UPDATE labels SET sequence = 'first' WHERE request_sha256 = '{b}'", 1, LABEL_MISMATCH),
        ("UPDATE requests SET sequence = 'first' WHERE sequence = 4", 5, MISSING),
        ("UPDATE labels SET position = 'first' WHERE request_sha256 = '{b}'", 1, LABEL_MISMATCH),
    ],
)
async def test_values_of_another_type_which_sqlite_takes_are_found_too(
    tmp_path: Path, statement: str, broken_at: int, fault: int
) -> None:
    url = f"sqlite:///{tmp_path}/ledger.sqlite"
    async with serving_ledger(url) as ledger:
        await fill(ledger)
        tamper(url, *WITHOUT_RULES, statement)
        report = await ledger.verify()
        assert (report.broken_at, report.fault) == (f"events/{broken_at}", fault)


async def test_an_event_that_was_altered_is_not_answered(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/ledger.sqlite"
    async with serving_ledger(url) as ledger:
        await fill(ledger)
        tamper(url, "UPDATE events SET payload = 'not even JSON' WHERE sequence = 2")
        with pytest.raises(CorruptionError, match="events/2 is not what was recorded"):
            await ledger.stub.ListEvents(pb.ListEventsRequest())


async def test_a_chain_that_was_rebuilt_around_an_event_without_its_labels_does_not_hold(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/ledger.sqlite"
    async with serving_ledger(url) as ledger:
        await ledger.record(make_label("a"))
        event = EventRow("labels_recorded", "anonymous", "", b"{}", create_time_us=0)
        chain = event.link(GENESIS_SHA256)
        tamper(
            url,
            "UPDATE events SET actor = 'anonymous', subject = '', payload = x'7b7d', create_time_us = 0, "
            f"chain_sha256 = '{chain}'",
        )
        report = await ledger.verify()
    assert (report.broken_at, report.fault) == ("events/1", LABEL_MISMATCH)


async def test_events_lost_from_the_end_are_missed_by_what_names_them(database_url: str) -> None:
    async with serving_ledger(database_url) as ledger:
        await fill(ledger)
        tamper(database_url, "DELETE FROM events WHERE sequence = 4")
        report = await ledger.verify()
    assert (report.broken_at, report.fault) == ("events/4", MISSING)


async def test_a_label_that_was_altered_is_not_answered(database_url: str) -> None:
    async with serving_ledger(database_url) as ledger:
        await fill(ledger)
        tamper(database_url, "UPDATE labels SET label_sha256 = '{d}' WHERE request_sha256 = '{a}'")
        if database_url.startswith("sqlite"):
            tamper(database_url, "UPDATE labels SET label = 'text' WHERE request_sha256 = '{b}'")
        for key in "ab" if database_url.startswith("sqlite") else "a":
            with pytest.raises(CorruptionError, match="verify the ledger"):
                await ledger.stub.LookupLabels(pb.LookupLabelsRequest(request_sha256s=[sha256(key)]))


@pytest.mark.parametrize("table", ["events", "labels", "requests"])
@pytest.mark.parametrize("statement", ["DELETE FROM {}", "UPDATE {} SET create_time_us = 0"])
async def test_the_database_refuses_to_change_what_was_recorded(database_url: str, table: str, statement: str) -> None:
    async with serving_ledger(database_url) as ledger:
        await fill(ledger)
        engine = open_engine(database_url, num_connections=1)
        with pytest.raises(DBAPIError, match="append-only"), engine.connect() as connection, connection.begin():
            connection.execute(text(statement.format(table)))
        engine.dispose()
        assert (await ledger.verify()).broken_at == ""


async def test_the_ledger_is_verified_by_itself(database_url: str) -> None:
    async with serving_ledger(database_url, verify_every_hours=0.05 / 3600) as ledger:
        await fill(ledger)
        tamper(database_url, "UPDATE events SET subject = 'runs/other' WHERE sequence = 2")
        async with asyncio.timeout(60):
            while REGISTRY.get_sample_value("rlaif_oversight_intact_ratio") != 0:
                await ledger.stub.ListEvents(pb.ListEventsRequest(page_size=1))
    assert REGISTRY.get_sample_value("rlaif_oversight_verify_interval_seconds") == pytest.approx(0.05)


async def test_a_verification_that_crashes_is_not_the_last(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    verify, crashes = verification.verify_chain, iter([KeyError("labels"), KeyError("labels")])

    def crash_twice(connection: Connection, **more: Any) -> ChainReport:
        if crash := next(crashes, None):
            raise crash
        return verify(connection, **more)

    monkeypatch.setattr(verification, "verify_chain", crash_twice)
    name = "rlaif_oversight_last_verify_timestamp_seconds"
    before = REGISTRY.get_sample_value(name)
    async with (
        serving_ledger(f"sqlite:///{tmp_path}/ledger.sqlite", verify_every_hours=0.01 / 3600) as ledger,
        asyncio.timeout(20),
    ):
        while REGISTRY.get_sample_value(name) == before:
            await ledger.stub.ListEvents(pb.ListEventsRequest(page_size=1))
