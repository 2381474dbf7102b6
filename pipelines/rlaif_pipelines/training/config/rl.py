"""What online reinforcement learning is told."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field, model_validator

from rlaif.runtime.settings import ClientSettings, SettingsModel
from rlaif_pipelines.training.config.common import (
    FailureSettings,
    Fraction,
    NonNegative,
    OptimizerSettings,
    Positive,
    PublishSettings,
    TrainingSettings,
)

AdvantageKind = Literal["grpo", "dr_grpo", "rloo", "reinforce_plus_plus"]
Aggregation = Literal["token_mean", "sequence_mean", "constant_length"]


class RewardSource(SettingsModel):
    """A reward model of the reward service."""

    name: str = Field(pattern=r"^rewardModels/[A-Za-z0-9][A-Za-z0-9._-]{0,127}$")
    """Resource name; "rewardModels/judge" is the judge's expected score."""
    constitution: str = ""
    """"constitutions/{id}" for the judge; empty for a trained model."""


class Guard(SettingsModel):
    """What every guard is told."""

    action: Literal["stop", "lower_rate"] = "stop"
    """stop ends the training and rolls back; lower_rate halves the learning rate from the next step on."""


class KlGuard(Guard):
    """KL over its budget."""

    limit: Positive | None = 6.0
    """KL of a whole completion to the reference, nats; null is off."""
    window: int = Field(default=1, ge=1)
    """Steps whose mean counts."""


class HeldOutGuard(Guard):
    """The reward rises while a score that is not trained on falls. Needs `watch`."""

    limit: Positive | None = 3.0
    """Fall of the held-out score from its best, in standard errors of the paired difference; null is off."""
    window: int = Field(default=2, ge=1)
    """Measurements in a row that must have fallen so far."""


class LengthGuard(Guard):
    """Completions become much longer, or much shorter, than they were."""

    limit: float | None = Field(default=2.0, gt=1, allow_inf_nan=False)
    """Factor, up or down, on the mean tokens of the first window; null is off."""
    window: int = Field(default=5, ge=1)
    """Steps whose mean counts."""


class EntropyGuard(Guard):
    """The policy says one thing only."""

    limit: Fraction | None = 0.2
    """Share of the first window's entropy below which it has collapsed; null is off."""
    window: int = Field(default=5, ge=1)
    """Steps whose mean counts."""


class RepetitionGuard(Guard):
    """Completions repeat themselves."""

    limit: Positive | None = 0.2
    """Rise, over the first window, of the share of a completion's 4-grams that it has said before; null is off."""
    window: int = Field(default=5, ge=1)
    """Steps whose mean counts."""


class GuardSettings(SettingsModel):
    """What stops or slows a training whose reward no longer means what it should."""

    kl: KlGuard = KlGuard()
    """KL over its budget."""
    held_out: HeldOutGuard = HeldOutGuard()
    """Reward up, held-out score down."""
    length: LengthGuard = LengthGuard()
    """Length drift."""
    entropy: EntropyGuard = EntropyGuard()
    """Entropy collapse."""
    repetition: RepetitionGuard = RepetitionGuard()
    """Repetition."""


class RlTraining(TrainingSettings):
    """GRPO and its kin: rollouts from the sampler service, rewards from the reward service."""

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
    """Second opinion, never trained on: scores completions of prompts set apart, for the held-out guard."""
    watch_every: int = Field(default=5, ge=1)
    """Steps between its measurements."""
    watch_prompts: int = Field(default=48, ge=0)
    """Training prompts set apart for it, evenly over the categories; at most one in eight."""
    watch_completions: int = Field(default=2, ge=1, le=64)
    """Completions of each, with the same random streams every time."""
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
    advantage: AdvantageKind = "grpo"
    """How rewards become advantages: less the group's mean, and over its sd (grpo), undivided (dr_grpo) or over the
    batch's sd (reinforce_plus_plus); or less the mean of the group's others (rloo)."""
    advantage_epsilon: Positive = 1e-4
    """Added to the sd that advantages are divided by, in units of the reward."""
    aggregation: Aggregation = "token_mean"
    """How tokens' losses become one: mean over all tokens, mean over sequences of their means, or sum over
    sequences × max_tokens."""
    ratio: Literal["token", "sequence"] = "token"
    """Whether each token or each whole sequence (GSPO) has a ratio of policies that is clipped."""
    updates_per_batch: int = Field(default=1, ge=1)
    """Optimiser steps on one batch, each on its share of the prompts."""
    max_tokens: int = Field(default=72, ge=1)
    """Token budget of a completion."""
    temperature: Positive = 1.0
    """Sampling temperature; log-probabilities are at it too."""
    kl_beta: NonNegative = 0.06
    """Weight of the KL to the reference; where it adapts, at the beginning."""
    kl_in: Literal["loss", "reward"] = "loss"
    """Where the KL stands: in the loss, a token each, or taken from a completion's reward, summed over its tokens."""
    kl_estimator: Literal["k1", "k2", "k3"] = "k3"
    """How that KL is estimated."""
    kl_target: Positive | None = None
    """KL of a completion, nats, towards which `kl_beta` adapts; null leaves it constant."""
    kl_gain: Positive = 0.1
    """How fast it adapts: a batch changes it by at most a fifth of this."""
    clip_low: Positive = 0.2
    """Lower clip range of the ratio."""
    clip_high: Positive = 0.28
    """Upper clip range of the ratio."""
    max_importance_weight: Positive = 2.0
    """Where the weight between trainer and sampler is cut."""
    staleness: Literal[0, 1] = 0
    """Versions by which rollouts trail; 1 samples the next batch while this one trains."""
    guards: GuardSettings = GuardSettings()
    """What stops or slows it."""
    failures: FailureSettings = FailureSettings()
    optimizer: OptimizerSettings = OptimizerSettings(warmup_steps=3)

    @model_validator(mode="after")
    def _check_sizes(self) -> RlTraining:
        if self.quorum > self.group_size:
            raise ValueError(f"quorum {self.quorum} is larger than group_size {self.group_size}")
        if self.kl_target is not None and not self.kl_beta:
            raise ValueError("kl_target adapts kl_beta, which must be above 0 to begin with")
        if self.updates_per_batch > self.prompts_per_step:
            raise ValueError(
                f"updates_per_batch {self.updates_per_batch} is larger than prompts_per_step {self.prompts_per_step}"
            )
        return self
