"""The two kinds of job that a cluster can run a training as."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final, Literal

from rlaif_pipelines.jobs.cluster import JOBS, SERVICES, TRAIN_JOBS, Cluster, Kind
from rlaif_pipelines.jobs.manifests import Attempt, headless_service, indexed_job, train_job

Object = dict[str, Any]


@dataclass(frozen=True)
class Launcher:
    """How one kind of job is created and found again."""

    kind: Kind
    create: Callable[[Cluster, Attempt], Object]
    pod_label: str
    """Label of its pods that holds its name."""
    job_suffix: str
    """What the name of the Job under it has more, whose events say why there are no pods."""
    unknown: str
    """What to do where the cluster does not know this kind."""

    def pods(self, name: str) -> str:
        """Selector of its pods."""
        return f"{self.pod_label}={name}"

    def subjects(self, name: str) -> tuple[str, ...]:
        """Names of the objects whose events speak of the job as a whole."""
        return (name, f"{name}{self.job_suffix}") if self.job_suffix else (name,)


def _create_indexed_job(cluster: Cluster, attempt: Attempt) -> Object:
    """The Job first: the Service is its own, and goes with it. Ranks wait for each other's names."""
    job = cluster.create(JOBS, indexed_job(attempt))
    cluster.create(SERVICES, headless_service(attempt, job_uid=job["metadata"]["uid"]))
    return job


def _create_train_job(cluster: Cluster, attempt: Attempt) -> Object:
    return cluster.create(TRAIN_JOBS, train_job(attempt))


LAUNCHERS: Final[dict[Literal["trainjob", "indexed_job"], Launcher]] = {
    "indexed_job": Launcher(
        kind=JOBS,
        create=_create_indexed_job,
        pod_label="batch.kubernetes.io/job-name",
        job_suffix="",
        unknown="it has no batch/v1",
    ),
    "trainjob": Launcher(
        kind=TRAIN_JOBS,
        create=_create_train_job,
        pod_label="jobset.sigs.k8s.io/jobset-name",
        job_suffix="-node-0",
        unknown="install Kubeflow Trainer v2, or set jobs.launcher to indexed_job",
    ),
}
