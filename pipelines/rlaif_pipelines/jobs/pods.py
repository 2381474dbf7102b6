"""What the pods of a training are like, whichever kind of job makes them."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

from rlaif.core.errors import InvalidInputError
from rlaif_pipelines.jobs.settings import JobSettings, PodSettings
from rlaif_pipelines.jobs.spec import JobSpec
from rlaif_pipelines.training.termination import TERMINATION_VARIABLE

Object = dict[str, Any]

CONTAINER: Final = "node"
"""Kubeflow Trainer expects this name."""
RENDEZVOUS_PORT: Final = 29500
METRICS_PORT: Final = 9090
TERMINATION_PATH: Final = "/dev/termination-log"
USER: Final = 65532

POD_ANNOTATIONS: Final = {
    # One pod moved costs all of them their steps since the last checkpoint.
    "cluster-autoscaler.kubernetes.io/safe-to-evict": "false",
    "karpenter.sh/do-not-disrupt": "true",
}
POD_LABELS: Final = {"sidecar.istio.io/inject": "false"}
"""A sidecar never ends, so that the job would not, and stands between the processes."""

FIXED_POD: Final[Object] = {
    "restartPolicy": "Never",
    "automountServiceAccountToken": False,
    # Else Services named rlaif-… become variables named RLAIF_….
    "enableServiceLinks": False,
    "securityContext": {
        "runAsNonRoot": True,
        "runAsUser": USER,
        "runAsGroup": USER,
        "fsGroup": USER,
        "fsGroupChangePolicy": "OnRootMismatch",
        "seccompProfile": {"type": "RuntimeDefault"},
    },
}
FIXED_CONTAINER: Final[Object] = {
    "name": CONTAINER,
    "terminationMessagePath": TERMINATION_PATH,
    "terminationMessagePolicy": "FallbackToLogsOnError",
    "ports": [
        {"name": "rendezvous", "containerPort": RENDEZVOUS_PORT},
        {"name": "metrics", "containerPort": METRICS_PORT},
    ],
    "securityContext": {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "runAsNonRoot": True,
        "capabilities": {"drop": ["ALL"]},
    },
}
FIXED_MOUNTS: Final = (
    {"name": "tmp", "mountPath": "/tmp"},  # noqa: S108 - of the pod's own
    {"name": "state", "mountPath": "/var/lib/rlaif"},
    {"name": "shm", "mountPath": "/dev/shm"},  # noqa: S108 - of the pod's own
)


def fixed_volumes(*, shared_memory: str) -> list[Object]:
    """Volumes of the pod's own. Without the last, processes would have 64 MB to talk through."""
    return [
        {"name": "tmp", "emptyDir": {}},
        {"name": "state", "emptyDir": {}},
        {"name": "shm", "emptyDir": {"medium": "Memory", "sizeLimit": shared_memory}},
    ]


def command(spec: JobSpec, settings: JobSettings) -> list[str]:
    """torchrun; which node it is, of how many, it reads from PET_*. InvalidInputError when no pod could see the files.

    It waits for its peers as long as their pods may take to start.
    """
    _check_shared(spec.config_path, settings.pod)
    rendezvous = ["--rdzv-conf", f"timeout={int(settings.pending_seconds) + 60}"]
    training = ["-m", "rlaif_pipelines.training", spec.verb, "--config", str(spec.config_path.absolute())]
    return ["python", "-m", "torch.distributed.run", *rendezvous, *training]


def environment(spec: JobSpec, settings: JobSettings) -> list[Object]:
    """Variables of the training's container, but for those that tell torchrun its place."""
    values = {
        "HOME": "/var/lib/rlaif",
        "PYTHONUNBUFFERED": "1",
        # Torch counts the node's processors, not the pod's.
        "OMP_NUM_THREADS": str(max(1, _whole_cpus(settings.pod.cpu) // settings.num_processes)),
        "TOKENIZERS_PARALLELISM": "false",
        "HF_HUB_OFFLINE": "1",  # training reads folders only
        "RLAIF_CACHE": "/var/lib/rlaif/artifacts",
        TERMINATION_VARIABLE: TERMINATION_PATH,
        **settings.pod.environment,
        **spec.environment,
    }
    plain = [{"name": name, "value": value} for name, value in values.items()]
    return plain + [
        {"name": name, "valueFrom": {"secretKeyRef": dict(zip(("name", "key"), place.split("/", 1), strict=True))}}
        for name, place in settings.pod.secret_environment.items()
    ]


def resources(pod: PodSettings) -> Object:
    """Limits equal to requests, given both: the pod is evicted last, and Trainer counts processes by either."""
    amounts = {"cpu": pod.cpu, "memory": pod.memory}
    if pod.gpus:
        amounts[pod.gpu_resource] = str(pod.gpus)
    return {"requests": amounts, "limits": dict(amounts)}


def shared_volumes(pod: PodSettings) -> list[Object]:
    """The volume of run folders, then Secrets."""
    runs = {"name": "runs", "persistentVolumeClaim": {"claimName": pod.volume_claim}}
    secrets = [
        {"name": f"secret-{number}", "secret": {"secretName": name, "defaultMode": 0o440}}
        for number, name in enumerate(pod.secret_files.values())
    ]
    return [runs, *secrets]


def shared_mounts(pod: PodSettings) -> list[Object]:
    """Where they are."""
    runs = {"name": "runs", "mountPath": pod.mount_path}
    secrets = [
        {"name": f"secret-{number}", "mountPath": path, "readOnly": True}
        for number, path in enumerate(pod.secret_files)
    ]
    return [runs, *secrets]


def tolerations(settings: JobSettings) -> list[Object]:
    """What the settings say; and a node that is out of touch is given up sooner than after the usual five minutes."""
    lost = [
        {
            "key": f"node.kubernetes.io/{state}",
            "operator": "Exists",
            "effect": "NoExecute",
            "tolerationSeconds": settings.node_lost_seconds,
        }
        for state in ("not-ready", "unreachable")
    ]
    return [toleration.manifest() for toleration in settings.pod.tolerations] + lost


def placement(settings: JobSettings) -> Object:
    """Fields of a pod that say where it runs and as whom."""
    pod = settings.pod
    found: Object = {
        "serviceAccountName": pod.service_account,
        "terminationGracePeriodSeconds": settings.grace_seconds,
        "tolerations": tolerations(settings),
    }
    if pod.node_selector:
        found["nodeSelector"] = dict(pod.node_selector)
    if pod.image_pull_secrets:
        found["imagePullSecrets"] = [{"name": name} for name in pod.image_pull_secrets]
    return found


def _whole_cpus(cpu: str) -> int:
    return int(cpu[:-1]) // 1000 if cpu.endswith("m") else int(float(cpu))


def _check_shared(path: Path, pod: PodSettings) -> None:
    if not path.absolute().is_relative_to(pod.mount_path):
        raise InvalidInputError(
            f"the run folder must lie on the shared volume, under {pod.mount_path}, for pods to see it; {path} does "
            "not: choose another run folder, or set jobs.pod.mount_path",
            field="run_root",
        )
