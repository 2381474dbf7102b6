"""What online reinforcement learning is told."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field, model_validator

from rlaif.runtime.settings import ClientSettings, SettingsModel
from rlaif_pipelines.training.config.common import (
    FailureSettings,
    NonNegative,
    OptimizerSettings,
    Positive,
    PublishSettings,
    TrainingSettings,
)


class RewardSource(SettingsModel):
    """A reward model of the reward service."""

    name: str = Field(pattern=r"^rewardModels/[A-Za-z0-9][A-Za-z0-9._-]{0,127}$")
    """Resource name; "rewardModels/judge" is the judge's expected score."""
    constitution: str = ""
    """"constitutions/{id}" for the judge; empty for a trained model."""


class RlTraining(TrainingSettings):
    """GRPO: rollouts from the sampler service, rewards from the reward service."""

    policy: str = Field(min_length=1)
    """Folder of the policy to start from, and the reference."""
    publish: PublishSettings
    """Where the sampler finds each version."""
    prompts: Path
    """prompts.jsonl; only the train split is used."""
    sampler: ClientSettings
    rewards: ClientSettings
    reward: RewardSource
    """What is maximised."""
    watch: RewardSource | None = None
    """Second opinion: logged, never trained on."""
    watch_every: int = Field(default=5, ge=1)
    """Steps between second opinions."""
    gold: Literal["playground"] | None = None
    """Gold evaluator of the rollouts: logged, never trained on."""
    num_steps: int = Field(default=40, ge=1)
    """Batches of rollouts."""
    prompts_per_step: int = Field(default=24, ge=1)
    """Prompts of one batch, evenly over the categories."""
    group_size: int = Field(default=8, ge=2, le=64)
    """Completions of one prompt."""
    quorum: int = Field(default=4, ge=2)
    """Fewest rewards with which a group is trained on."""
    advantage_epsilon: Positive = 1e-4
    """Added to the sd that a group's advantages are divided by, in units of the reward."""
    updates_per_batch: int = Field(default=1, ge=1)
    """Optimiser steps on one batch, each on its share of the prompts."""
    max_tokens: int = Field(default=72, ge=1)
    """Token budget of a completion."""
    temperature: Positive = 1.0
    """Sampling temperature; log-probabilities are at it too."""
    kl_beta: NonNegative = 0.06
    """Weight of the KL to the reference in the loss."""
    kl_estimator: Literal["k1", "k2", "k3"] = "k3"
    """How that KL is estimated."""
    clip_low: Positive = 0.2
    """Lower clip range of the ratio."""
    clip_high: Positive = 0.28
    """Upper clip range of the ratio."""
    max_importance_weight: Positive = 2.0
    """Where the weight between trainer and sampler is cut."""
    staleness: Literal[0, 1] = 0
    """Versions by which rollouts trail; 1 samples the next batch while this one trains."""
    max_kl: Positive | None = 4.0
    """Guard: KL of a whole completion to the reference, nats, at which the run stops."""
    failures: FailureSettings = FailureSettings()
    optimizer: OptimizerSettings = OptimizerSettings(warmup_steps=3)

    @model_validator(mode="after")
    def _check_sizes(self) -> RlTraining:
        if self.quorum > self.group_size:
            raise ValueError(f"quorum {self.quorum} is larger than group_size {self.group_size}")
        if self.updates_per_batch > self.prompts_per_step:
            raise ValueError(
                f"updates_per_batch {self.updates_per_batch} is larger than prompts_per_step {self.prompts_per_step}"
            )
        return self
