"""Settings of the sampler service."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field

from rlaif.engine.settings import EngineSettings
from rlaif.runtime.settings import ListenSettings, PositiveSeconds, SettingsModel


class LimitSettings(SettingsModel):
    """How much one request may hold."""

    max_text_bytes: int = Field(default=64 * 1024, ge=1)
    """Longest turn, bytes of UTF-8."""
    max_turns: int = Field(default=64, ge=1)
    """Longest conversation, turns."""
    max_completions: int = Field(default=8192, ge=1)
    """Most completions of one request: its prompts times the completions of each."""


class QueueSettings(SettingsModel):
    """How requests wait for the engine."""

    max_queue_completions: int = Field(default=16384, ge=1)
    """Most completions waiting; a request beyond it is refused with a time to try again."""
    max_batch_completions: int = Field(default=512, ge=1)
    """Most completions joined into one engine batch when requests are mixed."""


class SamplerSettings(SettingsModel):
    """Everything the sampler service can be told."""

    listen: ListenSettings = ListenSettings()
    """Where it serves."""
    model: str = Field(min_length=1)
    """Base model, version 0 of the policy: a folder or a hub id."""
    policy: str = Field(pattern=r"^policies/[A-Za-z0-9][A-Za-z0-9._-]{0,127}$")
    """Name of the policy served, "policies/{run}"."""
    artifact_root: Path | None = None
    """Shared storage where versions of the policy are published; null serves the base model for ever."""
    sync_poll_seconds: PositiveSeconds = 0.5
    """How often to look for a newly published version."""
    engine: EngineSettings = EngineSettings()
    """What runs the model."""
    mix_requests: bool = False
    """Join the requests of several callers into one engine batch: faster, but floats then vary in their last bits."""
    queue: QueueSettings = QueueSettings()
    """How requests wait for the engine."""
    limits: LimitSettings = LimitSettings()
    """How much one request may hold."""
