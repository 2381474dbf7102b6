"""Where trainings run, on how many machines, and what each of them gets."""

from __future__ import annotations

from pathlib import PurePosixPath
from typing import Annotated, Any, Final, Literal

from pydantic import AfterValidator, Field, model_validator

from rlaif.runtime.settings import SettingsModel

_RESERVED: Final = ("PET_", "KUBERNETES_")
_OURS: Final = frozenset({"RLAIF_TERMINATION_LOG", "RLAIF_CACHE"})


def _absolute(path: str) -> str:
    if not path.startswith("/") or ".." in PurePosixPath(path).parts or str(PurePosixPath(path)) == "/":
        raise ValueError("must be an absolute path below /, such as /rlaif")
    return str(PurePosixPath(path))


def _not_reserved(name: str) -> str:
    if name.startswith(_RESERVED) or name in _OURS:
        raise ValueError(f"{name} is set for the job; leave it out")
    return name


Name = Annotated[str, Field(pattern=r"^[a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?$")]
LabelValue = Annotated[str, Field(pattern=r"^([A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?)?$")]
QualifiedName = Annotated[
    str, Field(pattern=r"^([a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?/)?[A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?$")
]
Variable = Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$"), AfterValidator(_not_reserved)]
Quantity = Annotated[str, Field(pattern=r"^[0-9]+(\.[0-9]+)?(m|[kMGTPE]|[KMGTPE]i)?$")]
"""As Kubernetes writes amounts: "4", "500m", "16Gi"."""
AbsolutePath = Annotated[str, AfterValidator(_absolute)]
Seconds = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NonNegativeSeconds = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class Toleration(SettingsModel):
    """A taint of nodes that the job may run on all the same; fields as in Kubernetes."""

    key: QualifiedName | None = None
    """Key of the taint; unset, with operator Exists, stands for every taint."""
    operator: Literal["Equal", "Exists"] = "Equal"
    """Whether the taint's value must be `value`."""
    value: LabelValue | None = None
    """Value of the taint."""
    effect: Literal["NoSchedule", "PreferNoSchedule", "NoExecute"] | None = None
    """Effect of the taint; unset stands for all."""

    def manifest(self) -> dict[str, Any]:
        """As a pod has it."""
        return self.model_dump(exclude_none=True)


class PodSettings(SettingsModel):
    """What each machine of a training gets; on a cluster only."""

    image: Annotated[str, Field(min_length=1, max_length=512)] | None = None
    """Image of the trainer, such as ghcr.io/kube-rlaif/rlaif-trainer:0.1.0-gpu."""
    image_pull_policy: Literal["Always", "IfNotPresent", "Never"] = "IfNotPresent"
    """When the image is pulled; of a TrainJob the chart decides."""
    image_pull_secrets: tuple[Name, ...] = ()
    """Secrets with the registry's credentials."""
    cpu: Annotated[str, Field(pattern=r"^([0-9]+(\.[0-9]+)?|[0-9]+m)$")] = "2"
    """Processors, requested and limit at once, so that the pod is the last to be evicted."""
    memory: Quantity = "8Gi"
    """Memory, requested and limit at once; /dev/shm counts."""
    gpus: int = Field(default=0, ge=0, le=64)
    """GPUs."""
    gpu_resource: QualifiedName = "nvidia.com/gpu"
    """What the cluster calls a GPU, such as amd.com/gpu or nvidia.com/mig-3g.40gb."""
    shared_memory: Quantity = "2Gi"
    """Most that /dev/shm may hold, through which processes of one machine talk."""
    node_selector: dict[QualifiedName, LabelValue] = Field(default_factory=dict)
    """Labels that a node must have."""
    tolerations: tuple[Toleration, ...] = ()
    """Taints that a node may have."""
    volume_claim: Name | None = None
    """PersistentVolumeClaim of the shared volume on which run folders lie; ReadWriteMany for several nodes."""
    mount_path: AbsolutePath = "/rlaif"
    """Where it is mounted, here and there."""
    service_account: Name = "rlaif-training"
    """ServiceAccount of the pods; it needs no rights."""
    environment: dict[Variable, str] = Field(default_factory=dict)
    """Variables; nothing secret, for manifests can be read."""
    secret_environment: dict[
        Variable, Annotated[str, Field(pattern=r"^[a-z0-9][-a-z0-9.]{0,252}/[-._a-zA-Z0-9]+$")]
    ] = Field(default_factory=dict)
    """Variables from Secrets, each "secret/key", such as {"RLAIF_TOKEN": "rlaif-token/token"}."""
    secret_files: dict[AbsolutePath, Name] = Field(default_factory=dict)
    """Folders that hold the files of a Secret, such as {"/etc/rlaif/tls": "rlaif-client-tls"}."""
    priority_class: Name | None = None
    """PriorityClass; of a TrainJob the chart decides."""


