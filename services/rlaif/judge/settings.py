"""Settings of the judge service."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from rlaif.core.template import TEMPLATE_NAMES
from rlaif.engine.settings import EngineSettings
from rlaif.runtime.settings import ClientSettings, ListenSettings, SettingsModel


class LimitSettings(SettingsModel):
    """How much one request may hold."""

    max_text_bytes: int = Field(default=64 * 1024, ge=1)
    """Longest turn or response, bytes of UTF-8."""
    max_turns: int = Field(default=64, ge=1)
    """Longest conversation, turns."""
    max_items: int = Field(default=1024, ge=1, le=1024)
    """Most pairs or responses in one batch."""
    max_request_bytes: int = Field(default=8 * 1024 * 1024, ge=1)
    """Most text in one batch, bytes of UTF-8."""


class QueueSettings(SettingsModel):
    """How requests share the engine. One presentation order of a pair, or one response, is one item."""

    max_batch_items: int = Field(default=256, ge=1)
    """Most items joined into one engine batch when requests are mixed."""
    max_delay_milliseconds: float = Field(default=5.0, ge=0, allow_inf_nan=False)
    """How long a batch waits for other callers when requests are mixed."""
    max_turn_items: int = Field(default=128, ge=1)
    """Most items of one caller that run in one turn: how long a single comparison may wait for a long job."""
    max_queue_items: int = Field(default=8192, ge=1)
    """Most items waiting; a caller beyond an equal share of it is then refused with a time to try again."""


class JudgeSettings(SettingsModel):
    """Everything the judge service can be told."""

    listen: ListenSettings = ListenSettings()
    """Where it serves."""
    model: str = Field(min_length=1)
    """Judge model: a folder or a hub id."""
    engine: EngineSettings = EngineSettings()
    """What runs the model."""
    template: Literal["compact", "standard"] = "standard"
    """Wording of the judge's prompts."""
    constitutions: list[str] = Field(min_length=1)
    """YAML files, or names of shipped constitutions."""
    ledger: ClientSettings | None = None
    """Ledger that keeps every label; null records nothing, and every request is computed anew."""
    ledger_batch_milliseconds: float = Field(default=3.0, ge=0, allow_inf_nan=False)
    """How long a single label waits for others to share its ledger call."""
    record: Literal["digests", "texts"] = "digests"
    """What the ledger keeps of the texts when a request does not say."""
    min_verdict_mass: float = Field(default=0.1, ge=0, le=1)
    """Abstain when the verdict labels together hold less probability, unless a request sets its own."""
    abstain_on_injection: bool = False
    """Abstain on responses that address the judge, instead of flagging them only."""
    mix_requests: bool = False
    """Join the requests of several callers into one engine batch: faster, but floats then vary in their last bits."""
    queue: QueueSettings = QueueSettings()
    """How requests wait for the engine."""
    limits: LimitSettings = LimitSettings()
    """How much one request may hold."""


assert set(TEMPLATE_NAMES) == {"compact", "standard"}
