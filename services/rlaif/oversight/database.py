"""The ledger's database: SQLite or PostgreSQL, one writer at a time, off the event loop, errors as core errors."""

from __future__ import annotations

import asyncio
import contextvars
import sqlite3
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from sqlalchemy import Connection, Engine, create_engine, event, text
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError, DBAPIError, InterfaceError, NoSuchModuleError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError

from rlaif.core.errors import (
    CorruptionError,
    PreconditionError,
    QuotaExceededError,
    RlaifError,
    SettingsError,
    UnavailableError,
)

Result = TypeVar("Result")

# Any constant will do, as long as every writer of this schema takes the same.
_APPEND_LOCK = 0x726C616966
_BUSY_SECONDS = 10
_CONNECT_SECONDS = 5
_RETRY_FULL_SECONDS = 30.0
_WRITES = "rlaif_writes"

_SQLITE_FULL = "SQLITE_FULL"
_SQLITE_BUSY = ("SQLITE_BUSY", "SQLITE_LOCKED")
_SQLITE_BROKEN = ("SQLITE_CORRUPT", "SQLITE_NOTADB")
_POSTGRES_FULL = ("53100", "53200", "53300")
_POSTGRES_BUSY = ("55P03", "40001", "40P01", "57014")


class Database:
    """Runs transactions in threads: one thread writes, `num_readers` read."""

    def __init__(self, url: str, *, num_readers: int) -> None:
        self.engine = open_engine(url, num_connections=num_readers + 1)
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="ledger-write")
        self._readers = ThreadPoolExecutor(num_readers, thread_name_prefix="ledger-read")

    async def write(self, work: Callable[[Connection], Result]) -> Result:
        """What `work` returns, run as one transaction while nobody else, here or elsewhere, writes."""
        return await self._submit(self._writer, lambda: _within(appending(self.engine), work))

    async def read(self, work: Callable[[Connection], Result]) -> Result:
        """What `work` returns, run over one unchanging view of the database."""
        return await self._submit(self._readers, lambda: _within(reading(self.engine), work))

    async def close(self) -> None:
        """Ends what is running and closes all connections."""
        for pool in (self._writer, self._readers):
            await asyncio.to_thread(pool.shutdown)
        await asyncio.to_thread(self.engine.dispose)

    async def _submit(self, pool: ThreadPoolExecutor, work: Callable[[], Result]) -> Result:
        context = contextvars.copy_context()
        return await asyncio.get_running_loop().run_in_executor(pool, lambda: context.run(work))


def open_engine(url: str, *, num_connections: int) -> Engine:
    """An engine for that URL; SettingsError when it names nothing we can use. Does not connect yet."""
    try:
        parsed = make_url(url)
    except ArgumentError as error:
        raise SettingsError("database_url is not a database URL", field="database_url") from error
    backend = parsed.get_backend_name()
    try:
        if backend == "sqlite":
            return _open_sqlite(parsed, num_connections=num_connections)
        if backend == "postgresql":
            return _open_postgresql(parsed, num_connections=num_connections)
    except (NoSuchModuleError, ModuleNotFoundError) as error:
        raise SettingsError(
            f"database_url: {parsed.drivername} is not installed; use postgresql+psycopg", field="database_url"
        ) from error
    raise SettingsError(f"database_url: {backend} is neither sqlite nor postgresql", field="database_url")


@contextmanager
def appending(engine: Engine) -> Iterator[Connection]:
    """A transaction that nobody else's write runs beside. Database errors become core errors."""
    with _translated(), engine.connect() as connection:
        if engine.dialect.name == "sqlite":
            connection = connection.execution_options(**{_WRITES: True})
        else:
            # What was committed while this one waited for its turn must be seen, whatever the database's default.
            connection = connection.execution_options(isolation_level="READ COMMITTED")
        with connection.begin():
            if engine.dialect.name == "postgresql":
                connection.execute(text("SELECT pg_advisory_xact_lock(:lock)"), {"lock": _APPEND_LOCK})
            yield connection


@contextmanager
def reading(engine: Engine) -> Iterator[Connection]:
    """A transaction that sees one state of the database throughout. Database errors become core errors."""
    with _translated(), engine.connect() as connection:
        if engine.dialect.name == "postgresql":
            connection = connection.execution_options(isolation_level="REPEATABLE READ", postgresql_readonly=True)
        with connection.begin():
            yield connection


