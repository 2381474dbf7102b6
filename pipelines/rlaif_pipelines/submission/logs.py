"""What the tasks of a run print: from the Kubeflow Pipelines API, else from the pods through the Kubernetes API."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

from rlaif.core.errors import NotFoundError, RlaifError, SettingsError
from rlaif_pipelines.submission.client import PipelinesClient
from rlaif_pipelines.submission.runs import Task

MOST_BYTES: Final = 16 << 20
"""Of a log, only its end of this length is read."""
_MAIN: Final = "main"
_RUN_LABEL: Final = "pipeline/runid"
_NODE_ANNOTATION: Final = "workflows.argoproj.io/node-name"
_MOST_LINES: Final = 200_000


@dataclass(frozen=True)
class LogReader:
    """Reads logs of one run. Where both ways fail, the error tells what each said."""

    client: PipelinesClient
    run_id: str
    use_kubernetes: bool = True

    def read(self, task: Task) -> str:
        """What the task has printed, in its last attempt; NotFoundError where nobody has it."""
        said = []
        for pod in task.pods:
            try:
                return _text(self.client.log_bytes(self.run_id, pod, most_bytes=MOST_BYTES))
            except RlaifError as error:
                said.append(f"the Kubeflow Pipelines API: {error.message}")
        if not task.pods:
            said.append("the Kubeflow Pipelines API names no pod of it")
        if self.use_kubernetes:
            try:
                return self._from_pod(task)
            except NotFoundError as error:
                said.append(f"the Kubernetes API: {error.message}")
        # Guessed names of pods fail alike; the last word is enough.
        raise NotFoundError(f"no log of task {task.name}: {'; '.join(said[-2:])}")

    def _from_pod(self, task: Task) -> str:
        from rlaif_pipelines.jobs.cluster import PODS, Cluster, ClusterError

        try:
            cluster = Cluster.connect(namespace=self.client.connection.namespace or None)
            cluster.patience_seconds = 0.0
            names = list(_pods_of(cluster.find(PODS, labels=f"{_RUN_LABEL}={self.run_id}").items, task))
            if not names:
                raise NotFoundError(f"no pod of the task is left in namespace {cluster.namespace}")
            with cluster.log(names[-1], container=_MAIN, num_lines=_MOST_LINES) as lines:
                # Each behind the time it was written.
                return _text(b"".join(line.partition(b" ")[2] + b"\n" for line in lines)[-MOST_BYTES:])
        except (ClusterError, SettingsError) as error:
            raise NotFoundError(error.message) from None


def _pods_of(pods: Iterable[Mapping[str, Any]], task: Task) -> Iterator[str]:
    """Pods in which the task ran, the oldest first."""
    for pod in sorted(pods, key=lambda pod: str(pod["metadata"].get("creationTimestamp"))):
        name = pod["metadata"]["name"]
        node = pod["metadata"].get("annotations", {}).get(_NODE_ANNOTATION, "").split(".")
        if name in task.pods or (task.name in node and node[-1].startswith("executor")):
            yield name


def _text(data: bytes) -> str:
    return data.decode("utf-8", errors="replace")
