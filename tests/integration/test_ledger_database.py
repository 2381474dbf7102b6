"""Several writers, a schema brought up to date, and databases that are locked, full, absent or broken."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from sqlalchemy import Connection, make_url, text

from ledger_fixtures import make_label, new_id, serving_ledger
from postgres_databases import execute, new_database
from rlaif.core.errors import (
    CorruptionError,
    PreconditionError,
    QuotaExceededError,
    RlaifError,
    SettingsError,
    UnavailableError,
)
from rlaif.oversight import database
from rlaif.oversight.database import Database, appending, open_engine, reading
from rlaif.oversight.schema import check_schema, upgrade_schema
from rlaif.oversight.settings import OversightSettings
from rlaif.oversight.tables import metadata
from rlaif.runtime.settings import load_settings


async def test_writers_in_several_processes_make_one_chain(database_url: str) -> None:
    async with serving_ledger(database_url) as one, serving_ledger(database_url) as other:
        # Every label is offered twice, from both sides at once.
        answers = await asyncio.gather(
            *[
                ledger.record(make_label(str(batch)), make_label(f"{batch}+"))
                for batch in range(20)
                for ledger in (one, other)
            ]
        )
        report = await one.verify()
    assert sum(answer.num_appended for answer in answers) == 40
    assert (report.num_events, report.num_labels, report.broken_at) == (20, 40, "")


async def test_one_request_id_used_by_several_writers_at_once_is_recorded_once(database_url: str) -> None:
    request_id = new_id()
    async with serving_ledger(database_url) as one, serving_ledger(database_url) as other:
        first, second = await asyncio.gather(
            *[ledger.record(make_label(), request_id=request_id) for ledger in (one, other)]
        )
        assert first == second
        assert (await one.verify()).num_events == 1


async def test_a_failed_transaction_leaves_nothing(database_url: str) -> None:
    engine = open_engine(database_url, num_connections=1)
    upgrade_schema(engine)

    def fail(connection: Connection) -> None:
        connection.execute(text("INSERT INTO events VALUES (1, 'x', '', '', '', 0, '', '')"))
        raise RuntimeError("half-way")

    with pytest.raises(RuntimeError, match="half-way"), appending(engine) as connection:
        fail(connection)
    with reading(engine) as connection:
        assert connection.execute(text("SELECT count(*) FROM events")).scalar() == 0
    engine.dispose()


def test_migrations_make_the_tables_the_code_uses(database_url: str) -> None:
    engine = open_engine(database_url, num_connections=1)
    with pytest.raises(SettingsError, match="schema is absent") as caught:
        check_schema(engine)
    assert caught.value.field == "migrate"
    upgrade_schema(engine)
    check_schema(engine)
    with reading(engine) as connection:
        assert compare_metadata(MigrationContext.configure(connection), metadata) == []
    engine.dispose()


def test_a_schema_of_a_later_version_is_left_alone_and_told(database_url: str) -> None:
    engine = open_engine(database_url, num_connections=1)
    upgrade_schema(engine)
    with appending(engine) as connection:
        connection.execute(text("UPDATE alembic_version SET version_num = 'ledger_9999'"))
    for use in (check_schema, upgrade_schema):
        with pytest.raises(SettingsError, match="schema is ledger_9999, of a later version of rlaif") as caught:
            use(engine)
        assert "migrate=true" not in caught.value.message
    engine.dispose()


def test_processes_that_migrate_at_once_do_not_collide(database_url: str) -> None:
    engines = [open_engine(database_url, num_connections=1) for _ in range(4)]
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(upgrade_schema, engines))
    for engine in engines:
        check_schema(engine)
        engine.dispose()


def test_a_writer_that_waits_too_long_is_told_to_try_again(database_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(database, "_BUSY_SECONDS", 1)
    holder, waiter = (open_engine(database_url, num_connections=1) for _ in range(2))
    upgrade_schema(holder)
    with appending(holder), pytest.raises(UnavailableError) as caught, appending(waiter):
        pytest.fail("two writers at once")
    assert caught.value.reason == "LEDGER_BUSY"
    for engine in (holder, waiter):
        engine.dispose()


async def test_a_full_disk_is_said_and_nothing_is_half_written(tmp_path: Path) -> None:
    store = Database(f"sqlite:///{tmp_path}/ledger.sqlite", num_readers=1)
    upgrade_schema(store.engine)

    def fill(connection: Connection) -> None:
        # SQLite's own bound stands in for the disk's: the error is the same SQLITE_FULL.
        connection.execute(text("PRAGMA max_page_count = 20"))
        for sequence in range(1, 100):
            connection.execute(
                text("INSERT INTO events VALUES (:sequence, 'x', '', '', :payload, 0, '', '')"),
                {"sequence": sequence, "payload": b"x" * 4096},
            )

    with pytest.raises(QuotaExceededError) as caught:
        await store.write(fill)
    assert caught.value.reason == "STORAGE_FULL"
    assert await store.read(lambda connection: connection.execute(text("SELECT count(*) FROM events")).scalar()) == 0
    await store.close()


def test_files_that_are_no_ledger_are_refused(tmp_path: Path) -> None:
    (tmp_path / "text.sqlite").write_text("this is not a database" * 100)
    engine = open_engine(f"sqlite:///{tmp_path}/text.sqlite", num_connections=1)
    with pytest.raises(CorruptionError):
        upgrade_schema(engine)
    (tmp_path / "folder.sqlite").mkdir()
    engine = open_engine(f"sqlite:///{tmp_path}/folder.sqlite", num_connections=1)
    with pytest.raises(PreconditionError):
        upgrade_schema(engine)


def test_a_server_that_is_not_there_is_unavailable() -> None:
    engine = open_engine("postgresql+psycopg://nobody:secret@127.0.0.1:1/none", num_connections=1)
    with pytest.raises(UnavailableError) as caught:
        check_schema(engine)
    assert caught.value.reason == "LEDGER_UNREACHABLE"
    assert "secret" not in str(caught.value)


@pytest.mark.postgres
@pytest.mark.parametrize("encoding", ["SQL_ASCII", "LATIN1"])
def test_a_database_that_cannot_hold_every_text_is_refused_with_what_to_do(postgres_uri: str, encoding: str) -> None:
    url = new_database(postgres_uri, f"ENCODING '{encoding}' LC_COLLATE 'C' LC_CTYPE 'C' TEMPLATE template0")
    engine = open_engine(url, num_connections=1)
    for use in (upgrade_schema, check_schema):
        with pytest.raises(SettingsError) as caught:
            use(engine)
        assert caught.value.field == "database_url"
        assert f"the database's encoding is {encoding}" in caught.value.message
        assert "ENCODING 'UTF8'" in caught.value.message
    engine.dispose()


@pytest.mark.postgres
def test_the_driver_is_told_to_notice_a_host_that_went_away(postgres_uri: str) -> None:
    engine = open_engine(new_database(postgres_uri), num_connections=1)
    with engine.connect() as connection:
        driver: Any = connection.connection.driver_connection
        told = driver.info.get_parameters()
    engine.dispose()
    idle, interval, count = (int(told[f"keepalives_{name}"]) for name in ("idle", "interval", "count"))
    assert idle + interval * count <= 30
    assert int(told["tcp_user_timeout"]) <= 30_000


@pytest.mark.postgres
async def test_writers_make_one_chain_whatever_isolation_the_database_gives_by_default(postgres_uri: str) -> None:
    url = new_database(postgres_uri)
    execute(
        postgres_uri, f"ALTER DATABASE {make_url(url).database} SET default_transaction_isolation TO 'repeatable read'"
    )
    async with serving_ledger(url) as one, serving_ledger(url) as other:
        await asyncio.gather(*[each.record(make_label(str(n))) for n in range(20) for each in (one, other)])
        assert (await one.verify()).num_events == 20


def test_a_statement_the_database_refuses_tells_the_caller_nothing_of_it(database_url: str) -> None:
    engine = open_engine(database_url, num_connections=1)
    with pytest.raises(RlaifError) as caught, reading(engine) as connection:
        connection.execute(text("SELECT secret FROM nowhere"))
    assert caught.value.reason == "DATABASE_ERROR"
    assert "nowhere" not in caught.value.message
    engine.dispose()


@pytest.mark.parametrize(
    "url", ["", "ledger.sqlite", "sqlite://", "sqlite:////no/such/folder/l.sqlite", "mysql://x/y", "postgresql+no://x"]
)
def test_a_wrong_database_url_is_refused(url: str) -> None:
    with pytest.raises(SettingsError) as caught:
        open_engine(load_settings(OversightSettings, None, [f"database_url={url}"]).database_url, num_connections=1)
    assert caught.value.field == "database_url"


def test_the_database_url_may_come_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RLAIF_DATABASE_URL", "postgresql+psycopg://host/name")
    assert load_settings(OversightSettings).migrate is False
    assert load_settings(OversightSettings, None, ["database_url=sqlite:////l.sqlite"]).migrate is True
    monkeypatch.delenv("RLAIF_DATABASE_URL")
    with pytest.raises(SettingsError, match="database_url is required"):
        load_settings(OversightSettings)


@pytest.mark.parametrize(
    ("arguments", "code", "sentence"),
    [
        (["--set", "database_url=sqlite:////no/such/folder/l.sqlite"], 2, "the folder /no/such/folder does not exist"),
        (["--set", "database_url=sqlite:////{tmp_path}/l.sqlite", "--set", "migrate=false"], 2, "schema is absent"),
        (["--set", "database_url=postgresql+psycopg://127.0.0.1:1/x"], 1, "database cannot be reached"),
    ],
)
def test_a_service_that_cannot_start_ends_with_one_sentence(
    tmp_path: Path, arguments: list[str], code: int, sentence: str
) -> None:
    ended = subprocess.run(
        [sys.executable, "-m", "rlaif.oversight", *[part.format(tmp_path=tmp_path) for part in arguments]],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert ended.returncode == code
    last = ended.stderr.strip().splitlines()[-1]
    assert last.startswith("oversight: ")
    assert sentence in last
    assert "Traceback" not in last
