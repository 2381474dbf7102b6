"""A plan as values: labels, tokens, memory, time and cost of a run, and what all of it rests on."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Final

from rlaif_pipelines.planning.memory import Memory
from rlaif_pipelines.planning.work import Role

SECONDS_AN_HOUR: Final = 3600.0


@dataclass(frozen=True)
class StageRow:
    """What a stage has one role do, and how long it takes."""

    stage: str
    role: Role
    gpus: int
    prefill_tokens: int
    decode_tokens: int
    training_tokens: int
    seconds: float

    @property
    def gpu_hours(self) -> float:
        """GPUs kept busy."""
        return self.gpus * self.seconds / SECONDS_AN_HOUR


@dataclass(frozen=True)
class RoleRow:
    """A role's model, its GPUs and the memory on each."""

    role: Role
    model: str
    gpu: str
    gpus: int
    replicas: int
    memory: Memory
    share: float
    """Of the GPU's memory."""


@dataclass(frozen=True)
class Plan:
    """Everything that `rlaif plan` tells."""

    labels: int
    roles: tuple[RoleRow, ...]
    stages: tuple[StageRow, ...]
    publish_seconds: float
    """Of `wall_seconds`: writing and reading the weights of every step."""
    wall_seconds: float
    usd: float
    assumptions: tuple[str, ...]

    @property
    def gpus(self) -> int:
        """GPUs of all roles together, held for the whole run."""
        return sum(role.gpus for role in self.roles)

    @property
    def busy_gpu_hours(self) -> float:
        """GPU hours of work."""
        return sum(stage.gpu_hours for stage in self.stages)

    @property
    def held_gpu_hours(self) -> float:
        """GPU hours where every role keeps its GPUs from beginning to end."""
        return self.gpus * self.wall_seconds / SECONDS_AN_HOUR

    @property
    def prefill_tokens(self) -> int:
        """Tokens read."""
        return sum(stage.prefill_tokens for stage in self.stages)

    @property
    def decode_tokens(self) -> int:
        """Tokens written."""
        return sum(stage.decode_tokens for stage in self.stages)

    @property
    def training_tokens(self) -> int:
        """Tokens trained on."""
        return sum(stage.training_tokens for stage in self.stages)

    def to_json(self) -> dict[str, Any]:
        """As JSON has it."""
        return {
            "labels": self.labels,
            "prefill_tokens": self.prefill_tokens,
            "decode_tokens": self.decode_tokens,
            "training_tokens": self.training_tokens,
            "roles": [
                {**asdict(role), "memory": {**asdict(role.memory), "total": role.memory.total}} for role in self.roles
            ],
            "stages": [{**asdict(stage), "gpu_hours": stage.gpu_hours} for stage in self.stages],
            "publish_seconds": self.publish_seconds,
            "wall_seconds": self.wall_seconds,
            "gpus": self.gpus,
            "busy_gpu_hours": self.busy_gpu_hours,
            "held_gpu_hours": self.held_gpu_hours,
            "usd": self.usd,
            "assumptions": list(self.assumptions),
        }
