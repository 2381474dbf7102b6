"""What a training job is and how it ended, wherever it runs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from rlaif_pipelines.training.config.verbs import Verb


@dataclass(frozen=True)
class JobSpec:
    """One training to run. The job's own output is appended to `log_path`."""

    verb: Verb
    config_path: Path
    log_path: Path
    num_processes: int = 1
    """Processes that train together; more than one go through torchrun."""
    environment: Mapping[str, str] = field(default_factory=dict)
    """Variables on top of this process's own."""


@dataclass(frozen=True)
class JobResult:
    """How a job ended. `last_words` is one sentence, empty when it is done."""

    exit_code: int
    last_words: str
    seconds: float
    log_path: Path

    @property
    def done(self) -> bool:
        """Whether it made what it was to make, without a guard stopping it."""
        return self.exit_code == 0
