"""Settings of the reward service."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from rlaif.runtime.settings import ClientSettings, ListenSettings, SettingsModel


class RewardEngineSettings(SettingsModel):
    """How reward models are run."""

    device: str = "cpu"
    """Torch device, for example "cpu" or "cuda:0"."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Precision of the weights."""
    num_threads: int = Field(default=0, ge=0, le=1024)
    """Threads of one matrix product; 0 leaves it to the library."""
    max_batch_tokens: int = Field(default=4096, ge=1)
    """Most tokens, padding included, in one forward pass; a longer input runs alone."""


class LimitSettings(SettingsModel):
    """How much one request may hold."""

    max_text_bytes: int = Field(default=64 * 1024, ge=1)
    """Longest turn or response, bytes of UTF-8."""
    max_turns: int = Field(default=64, ge=1)
    """Longest conversation, turns."""
    max_inputs: int = Field(default=1024, ge=1, le=1024)
    """Most inputs in one request."""
    max_members: int = Field(default=8, ge=1, le=8)
    """Most members of an ensemble."""


class RewardSettings(SettingsModel):
    """Everything the reward service can be told."""

    listen: ListenSettings = ListenSettings()
    """Where it serves."""
    judge: ClientSettings | None = None
    """Judge behind "rewardModels/judge"; null leaves that name out."""
    engine: RewardEngineSettings = RewardEngineSettings()
    """What runs reward models."""
    reward_models: dict[str, list[str]] = Field(default_factory=dict)
    """Reward models to load at start: name to the model folders of its members."""
    limits: LimitSettings = LimitSettings()
    """How much one request may hold."""
