"""`python -m rlaif.oversight.migrate`, as an installation runs it before its services."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from rlaif.core.errors import UnavailableError
from rlaif.oversight.database import open_engine
from rlaif.oversight.migrate import migrate
from rlaif.oversight.schema import check_schema


def run(url: str | None) -> subprocess.CompletedProcess[str]:
    environment = {key: value for key, value in os.environ.items() if key != "RLAIF_DATABASE_URL"}
    if url is not None:
        environment["RLAIF_DATABASE_URL"] = url
    command = [sys.executable, "-m", "rlaif.oversight.migrate"]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)


def test_an_empty_database_is_brought_up_to_date_and_a_second_time_changes_nothing(database_url: str) -> None:
    first, second = run(database_url), run(database_url)
    assert (first.returncode, second.returncode) == (0, 0), first.stderr + second.stderr
    assert "schema upgraded" in first.stderr
    assert "schema upgraded" not in second.stderr
    check_schema(open_engine(database_url, num_connections=1))


def test_a_missing_or_wrong_url_is_told_and_the_password_is_not() -> None:
    missing = run(None)
    assert (missing.returncode, missing.stderr) == (2, "rlaif.oversight.migrate: settings: database_url is required\n")
    wrong = run("mysql://me:hunter2@host/ledger")
    assert wrong.returncode == 2
    assert "mysql" in wrong.stderr
    assert "hunter2" not in wrong.stderr + wrong.stdout


def test_a_database_that_never_answers_is_given_up() -> None:
    with pytest.raises(UnavailableError, match="the ledger's database cannot be reached"):
        migrate("postgresql+psycopg://me:hunter2@127.0.0.1:1/ledger", patience_seconds=0.0)
