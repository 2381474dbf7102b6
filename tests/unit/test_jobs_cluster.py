"""The way to a cluster: what is missing is told, and what a busy server is asked again."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from kubernetes import client

from rlaif.core.errors import SettingsError
from rlaif_pipelines.jobs.cluster import JOBS, Cluster, ClusterError


class Api:
    """Answers with what it is given, one after the other."""

    def __init__(self, *answers: Any) -> None:
        self._answers = list(answers)
        self.paths: list[tuple[str, str]] = []

    def call_api(self, path: str, method: str, **more: Any) -> Any:
        self.paths.append((method, path))
        answer = self._answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer


def refusal(status: int, body: str = "") -> client.ApiException:
    error = client.ApiException(status=status, reason="No")
    error.body = body
    return error


def cluster(*answers: Any, monkeypatch: pytest.MonkeyPatch) -> tuple[Cluster, Api]:
    monkeypatch.setattr("rlaif_pipelines.jobs.cluster.time.sleep", lambda seconds: None)
    api = Api(*answers)
    return Cluster(api, namespace="training"), api  # type: ignore[arg-type]


def test_without_a_cluster_the_fix_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "none"))
    with pytest.raises(SettingsError, match="run in a pod with a service account, or set KUBECONFIG"):
        Cluster.connect()


@pytest.mark.parametrize("status", [429, 500, 503, 504])
def test_a_server_that_is_busy_is_asked_again(status: int, monkeypatch: pytest.MonkeyPatch) -> None:
    found, api = cluster(refusal(status), refusal(status), {"metadata": {}}, monkeypatch=monkeypatch)
    assert found.get(JOBS, "a") == {"metadata": {}}
    assert api.paths == [("GET", "/apis/batch/v1/namespaces/training/jobs/a")] * 3


@pytest.mark.parametrize(
    ("status", "body", "sentence"),
    [
        (403, '{"message": "jobs is forbidden: exceeded quota"}', "jobs is forbidden: exceeded quota"),
        (401, '{"message": "Unauthorized"}', "the cluster does not know who asks: Unauthorized"),
        (409, "not JSON", "409 No"),
    ],
)
def test_a_refusal_is_told_in_the_servers_words(
    status: int, body: str, sentence: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    found, _ = cluster(refusal(status, body), monkeypatch=monkeypatch)
    with pytest.raises(ClusterError) as caught:
        found.get(JOBS, "a")
    assert (caught.value.message, caught.value.status) == (sentence, status)


def test_a_creation_whose_answer_was_lost_is_not_made_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    made = {"metadata": {"name": "a", "uid": "1"}}
    found, api = cluster(OSError("reset"), refusal(409), made, monkeypatch=monkeypatch)
    assert found.create(JOBS, {"metadata": {"name": "a"}}) == made
    assert [method for method, _ in api.paths] == ["POST", "POST", "GET"]


def test_what_is_gone_already_is_removed(monkeypatch: pytest.MonkeyPatch) -> None:
    found, _ = cluster(refusal(404), monkeypatch=monkeypatch)
    found.delete(JOBS, "a")
