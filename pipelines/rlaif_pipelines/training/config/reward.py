"""What the training of a reward model is told."""

from __future__ import annotations

from typing import Final

from pydantic import Field

from rlaif_pipelines.training.config.common import NonNegative
from rlaif_pipelines.training.config.pairs import PairTraining

HELD_OUT_FILE: Final = "held_out.jsonl"
"""Beside training.json: what the ensemble says of each held-out pair, and its label."""


class RewardTraining(PairTraining):
    """Reward model from soft labels."""

    num_members: int = Field(default=1, ge=1, le=8)
    """Members of the ensemble; they differ in head and order of the data."""
    bootstrap: bool = False
    """Each member also trains on a draw of its own, with replacement, of the prompts."""
    num_epochs: int = Field(default=3, ge=1)
    """Passes over the labels."""
    batch_pairs: int = Field(default=48, ge=1)
    """Pairs of one optimiser step."""
    principle_loss_weight: NonNegative = 0.0
    """Weight of predicting each principle's own vote too, by side heads that are thrown away; 0 leaves them out."""
    centring: NonNegative = 0.002
    """Weight of (r1 + r2)², which keeps rewards around zero."""
    margin: NonNegative = 0.0
    """Lead asked of the response that a sure label prefers, times |2p - 1|; a label's own `margin` replaces both."""
