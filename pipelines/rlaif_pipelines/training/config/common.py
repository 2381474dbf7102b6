"""What every training is told: how it runs, how it learns, where its results go."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, Field, model_validator

from rlaif.runtime.addresses import split_address
from rlaif.runtime.settings import SettingsModel
from rlaif.runtime.store import ArtifactRoot, StorageOptions


def _address(value: str) -> str:
    split_address(value)
    return value


Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NonNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Fraction = Annotated[float, Field(ge=0, lt=1)]
Address = Annotated[str, AfterValidator(_address)]
PolicyName = Annotated[str, Field(pattern=r"^policies/[A-Za-z0-9][A-Za-z0-9._-]{0,127}$")]


class LoraSettings(SettingsModel):
    """Low-rank adapters are trained in place of the weights (arXiv 2106.09685)."""

    rank: int = Field(default=16, ge=1, le=1024)
    """Inner width of an adapter's two matrices."""
    alpha: Positive = 32.0
    """Their product is scaled by alpha / rank."""
    dropout: Fraction = 0.0
    """Share of an adapter's inputs that is zeroed in training."""
    target_modules: Literal["all-linear"] | tuple[str, ...] = "all-linear"
    """Names of the layers that get one, such as "q_proj"; all-linear is every linear layer but the head."""


class EngineSettings(SettingsModel):
    """How DeepSpeed runs the model."""

    device: Literal["cpu", "cuda"] = "cpu"
    """Kind of device; with cuda each process takes the one of its LOCAL_RANK."""
    zero_stage: int = Field(default=0, ge=0, le=3)
    """What ZeRO splits over the processes: 0 nothing, 1 optimiser state, 2 gradients too, 3 weights too."""
    precision: Literal["float32", "bfloat16_autocast", "bfloat16"] = "float32"
    """float32; float32 weights with bfloat16 matrix products; bfloat16 weights with a float32 master copy."""
    offload: Literal["none", "optimizer", "optimizer_and_weights"] = "none"
    """What waits in main memory while the device computes, where room is short; the weights only at zero_stage 3."""
    lora: LoraSettings | None = None
    """Train an adapter instead of all weights; unset trains all."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass: less memory, about a third more time."""
    gradient_clipping: Positive = 1.0
    """Largest norm of a gradient."""
    micro_batch_tokens: int = Field(default=4096, ge=1)
    """Most tokens of one forward pass, padding included; a longer sequence runs alone."""
    share_prefixes: bool = True
    """Compute what the responses to one prompt have in common once, where the model can; the numbers are the same."""
    attention: Literal["eager", "sdpa", "flash_attention_2"] = "sdpa"
    """Attention kernel; flash_attention_2 needs the package flash-attn, cuda and bfloat16."""
    compile: bool = False
    """Compile the model with torch.compile: the first steps take up to a minute, the others less time."""
    num_threads: int = Field(default=0, ge=0, le=1024)
    """Threads of one operation; 0 leaves it to the library. Weights repeat bit by bit only at the same number."""

    @model_validator(mode="after")
    def _fits_together(self) -> EngineSettings:
        if self.offload != "none" and self.zero_stage == 0:
            raise ValueError("offload moves what ZeRO splits: set zero_stage to 1, 2 or 3, or offload to none")
        if self.offload == "optimizer_and_weights" and self.zero_stage != 3:
            raise ValueError("offload optimizer_and_weights moves weights that are split: set zero_stage to 3")
        if self.attention == "flash_attention_2" and (self.device != "cuda" or self.precision == "float32"):
            raise ValueError("attention flash_attention_2 needs device cuda and precision bfloat16; or set it to sdpa")
        if self.compile and self.zero_stage == 3:
            raise ValueError("compile cannot follow split weights: set zero_stage to 2 or less, or compile to false")
        return self


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
    tensorboard: bool = False
    """Write the figures for TensorBoard too, to `out`/tensorboard."""
    metrics_address: Address | None = None
    """Where the first process shows Prometheus its figures, host:port; unset for nowhere."""
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
