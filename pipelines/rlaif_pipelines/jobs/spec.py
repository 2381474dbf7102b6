"""What a training job is and how it ended, wherever it runs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from rlaif_pipelines.training.config.verbs import Verb

JobReason = Literal[
    "DONE",
    "ENDED",
    "TIMEOUT",
    "REFUSED",
    "UNSCHEDULABLE",
    "NOT_STARTED",
    "IMAGE_PULL",
    "CONTAINER_CONFIG",
    "OUT_OF_MEMORY",
    "KILLED",
    "DISRUPTED",
    "PEER_LOST",
    "DELETED",
    "UNREACHABLE",
]
"""Why a job ended; ENDED stands for the training's own word."""


@dataclass(frozen=True)
class JobSpec:
    """One training to run. The job's own output is appended to `log_path`."""

    verb: Verb
    config_path: Path
    log_path: Path
    num_processes: int = 1
    """Processes that train together on a machine; more than one go through torchrun."""
    environment: Mapping[str, str] = field(default_factory=dict)
    """Variables on top of this process's own; on a cluster the only ones."""
    name: str = "training"
    """What the training is for, as part of the job's name there: the stage."""


@dataclass(frozen=True)
class JobResult:
    """How a job ended. `last_words` is one sentence, empty when it is done."""

    exit_code: int
    last_words: str
    seconds: float
    log_path: Path
    reason: JobReason = "ENDED"
    attempts: int = 1

    @property
    def done(self) -> bool:
        """Whether it made what it was to make, without a guard stopping it."""
        return self.exit_code == 0
