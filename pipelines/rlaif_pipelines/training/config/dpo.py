"""What preference optimisation is told."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field

from rlaif_pipelines.training.config.common import Fraction, Positive, PublishSettings, TrainingSettings


class DpoTraining(TrainingSettings):
    """Policy from soft labels, without a reward model."""

    policy: str = Field(min_length=1)
    """Folder of the policy to start from, and the reference."""
    labels: Path
    """labels.jsonl."""
    beta: Positive = 0.1
    """How dear it is to leave the reference."""
    num_epochs: int = Field(default=1, ge=1)
    """Passes over the labels."""
    batch_pairs: int = Field(default=32, ge=1)
    """Pairs of one optimiser step."""
    held_out_fraction: Fraction = 0.1
    """Share of the prompts whose pairs only measure."""
    publish: PublishSettings | None = None
    """Where the result becomes the policy's next version; unset means nowhere."""
