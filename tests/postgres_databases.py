"""Databases of a PostgreSQL server that a test session started."""

from __future__ import annotations

import itertools

import psycopg

_numbers = itertools.count(1)


def new_database(uri: str, options: str = "") -> str:
    """URL of an empty database of that server, made with these options of CREATE DATABASE."""
    name = f"ledger_of_{next(_numbers)}"
    execute(uri, f"CREATE DATABASE {name} {options}")
    return uri.replace("postgresql://", "postgresql+psycopg://").replace("/postgres?", f"/{name}?")


def execute(uri: str, statement: str) -> None:
    """Has the server do it, outside of any transaction."""
    with psycopg.connect(uri, autocommit=True) as connection:
        connection.execute(statement.encode())
