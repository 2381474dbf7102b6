"""The stage that always comes last writes its report whatever else fails."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from rlaif_pipelines.context import RunContext
from rlaif_pipelines.jobs.cluster import ClusterError
from rlaif_pipelines.settings import RunSettings, ServiceAddresses
from rlaif_pipelines.stages import report
from rlaif_pipelines.stages.prepare import create_run


def test_a_cluster_that_is_away_keeps_no_run_from_its_report(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def away(root: Path, jobs: Any) -> list[str]:
        raise ClusterError("the API server does not answer", status=503)

    monkeypatch.setattr(report, "release", away)
    context: RunContext = create_run(RunSettings(out=tmp_path / "run"), ServiceAddresses())
    result = report.report(context)
    assert result.path("report.html").is_file()
    events = [json.loads(line) for line in (context.root / "events.jsonl").read_text().splitlines()]
    assert "jobs of this run may be left in the cluster: the API server does not answer" in [
        event["message"] for event in events
    ]
