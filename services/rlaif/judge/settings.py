"""Settings of the judge service."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field, field_validator, model_validator

from rlaif.core.template import TEMPLATE_NAMES
from rlaif.engine.settings import EngineSettings
from rlaif.playground.paths import JUDGE_DIR, PLAYGROUND
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
    max_turn_texts: int = Field(default=16, ge=1)
    """Most prompts of one caller whose texts are written in one turn: rationales, critiques, revisions."""
    max_queue_items: int = Field(default=8192, ge=1)
    """Most items waiting; a caller beyond an equal share of it is then refused with a time to try again."""


class ReasoningSettings(SettingsModel):
    """How a rationale is written before a verdict, for requests that ask for one."""

    max_tokens: int = Field(default=256, ge=1)
    """Longest rationale, tokens; one that does not end by then is not used."""
    temperature: float = Field(default=0.7, ge=0, le=10, allow_inf_nan=False)
    """Temperature of the draw; 0 is greedy, and then all samples are the same."""
    top_p: float = Field(default=1.0, gt=0, le=1)
    """Nucleus of the draw."""


class WritingSettings(SettingsModel):
    """How critiques, revisions and audits are written."""

    max_critique_tokens: int = Field(default=256, ge=1)
    """Longest critique, tokens; one that does not end by then is an abstention."""
    max_revision_tokens: int = Field(default=1024, ge=1)
    """Longest revision, tokens."""
    max_audit_tokens: int = Field(default=1024, ge=1)
    """Longest written audit, tokens."""
    temperature: float = Field(default=0.7, ge=0, le=10, allow_inf_nan=False)
    """Temperature of the draw, repeatable by the request's seed; 0 is greedy."""
    top_p: float = Field(default=1.0, gt=0, le=1)
    """Nucleus of the draw."""
    max_exemplars: int = Field(default=4, ge=0)
    """Most of the constitution's exemplars shown."""


class PanelJudgeSettings(ClientSettings):
    """Another judge service of the panel, and how to reach it; `timeout_seconds` is how long its vote is waited for."""

    name: str = Field(min_length=1, max_length=63, pattern=r"^[a-z0-9][a-z0-9-]*$")
    """Its name in votes and metrics."""


class PanelSettings(SettingsModel):
    """Judges that vote beside the own model on every comparison."""

    judges: list[PanelJudgeSettings] = Field(min_length=1, max_length=15)
    """The other judges; one that is not reached or late has no vote."""
    rule: Literal["mean", "median", "majority"] = "mean"
    """How probabilities are combined; majority takes the share of judges that prefer the first."""
    quorum: int | None = Field(default=None, ge=1)
    """Judges that must vote, and by majority agree, or the panel abstains; null means more than half of them."""
    max_disagreement: float = Field(default=0.5, ge=0, le=0.5)
    """Abstain when the standard deviation of the votes' probabilities is above this."""

    @model_validator(mode="after")
    def _is_possible(self) -> PanelSettings:
        names = [judge.name for judge in self.judges]
        if len(set(names)) < len(names):
            raise ValueError("two judges have the same name")
        if self.quorum is not None and self.quorum > len(names) + 1:
            raise ValueError(f"a quorum of {self.quorum} cannot be reached by {len(names) + 1} judges")
        return self

    @property
    def votes_needed(self) -> int:
        """The quorum, filled in."""
        return self.quorum or (len(self.judges) + 1) // 2 + 1


class JudgeSettings(SettingsModel):
    """Everything the judge service can be told."""

    listen: ListenSettings = ListenSettings()
    """Where it serves."""
    model: str = Field(min_length=1)
    """Judge model: a folder, a URI such as s3://bucket/model, a hub id, or playground."""
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
    without_logprobs: Literal["refuse", "sample"] = "refuse"
    """What to do with an engine that gives no log-probabilities: refuse to start, or estimate verdicts from draws."""
    num_verdict_samples: int = Field(default=8, ge=2, le=128)
    """Draws of each verdict, for every order and principle, where they are estimated."""
    abstain_on_injection: bool = False
    """Abstain on responses that address the judge, instead of flagging them only."""
    null_response_conversations: int = Field(default=8, ge=2)
    """Flag a response as null once it has answered so many different conversations."""
    calibrations: tuple[Path, ...] = ()
    """Files of fitted calibrations; one fitted on another model, template or constitution stops the start."""
    panel: PanelSettings | None = None
    """Other judges that vote on every comparison; null for the own model alone."""
    reasoning: ReasoningSettings | None = ReasoningSettings()
    """Rationales before verdicts; null for a model that writes none, and then a request for one is refused."""
    writing: WritingSettings = WritingSettings()
    """Critiques, revisions and audits."""
    mix_requests: bool = False
    """Join the requests of several callers into one engine batch: faster, but floats then vary in their last bits."""
    queue: QueueSettings = QueueSettings()
    """How requests wait for the engine."""
    limits: LimitSettings = LimitSettings()
    """How much one request may hold."""

    @field_validator("model")
    @classmethod
    def _shipped(cls, value: str) -> str:
        return str(JUDGE_DIR) if value == PLAYGROUND else value


assert set(TEMPLATE_NAMES) == {"compact", "standard"}
