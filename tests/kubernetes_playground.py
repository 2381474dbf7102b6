"""A cluster of one test: an API server, controllers and nodes on loopback, and a volume for run folders."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from kubernetes_api import ApiServer, Store, serve
from kubernetes_nodes import Nodes
from rlaif_pipelines.jobs.cluster import Cluster
from rlaif_pipelines.jobs.remote import run_remote
from rlaif_pipelines.jobs.settings import JobSettings
from rlaif_pipelines.jobs.spec import JobResult, JobSpec

NAMESPACE = "training"


class Playground:
    """What tests touch. Jobs have two nodes, and are impatient."""

    def __init__(self, server: ApiServer, nodes: Nodes, *, folder: Path, url: str) -> None:
        self.server = server
        self.store = server.store
        self.nodes = nodes
        self.volume = folder / "volume"
        self.run_folder = self.volume / "runs" / "first"
        self.config_path = self.run_folder / "stages" / "sft" / "config.json"
        self.log_path = self.run_folder / "logs" / "sft.log"
        self.config_path.parent.mkdir(parents=True)
        self.kubeconfig = folder / "kubeconfig"
        self.kubeconfig.write_text(_kubeconfig(url))
        self.lines: list[str] = []

    @property
    def spec(self) -> JobSpec:
        """A training of a stage `sft`."""
        return JobSpec("sft", self.config_path, self.log_path, name="sft")

    def settings(self, launcher: str, *, pod: dict[str, Any] | None = None, **given: Any) -> JobSettings:
        """Settings of a job here."""
        own = {"image": "trainer:1", "volume_claim": "runs", "mount_path": str(self.volume)}
        impatient = {"num_nodes": 2, "retry_pause_seconds": 0, "grace_seconds": 1}
        return JobSettings.model_validate(impatient | given | {"launcher": launcher, "pod": own | (pod or {})})

    def cluster(self, *, own_namespace: str | None = None) -> Cluster:
        """The way there, by the kubeconfig that KUBECONFIG names."""
        found = Cluster.connect()
        found.patience_seconds, found.own_namespace = 2.0, own_namespace
        return found

    def run(self, launcher: str = "indexed_job", **given: Any) -> JobResult:
        """Runs the training there; `lines` gets what it prints."""
        return run_remote(
            self.spec, self.settings(launcher, **given), cluster=self.cluster(), on_line=self.lines.append
        )

    def left(self) -> list[str]:
        """Whatever is there that a job or its controllers made."""
        kinds = ("jobs", "pods", "services", "trainjobs", "jobsets")
        return [made["metadata"]["name"] for kind in kinds for made in self.store.find(kind)]


@pytest.fixture
def playground(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Playground]:
    """An empty cluster, which the kubeconfig knows."""
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "kubeconfig"))
    server = ApiServer(Store())
    nodes = Nodes(server.store, folder=tmp_path)
    server.log = nodes.log
    with nodes:
        for url in serve(server):
            yield Playground(server, nodes, folder=tmp_path, url=url)


def _kubeconfig(url: str) -> str:
    context = {"cluster": "here", "user": "launcher", "namespace": NAMESPACE}
    return yaml.safe_dump(
        {
            "apiVersion": "v1",
            "kind": "Config",
            "current-context": "here",
            "clusters": [{"name": "here", "cluster": {"server": url}}],
            "users": [{"name": "launcher", "user": {"token": "t"}}],
            "contexts": [{"name": "here", "context": context}],
        }
    )
