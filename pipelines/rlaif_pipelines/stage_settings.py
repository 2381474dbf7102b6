"""What each stage of a run can be told: how much it does, and by which limits."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from rlaif.core.quality import GateLimits
from rlaif.runtime.settings import SettingsModel
from rlaif_pipelines.training.config.dpo import PreferenceLoss
from rlaif_pipelines.training.config.pairs import LabelFile
from rlaif_pipelines.training.config.rl import AdvantageKind, Aggregation, GuardSettings

Rate = Annotated[float, Field(ge=0.0, le=1.0)]
Count = Annotated[int, Field(ge=1)]
PositiveFloat = Annotated[float, Field(gt=0.0)]
NonNegative = Annotated[float, Field(ge=0.0)]


class SamplingSettings(SettingsModel):
    """Completions that the judge labels."""

    num_prompts: Count = 160
    """Training prompts sampled in each round."""
    num_completions: Annotated[int, Field(ge=2, le=64)] = 6
    """Completions of each prompt."""
    pairs_per_prompt: Count = 4
    """Pairs of distinct completions labelled for each prompt, fewer where there are not as many."""
    max_tokens: Count = 72
    """Longest completion; used for training rollouts and evaluation too."""
    temperature: PositiveFloat = 1.0
    """Softmax temperature of labelled completions and of rollouts; evaluation samples at 1."""
    prompts_per_request: Count = 40
    """Prompts in one call to the sampler."""


class JudgingSettings(SettingsModel):
    """How pairs go to the judge."""

    pairs_per_request: Count = 64
    """Pairs in one call; batches are cut by position, so a retry asks exactly what was asked before."""


class HumanLabels(LabelFile):
    """People's labels, mixed with the judge's where something is trained on labels."""

    source: Literal["ai", "human"] = "human"
    """Who labelled, for rows that do not say."""


class GateSettings(SettingsModel):
    """What labels must hold before anything is trained on them."""

    max_abstention_rate: Rate = 0.2
    """Share of pairs without a verdict."""
    max_order_inconsistency: Rate = 0.35
    """Share of verdicts that change when the two responses are shown the other way round."""
    min_num_labels: Count = 32
    """Labels needed at all."""
    min_judge_accuracy: Rate = 0.6
    """Agreement with gold in every cell of category × principle; only where there are gold rules."""
    min_cell_labels: Count = 20
    """Cells with fewer decided pairs are reported and do not decide."""
    min_revisions: Count = 32
    """Constitutional stage: replies that the judge must have changed."""
    max_dropped_replies: Rate = 0.25
    """Constitutional stage: share of replies without a usable revision."""

    min_benchmark_accuracy: Rate | None = None
    """Pipeline judge-benchmark: agreement with the given labels without which the run fails; null only measures."""

    def limits(self) -> GateLimits:
        """The limits of labels."""
        elsewhere = {"min_revisions", "max_dropped_replies", "min_benchmark_accuracy"}
        return GateLimits(**self.model_dump(exclude=elsewhere))


class ConstitutionalSettings(SettingsModel):
    """The constitutional stage: the policy's own replies, criticised and revised by the judge, then learnt."""

    enabled: bool = False
    """Make it before the first round; algorithm 'sft' makes it alone."""
    num_prompts: Count = 240
    """Training prompts that the policy answers, the categories in turn."""
    rounds: Annotated[int, Field(ge=1, le=16)] = 2
    """Critiques and revisions of each reply, each under another principle, drawn by weight."""
    keep_unchanged: bool = True
    """Learn replies that no round changed, too: the judge found no fault, and they keep the policy as it is there."""
    concurrency: Annotated[int, Field(ge=1, le=1024)] = 32
    """Replies that the judge works on at the same time."""
    epochs: Count = 3
    """Passes over the revised replies."""
    learning_rate: PositiveFloat = 5e-4
    """Peak learning rate of AdamW."""
    batch_size: Count = 32
    """Replies in one optimiser step."""


class RewardModelSettings(SettingsModel):
    """Reward model trained on the soft labels."""

    enabled: bool = True
    """Train it also when it is not the reward: it then watches the run as a second opinion."""
    num_members: Annotated[int, Field(ge=1, le=8)] = 1
    """Members of the ensemble; they differ by seed."""
    bootstrap: bool = False
    """Each member also trains on a draw of its own, with replacement, of the prompts."""
    epochs: Count = 2
    """Passes over the labels; few, where the reward model only watches."""
    learning_rate: PositiveFloat = 1e-3
    """Peak learning rate of AdamW."""
    batch_size: Count = 48
    """Pairs in one optimiser step."""
    margin: NonNegative = 0.0
    """Lead asked of the response that a sure label prefers, times |2p - 1|."""
    centring: NonNegative = 0.002
    """Weight of (r1 + r2)², which keeps rewards around zero."""
    principle_loss_weight: NonNegative = 2.0
    """Weight of predicting each principle's own vote beside the combined label, which teaches small trunks why."""


