"""The objects of one attempt, as Kubernetes and Kubeflow Trainer read them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

from rlaif_pipelines.jobs import pods
from rlaif_pipelines.jobs.names import INDEX_ANNOTATION
from rlaif_pipelines.jobs.pods import CONTAINER, Object
from rlaif_pipelines.jobs.settings import JobSettings
from rlaif_pipelines.jobs.spec import JobSpec

QUEUE_LABEL: Final = "kueue.x-k8s.io/queue-name"
_JOB_LABEL: Final = "batch.kubernetes.io/job-name"
_MARGIN_SECONDS: Final = 120


@dataclass(frozen=True)
class Attempt:
    """One start of a training: its name, its labels and, where it is a pod of the same namespace, who starts it."""

    spec: JobSpec
    settings: JobSettings
    name: str
    labels: dict[str, str]
    owner: Object | None = None

    @property
    def metadata(self) -> Object:
        """Of the job."""
        queue = {QUEUE_LABEL: self.settings.queue} if self.settings.queue else {}
        owners = {"ownerReferences": [self.owner]} if self.owner else {}
        return {"name": self.name, "labels": self.labels | queue, **owners}

    @property
    def deadline_seconds(self) -> int:
        """When the cluster itself ends the job: later than we do, in case that nobody is left here to do it."""
        return int(self.settings.pending_seconds + self.settings.timeout_seconds) + _MARGIN_SECONDS


def owner_reference(*, api_version: str, kind: str, name: str, uid: str) -> Object:
    """Makes the owned object go when its owner does; blocking would need more rights."""
    return {"apiVersion": api_version, "kind": kind, "name": name, "uid": uid, "blockOwnerDeletion": False}


def indexed_job(attempt: Attempt) -> Object:
    """A Job of one pod a node, none of which is ever replaced: the first failure ends them all.

    No podFailurePolicy: with one, a pod on a lost node counts as failed only when the node is back.
    """
    spec, settings = attempt.spec, attempt.settings
    container: Object = {
        **pods.FIXED_CONTAINER,
        "image": settings.pod.image,
        "imagePullPolicy": settings.pod.image_pull_policy,
        "command": pods.command(spec, settings),
        "env": _torchrun(attempt) + pods.environment(spec, settings),
        "resources": pods.resources(settings.pod),
        "volumeMounts": [*pods.FIXED_MOUNTS, *pods.shared_mounts(settings.pod)],
    }
    priority = {"priorityClassName": settings.pod.priority_class} if settings.pod.priority_class else {}
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": attempt.metadata,
        "spec": {
            "completionMode": "Indexed",
            "completions": settings.num_nodes,
            "parallelism": settings.num_nodes,
            "backoffLimit": 0,
            "activeDeadlineSeconds": attempt.deadline_seconds,
            "ttlSecondsAfterFinished": settings.keep_finished_seconds,
            "template": {
                "metadata": _pod_metadata(attempt),
                "spec": {
                    **pods.FIXED_POD,
                    **pods.placement(settings),
                    **priority,
                    # With the Service of this name, each pod's name in DNS: JOB-INDEX.JOB
                    "subdomain": attempt.name,
                    "containers": [container],
                    "volumes": [
                        *pods.fixed_volumes(shared_memory=settings.pod.shared_memory),
                        *pods.shared_volumes(settings.pod),
                    ],
                },
            },
        },
    }


def headless_service(attempt: Attempt, *, job_uid: str) -> Object:
    """Gives the pods of an Indexed Job their names in DNS, before they are ready; it goes when the Job does."""
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {
            "name": attempt.name,
            "labels": attempt.labels,
            "ownerReferences": [
                owner_reference(api_version="batch/v1", kind="Job", name=attempt.name, uid=job_uid),
            ],
        },
        "spec": {
            "clusterIP": "None",
            "publishNotReadyAddresses": True,
            "selector": {_JOB_LABEL: attempt.name},
            "ports": [{"name": "rendezvous", "port": pods.RENDEZVOUS_PORT}],
        },
    }


def train_job(attempt: Attempt) -> Object:
    """A TrainJob on our TrainingRuntime, which holds what does not change and what a TrainJob cannot say."""
    spec, settings = attempt.spec, attempt.settings
    pod_spec: Object = {
        **pods.placement(settings),
        "containers": [{"name": CONTAINER, "volumeMounts": pods.shared_mounts(settings.pod)}],
        "volumes": [
            # Replaces the runtime's of the same name.
            pods.fixed_volumes(shared_memory=settings.pod.shared_memory)[-1],
            *pods.shared_volumes(settings.pod),
        ],
    }
    template = {"metadata": _pod_metadata(attempt), "spec": pod_spec}
    patch: Any = {"replicatedJobs": [{"name": CONTAINER, "template": {"spec": {"template": template}}}]}
    return {
        "apiVersion": "trainer.kubeflow.org/v1alpha1",
        "kind": "TrainJob",
        "metadata": attempt.metadata,
        "spec": {
            "runtimeRef": {
                "apiGroup": "trainer.kubeflow.org",
                "kind": "TrainingRuntime",
                "name": settings.runtime,
            },
            "activeDeadlineSeconds": attempt.deadline_seconds,
            "trainer": {
                "image": settings.pod.image,
                "command": pods.command(spec, settings),
                "env": pods.environment(spec, settings),
                "numNodes": settings.num_nodes,
                "numProcPerNode": settings.num_processes,
                "resourcesPerNode": pods.resources(settings.pod),
            },
            "runtimePatches": [{"manager": "rlaif/pipelines", "trainingRuntimeSpec": {"template": {"spec": patch}}}],
        },
    }


def _torchrun(attempt: Attempt) -> list[Object]:
    """What Kubeflow Trainer would say."""
    index = {"fieldRef": {"fieldPath": f"metadata.annotations['{INDEX_ANNOTATION}']"}}
    return [
        {"name": "PET_NNODES", "value": str(attempt.settings.num_nodes)},
        {"name": "PET_NPROC_PER_NODE", "value": str(attempt.settings.num_processes)},
        {"name": "PET_NODE_RANK", "valueFrom": index},
        {"name": "PET_MASTER_ADDR", "value": f"{attempt.name}-0.{attempt.name}"},
        {"name": "PET_MASTER_PORT", "value": str(pods.RENDEZVOUS_PORT)},
    ]


def _pod_metadata(attempt: Attempt) -> Object:
    return {"labels": attempt.labels | pods.POD_LABELS, "annotations": dict(pods.POD_ANNOTATIONS)}
