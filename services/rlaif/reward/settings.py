"""Settings of the reward service."""

from __future__ import annotations

import re
from typing import Literal

from pydantic import Field, model_validator

from rlaif.reward.recipes import MAX_MEMBERS, RecipeSettings
from rlaif.runtime.settings import ClientSettings, ListenSettings, PositiveSeconds, SettingsModel
from rlaif.runtime.store import ArtifactRoot

JUDGE_ID = "judge"
"""Id of the reward model that is the judge alone."""
RESOURCE_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
"""What a reward model may be called."""


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
    max_members: int = Field(default=MAX_MEMBERS, ge=1, le=MAX_MEMBERS)
    """Most members of an ensemble that is loaded by a call."""


class QueueSettings(SettingsModel):
    """How requests share the engine. A token counts once for every member that reads it."""

    max_batch_tokens: int = Field(default=8192, ge=1)
    """Most tokens joined into one engine batch when requests are mixed, and most of one request that run in a turn."""
    max_delay_milliseconds: float = Field(default=5.0, ge=0, allow_inf_nan=False)
    """How long a batch waits for other callers when requests are mixed."""
    max_queue_tokens: int = Field(default=1_048_576, ge=1)
    """Most tokens waiting; a caller beyond an equal share of it is then refused with a time to try again."""


class RewardSettings(SettingsModel):
    """Everything the reward service can be told."""

    listen: ListenSettings = ListenSettings()
    """Where it serves."""
    judge: ClientSettings | None = None
    """Judge behind "rewardModels/judge"; null leaves that name out."""
    engine: RewardEngineSettings = RewardEngineSettings()
    """What runs reward models."""
    reward_models: dict[str, RecipeSettings] = Field(default_factory=dict)
    """Reward models to load at start: name to components, or to the model folders of a single ensemble."""
    artifact_root: ArtifactRoot | None = None
    """Shared storage whose models LoadRewardModel may load, a folder or URI; null for none."""
    allowed_roots: list[str] = Field(default_factory=list)
    """Other folders, URIs or hub ids from which LoadRewardModel may load; members named in reward_models always may."""
    remember_loads: bool = False
    """Whether what is loaded is recorded below artifact_root, where a restart and all other replicas find it."""
    refresh_seconds: PositiveSeconds = 1.0
    """With remember_loads, how long a record that was read is taken for the newest; a load takes at least that long."""
    mix_requests: bool = False
    """Join the requests of several callers into one engine batch: faster, but floats then vary in their last bits."""
    queue: QueueSettings = QueueSettings()
    """How requests wait for the engine."""
    limits: LimitSettings = LimitSettings()
    """How much one request may hold."""

    @model_validator(mode="after")
    def _is_possible(self) -> RewardSettings:
        if self.remember_loads and self.artifact_root is None:
            raise ValueError("remember_loads needs artifact_root: the records lie below it")
        for name, recipe in self.reward_models.items():
            if not RESOURCE_ID.fullmatch(name):
                raise ValueError(f"reward_models: {name!r} is no name: letters, digits, '.', '_' and '-', at most 128")
            if name == JUDGE_ID:
                raise ValueError(f"reward_models: {JUDGE_ID} is the direct judge; give this reward model another name")
            if self.judge is None and any(component.kind == "judge" for component in recipe.components):
                raise ValueError(f"reward_models.{name} has the judge as a component, but no judge is set")
        return self
