"""Waiting for services that `rlaif up` and `rlaif run` start."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from rlaif.cli import services
from rlaif.core.errors import DeadlineError


class Idle:
    """A process that lives and never gets ready."""

    def raise_if_dead(self) -> None:
        pass


@pytest.mark.parametrize("bound", [False, True], ids=["no port", "a port that does not answer"])
def test_a_service_that_is_not_ready_in_time_is_named_with_its_log(
    bound: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def launch(name: str, config: Path) -> Idle:
        if bound:
            announced = {"address": "127.0.0.1:1", "pid": 1}
            services.announce_path(tmp_path, name).write_text(json.dumps(announced))
        return Idle()

    monkeypatch.setattr(services, "START_SECONDS", 0.2)
    with pytest.raises(DeadlineError, match=rf"oversight is not ready .*\(log: {tmp_path}/logs/oversight\.log\)"):
        services.start_oversight(tmp_path, database=tmp_path / "ledger.sqlite", launch=launch)