class JobSettings(SettingsModel):
    """Where and how trainings run; nothing of it changes what is learnt."""

    launcher: Literal["local", "trainjob", "indexed_job"] = "local"
    """A process here; a TrainJob of Kubeflow Trainer v2; or an Indexed Job, which any cluster can run."""
    num_nodes: int = Field(default=1, ge=1, le=1000)
    """Machines that train together."""
    processes_per_node: int | None = Field(default=None, ge=1, le=64)
    """Processes on each; unset means one for each GPU, or one."""
    checkpoint_every: int = Field(default=50, ge=0)
    """Steps between checkpoints of trainings that set none: what a lost node or a killed run costs at most."""
    attempts: int = Field(default=3, ge=1, le=100)
    """Times a job is started in all when nodes or pods are lost; it goes on from its last checkpoint."""
    retry_pause_seconds: NonNegativeSeconds = 10.0
    """Wait before the second attempt; it doubles with each further one."""
    timeout_seconds: Seconds = 86_400.0
    """How long an attempt may run once all its pods do."""
    pending_seconds: Seconds = 1_800.0
    """How long pods may wait for nodes, volumes and images; waiting in a queue does not count."""
    stuck_seconds: NonNegativeSeconds = 60.0
    """How long an image that cannot be pulled, or a Secret that is missing, may stand in the way."""
    node_lost_seconds: int = Field(default=60, ge=0)
    """How long a node may be out of touch before its pods are given up."""
    grace_seconds: int = Field(default=30, ge=0)
    """How long processes have to end when they are told to."""
    keep_finished_seconds: int = Field(default=3_600, ge=60)
    """How long the cluster keeps a finished job that nobody removed, because whoever started it is gone."""
    namespace: Annotated[str, Field(pattern=r"^[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?$")] | None = None
    """Namespace of the jobs; unset means that of the pod this runs in, or of the kubeconfig's context."""
    context: str | None = None
    """Context of the kubeconfig, outside a cluster; unset means the current one."""
    queue: LabelValue | None = None
    """LocalQueue of Kueue that admits the job."""
    runtime: Name = "rlaif-training"
    """TrainingRuntime of TrainJobs; the chart installs it."""
    pod: PodSettings = PodSettings()

    @model_validator(mode="after")
    def _fits_together(self) -> JobSettings:
        if self.launcher == "local":
            if self.num_nodes > 1:
                raise ValueError("num_nodes above 1 needs a cluster: set launcher to trainjob or indexed_job")
            return self
        missing = [name for name in ("image", "volume_claim") if getattr(self.pod, name) is None]
        if missing:
            raise ValueError(f"launcher {self.launcher!r} needs {' and '.join(f'pod.{name}' for name in missing)}")
        if self.launcher == "trainjob" and self.pod.priority_class is not None:
            raise ValueError(
                "a TrainJob cannot set pod.priority_class: set training.runtime.priorityClassName in the chart's values"
            )
        return self

    @property
    def num_processes(self) -> int:
        """Processes on each machine."""
        return self.processes_per_node or self.pod.gpus or 1

    @property
    def on_cluster(self) -> bool:
        """Whether trainings run in pods."""
        return self.launcher != "local"
