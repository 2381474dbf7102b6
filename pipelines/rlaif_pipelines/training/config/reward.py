"""What the training of a reward model is told."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field

from rlaif_pipelines.training.config.common import Fraction, NonNegative, TrainingSettings


class RewardTraining(TrainingSettings):
    """Reward model from soft labels."""

    policy: str = Field(min_length=1)
    """Folder of the causal language model whose weights it starts from."""
    labels: Path
    """labels.jsonl."""
    num_members: int = Field(default=1, ge=1, le=8)
    """Members of the ensemble; they differ in head and order of the data."""
    num_epochs: int = Field(default=3, ge=1)
    """Passes over the labels."""
    batch_pairs: int = Field(default=48, ge=1)
    """Pairs of one optimiser step."""
    principle_loss_weight: NonNegative = 0.0
    """Weight of predicting each principle's own vote too, by side heads that are thrown away; 0 leaves them out."""
    centring: NonNegative = 0.002
    """Weight of (r1 + r2)², which keeps rewards around zero."""
    held_out_fraction: Fraction = 0.1
    """Share of the prompts whose pairs only measure."""