def _within(transaction: Any, work: Callable[[Connection], Result]) -> Result:
    with transaction as connection:
        return work(connection)


def _open_sqlite(url: URL, *, num_connections: int) -> Engine:
    path = url.database
    if not path or path == ":memory:":
        raise SettingsError("database_url: a ledger needs a file, sqlite:////path/to/file", field="database_url")
    if not Path(path).resolve().parent.is_dir():
        raise SettingsError(
            f"database_url: the folder {Path(path).resolve().parent} does not exist", field="database_url"
        )
    engine = create_engine(
        url, connect_args={"timeout": _BUSY_SECONDS}, pool_size=num_connections, max_overflow=0, hide_parameters=True
    )

    @event.listens_for(engine, "connect")
    def set_up(connection: sqlite3.Connection, _record: Any) -> None:
        # The driver would begin transactions by itself, and too late: `begin` below does.
        connection.isolation_level = None
        for pragma in ("journal_mode = WAL", "synchronous = FULL", "foreign_keys = ON"):
            connection.execute(f"PRAGMA {pragma}")

    @event.listens_for(engine, "begin")
    def begin(connection: Connection) -> None:
        # A deferred transaction that reads and then writes can fail for good when another one wrote between.
        writes = connection.get_execution_options().get(_WRITES)
        connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")

    return engine


def _open_postgresql(url: URL, *, num_connections: int) -> Engine:
    engine = create_engine(
        url,
        connect_args={
            "connect_timeout": _CONNECT_SECONDS,
            "options": f"-c lock_timeout={_BUSY_SECONDS}s",
            # Of a database without an encoding, the driver would otherwise give bytes for texts.
            "client_encoding": "UTF8",
            # A database host that went away without a word is noticed in half a minute: by default, in a quarter hour.
            "keepalives_idle": 10,
            "keepalives_interval": 5,
            "keepalives_count": 3,
            "tcp_user_timeout": 25_000,
        },
        pool_size=num_connections,
        max_overflow=0,
        # A database that was restarted must not cost a call.
        pool_pre_ping=True,
        hide_parameters=True,
    )

    @event.listens_for(engine, "connect")
    def check_encoding(connection: Any, _record: Any) -> None:
        encoding = connection.info.parameter_status("server_encoding")
        if encoding != "UTF8":
            connection.close()
            raise SettingsError(
                f"database_url: the database's encoding is {encoding}, which cannot hold every text; make it anew: "
                "CREATE DATABASE … ENCODING 'UTF8' TEMPLATE template0",
                field="database_url",
            )

    return engine


@contextmanager
def _translated() -> Iterator[None]:
    try:
        yield
    except DBAPIError as error:
        raise _core_error(error) from error
    except PoolTimeoutError as error:
        raise _busy() from error


def _core_error(error: DBAPIError) -> RlaifError:
    cause: Any = error.orig
    state = str(getattr(cause, "sqlite_errorname", None) or getattr(cause, "sqlstate", None) or "")
    if state == _SQLITE_FULL or state in _POSTGRES_FULL:
        return QuotaExceededError(
            "the ledger's storage is full; nothing was recorded",
            retry_after_seconds=_RETRY_FULL_SECONDS,
            reason="STORAGE_FULL",
        )
    if state.startswith(_SQLITE_BUSY) or state in _POSTGRES_BUSY:
        return _busy()
    if state.startswith(_SQLITE_BROKEN):
        return CorruptionError("the ledger's file is not a whole SQLite database", reason="STORAGE_CORRUPT")
    if state.startswith(("SQLITE_READONLY", "SQLITE_CANTOPEN", "SQLITE_PERM")):
        return PreconditionError("the ledger's file cannot be written", reason="STORAGE_READ_ONLY")
    if isinstance(error, OperationalError | InterfaceError) and not state.startswith("SQLITE_ERROR"):
        return UnavailableError("the ledger's database cannot be reached", reason="LEDGER_UNREACHABLE")
    # The database's own words may hold data: they go to the log, through the cause, and not to the caller.
    return RlaifError("the ledger's database refused the statement", reason="DATABASE_ERROR")


def _busy() -> UnavailableError:
    return UnavailableError("the ledger is busy with other writers", reason="LEDGER_BUSY")