class RlSettings(SettingsModel):
    """Online reinforcement learning: GRPO, or another of its kin by `advantage`, `aggregation` and `ratio`."""

    steps: Count = 40
    """Optimiser steps of one round."""
    prompts_per_step: Count = 24
    """Prompts of one step."""
    completions_per_prompt: Annotated[int, Field(ge=2, le=64)] = 8
    """Group size G."""
    learning_rate: PositiveFloat = 4e-4
    """Peak learning rate of AdamW."""
    schedule: Literal["constant", "linear", "cosine"] = "constant"
    """What the learning rate does after its rise; linear and cosine end at 0."""
    updates_per_batch: Count = 1
    """Optimiser steps on one batch of rollouts."""
    advantage: AdvantageKind = "grpo"
    """How rewards become advantages; rloo is REINFORCE with a leave-one-out baseline."""
    advantage_epsilon: PositiveFloat = 0.02
    """Added to the sd of a group's rewards: smaller differences than this are taken for the judge's noise."""
    aggregation: Aggregation = "token_mean"
    """How tokens' losses become one; sequence_mean is the original GRPO's, constant_length is Dr.GRPO's and RLOO's."""
    ratio: Literal["token", "sequence"] = "token"
    """What is clipped: each token's ratio of policies, or each sequence's (GSPO)."""
    kl_beta: Annotated[float, Field(ge=0.0)] = 0.1
    """Weight of the KL penalty to the policy that the round began with."""
    kl_in: Literal["loss", "reward"] = "loss"
    """Where that penalty stands."""
    kl_target: PositiveFloat | None = None
    """KL of a sequence, nats, towards which the weight adapts; null leaves it constant."""
    kl_gain: PositiveFloat = 0.1
    """How fast it adapts: a batch changes it by at most a fifth of this."""
    clip_low: PositiveFloat = 0.2
    """Lower clip range of the ratio."""
    clip_high: PositiveFloat = 0.28
    """Upper clip range of the ratio."""
    watch_every: Count = 5
    """Steps between measurements of the held-out score, by the reward that is not trained on."""
    watch_prompts: Annotated[int, Field(ge=0)] = 48
    """Training prompts set apart for it; at most one in eight."""
    guards: GuardSettings = GuardSettings()
    """What stops or slows the training."""
    staleness: Annotated[int, Field(ge=0, le=1)] = 0
    """How many steps older than the trained weights the sampled ones may be."""
    checkpoint_every: Count = 10
    """Steps between checkpoints."""


class DpoSettings(SettingsModel):
    """Preference optimisation on the soft labels."""

    loss: PreferenceLoss = "sigmoid"
    """sigmoid: DPO; sigmoid_norm: DPO on means over tokens; ipo; hinge; simpo: without a reference."""
    beta: PositiveFloat | None = None
    """How dear it is to leave the reference; None for what suits the loss, 0.1 for DPO."""
    sft_weight: NonNegative = 0.0
    """Weight of the preferred response's negative log-likelihood, a token, beside the loss."""
    target_margin: NonNegative = 1.0
    """γ of SimPO."""
    epochs: Count = 3
    """Passes over the labels."""
    learning_rate: PositiveFloat = 3e-4
    """Peak learning rate of AdamW."""
    batch_size: Count = 48
    """Pairs in one optimiser step."""


class EvaluationSettings(SettingsModel):
    """Held-out evaluation before and after."""

    num_harmful: Count = 240
    """Held-out harmful prompts; playground only."""
    num_other: Count = 80
    """Held-out prompts of every other category, or held-out prompts in all where there are no categories."""
    max_kl: PositiveFloat = 6.0
    """KL budget of a sequence in nats: beyond it, with gold lower than before, the run is over-optimised."""
    slack: Rate = 0.04
    """How much over-refusal or harmful compliance may rise before the run is called biased."""
    max_length_ratio: PositiveFloat = 2.0
    """Mean words after against before, or before against after, beyond which length has drifted."""
    max_garbage_rise: Rate = 0.05
    """How much the mean share of garbage words may rise."""
