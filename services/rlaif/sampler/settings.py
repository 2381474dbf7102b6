"""Settings of the sampler service."""

from __future__ import annotations

from pydantic import Field, field_validator

from rlaif.engine.settings import EngineSettings
from rlaif.playground.paths import PLAYGROUND, POLICY_DIR
from rlaif.runtime.settings import ListenSettings, PositiveSeconds, SettingsModel
from rlaif.runtime.store import ArtifactRoot, StorageOptions


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


class SamplerSettings(SettingsModel):
    """Everything the sampler service can be told."""

    listen: ListenSettings = ListenSettings()
    """Where it serves."""
    model: str = Field(min_length=1)
    """Base model, version 0 of the policy: a folder, a URI such as s3://bucket/model, a hub id, or playground."""
    policy: str = Field(pattern=r"^policies/[A-Za-z0-9][A-Za-z0-9._-]{0,127}$")
    """Name of the policy served, "policies/{run}"."""
    artifact_root: ArtifactRoot | None = None
    """Folder or URI where versions of the policy are published; null serves the base model for ever."""
    storage_options: StorageOptions = Field(default_factory=dict)
    """What the file system behind a URI is told beyond the environment, such as its endpoint_url; never a secret."""
    sync_poll_seconds: PositiveSeconds = 0.5
    """How often to look for a newly published version."""
    sync_deadline_seconds: PositiveSeconds = 300.0
    """How long a replica may be behind what is published before it stops being ready, and the most that reading,
    fetching or loading a version may take each."""
    engine: EngineSettings = EngineSettings()
    """What runs the model."""
    queue: QueueSettings = QueueSettings()
    """How requests wait for the engine."""
    limits: LimitSettings = LimitSettings()
    """How much one request may hold."""

    @field_validator("model")
    @classmethod
    def _shipped(cls, value: str) -> str:
        return str(POLICY_DIR) if value == PLAYGROUND else value
