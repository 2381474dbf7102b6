"""One attempt of a training, against a cluster that answers as it is told."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from rlaif_pipelines.jobs.attempt import AttemptRun
from rlaif_pipelines.jobs.cluster import ClusterError, Listing
from rlaif_pipelines.jobs.launchers import LAUNCHERS
from rlaif_pipelines.jobs.manifests import Attempt
from rlaif_pipelines.jobs.pod_log import RunLog
from rlaif_pipelines.jobs.settings import JobSettings
from rlaif_pipelines.jobs.spec import JobSpec

Object = dict[str, Any]


class Refusing:
    """Has a job without pods; refuses to be watched so many times, after which the job is done."""

    def __init__(self, *refusals: ClusterError) -> None:
        self._refusals = list(refusals)

    def create(self, kind: Any, body: Object) -> Object:
        return {"metadata": {"uid": "1"}}

    def get(self, kind: Any, name: str) -> Object:
        status = {} if self._refusals else {"conditions": [{"type": "Complete", "status": "True"}]}
        return {"spec": {}, "status": status}

    def find(self, kind: Any, **selectors: str) -> Listing:
        return Listing((), "7")

    def watch(self, kind: Any, **more: Any) -> Iterator[tuple[str, Object]]:
        if self._refusals:
            raise self._refusals.pop(0)
        yield from ()


@pytest.mark.parametrize("status", [401, 429, 503])
def test_a_server_that_does_not_let_us_watch_is_not_asked_without_a_pause(
    status: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pauses: list[float] = []
    monkeypatch.setattr("rlaif_pipelines.jobs.attempt.time.sleep", pauses.append)
    reason = "CLUSTER_REFUSED" if status == 401 else "UNREACHABLE"
    cluster: Any = Refusing(*(ClusterError("busy", status=status, reason=reason) for _ in range(3)))
    spec = JobSpec("sft", Path("/rlaif/config.json"), tmp_path / "log")
    attempt = Attempt(spec, JobSettings(), name="rlaif-sft", labels={})
    run = AttemptRun(attempt, launcher=LAUNCHERS["indexed_job"], cluster=cluster, log=RunLog(spec.log_path))
    assert run.run() is None
    assert pauses == [2.0, 2.0, 2.0]
