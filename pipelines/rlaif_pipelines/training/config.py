"""What each verb of the training entry point is told: one frozen model a verb, unknown keys refused."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, model_validator

from rlaif.runtime.settings import ClientSettings, SettingsModel
from rlaif.runtime.store import ArtifactRoot, StorageOptions

Verb = Literal["reward", "dpo", "rl"]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NonNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Fraction = Annotated[float, Field(ge=0, lt=1)]
PolicyName = Annotated[str, Field(pattern=r"^policies/[A-Za-z0-9][A-Za-z0-9._-]{0,127}$")]


class EngineSettings(SettingsModel):
    """How DeepSpeed runs the model."""

    device: Literal["cpu", "cuda"] = "cpu"
    """Kind of device; with cuda each process takes the one of its LOCAL_RANK."""
    zero_stage: int = Field(default=0, ge=0, le=3)
    """What ZeRO splits over the processes: 0 nothing, 1 optimiser state, 2 gradients too, 3 weights too."""
    precision: Literal["float32", "bfloat16_autocast", "bfloat16"] = "float32"
    """float32; float32 weights with bfloat16 matrix products; bfloat16 weights with a float32 master copy."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass: less memory, about a third more time."""
    gradient_clipping: Positive = 1.0
    """Largest norm of a gradient."""
    micro_batch_tokens: int = Field(default=4096, ge=1)
    """Most tokens of one forward pass, padding included; a longer sequence runs alone."""
    attention: Literal["eager", "sdpa"] = "sdpa"
    """Attention kernel."""
    num_threads: int = Field(default=0, ge=0, le=1024)
    """Threads of one operation; 0 leaves it to the library. Weights repeat bit by bit only at the same number."""


class OptimizerSettings(SettingsModel):
    """AdamW and its learning rate."""

    learning_rate: Positive = 5e-4
    """Highest learning rate."""
    warmup_steps: int = Field(default=0, ge=0)
    """Steps over which the rate rises to it, linearly."""
    schedule: Literal["constant", "cosine", "linear"] = "constant"
    """What the rate does after that; cosine and linear end at 0."""
    weight_decay: NonNegative = 0.0
    """Decoupled weight decay."""
    betas: tuple[Fraction, Fraction] = (0.9, 0.999)
    """Decay of the running means of the gradient and of its square."""


class TrainingSettings(SettingsModel):
    """What every verb needs."""

    out: Path
    """Folder for the model, training.json, checkpoints and, unless set apart, metrics.jsonl."""
    seed: int = Field(default=0, ge=0, lt=2**31)
    """Decides every order, split and initial weight."""
    engine: EngineSettings = EngineSettings()
    optimizer: OptimizerSettings = OptimizerSettings()
    metrics_path: Path | None = None
    """File that gets a JSON line a step; unset means metrics.jsonl in `out`."""
    checkpoint_every: int = Field(default=0, ge=0)
    """Steps between checkpoints; 0 writes none."""
    keep_checkpoints: int = Field(default=2, ge=1)
    """Newest checkpoints that are kept."""

    @property
    def metrics_file(self) -> Path:
        """Where the metrics go."""
        return self.metrics_path or self.out / "metrics.jsonl"


class PublishSettings(SettingsModel):
    """Where samplers look for a policy's weights."""

    artifact_root: ArtifactRoot
    """Root of the policy store on shared storage: a folder, or a URI such as "s3://bucket/runs"."""
    storage_options: StorageOptions = Field(default_factory=dict)
    """What the file system behind a URI is told beyond the environment, such as its endpoint_url; never a secret."""
    policy: PolicyName
    """Name of the policy, "policies/{run}"."""
    base_version: int = Field(default=0, ge=0)
    """Version of the weights that this training starts from: optimiser steps since the policy's base."""


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


class RewardSource(SettingsModel):
    """A reward model of the reward service."""

    name: str = Field(pattern=r"^rewardModels/[A-Za-z0-9][A-Za-z0-9._-]{0,127}$")
    """Resource name; "rewardModels/judge" is the judge's expected score."""
    constitution: str = ""
    """"constitutions/{id}" for the judge; empty for a trained model."""


class FailureSettings(SettingsModel):
    """How much may go wrong before the run stops, resumable."""

    max_failed_fraction: Fraction = 0.25
    """Largest share of a step's rewards that may be missing."""
    attempts: int = Field(default=3, ge=1)
    """Times a step's rewards are asked for while too many are missing."""
    outage_seconds: NonNegative = 60.0
    """How long a service may be away."""
    pause_seconds: Positive = 2.0
    """Wait between two attempts."""


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


SETTINGS: dict[str, type[TrainingSettings]] = {"reward": RewardTraining, "dpo": DpoTraining, "rl": RlTraining}
"""The model of each verb."""
