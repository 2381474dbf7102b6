"""What one asks the judge and what it answers, as frozen values."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime
from typing import Literal, NamedTuple

from rlaif.core.audit import Finding
from rlaif.core.conversation import Conversation

PreferenceName = Literal["first", "second", "tie", "abstain"]

Progress = Callable[[int, int], None]
"""Called with (done, total) after every batch."""

Asked = Conversation | str
"""The conversation that is answered; a text stands for one user turn."""


@dataclass(frozen=True)
class JudgeOptions:
    """How to judge; None and 0 leave the choice to the server.

    `num_sampled_principles` of the principles are drawn by `seed`, anew for every pair; 0 applies all.
    """

    principle_ids: tuple[str, ...] = ()
    num_sampled_principles: int = 0
    seed: int = 0
    reasoning: bool = False
    """Write a rationale before the verdict, where the judge can."""
    num_reasoning_samples: int = 0
    """Rationales averaged with `reasoning`, 1 to 16."""
    min_verdict_mass: float | None = None
    record: Literal["digests", "texts"] | None = None
    ignore_recorded: bool = False


DEFAULT_OPTIONS = JudgeOptions()


@dataclass(frozen=True)
class ResponsePair:
    """Two responses to one conversation; neither is empty and they differ."""

    conversation: Asked
    first: str
    second: str
    category: str = ""
    """Principles that do not apply to it are left out; empty for none."""
    language: str = ""
    """BCP 47 tag such as "en" or "pt-BR", recorded with the label; empty for none."""


class ResponseToScore(NamedTuple):
    """A response to one conversation; it may be empty."""

    conversation: Asked
    response: str
    category: str = ""


ToScore = ResponseToScore | tuple[Asked, str]


@dataclass(frozen=True)
class Provenance:
    """Which weights, rules and code made a value.

    `num_verdict_samples` is 0 where verdicts were read from log-probabilities, else the draws each was estimated from.
    """

    model_uri: str
    model_digest: str
    model_version: int
    constitution: str
    constitution_sha256: str
    template_sha256: str
    seed: int
    service_revision: str
    trace_id: str
    num_verdict_samples: int = 0
    create_time: datetime | None = field(default=None, compare=False)
    """When the value was made, by the service's clock, UTC."""


@dataclass(frozen=True)
class PrincipleVote:
    """What one principle said of a pair; probabilities are of the first response and mean nothing when it abstains."""

    principle_id: str
    probability_first: float
    probability_shown_first: float
    probability_shown_second: float
    verdict_mass: float
    weight: float
    abstention_reason: str | None


@dataclass(frozen=True)
class JudgeVote:
    """What one judge of a panel said of a pair; `judge` is empty for the service's own model."""

    judge: str
    model_uri: str
    model_digest: str
    probability_first: float
    abstention_reason: str | None


@dataclass(frozen=True)
class Verdict:
    """The judge's decision on a pair; probabilities are None exactly when it abstained."""

    preference: PreferenceName
    probability_first: float | None
    raw_probability_first: float | None
    order_consistent: bool
    votes: tuple[PrincipleVote, ...]
    panel_disagreement: float
    abstention_reason: str | None
    injection_suspected: bool
    calibration: str
    label: str
    recorded_before: bool
    provenance: Provenance
    judge_votes: tuple[JudgeVote, ...] = ()
    rationale: str = ""
    null_response_suspected: bool = False
    responses_nearly_identical: bool = False


@dataclass(frozen=True)
class PrincipleScore:
    """What one principle said of a response: distribution over 1…10, its mean and standard deviation."""

    principle_id: str
    expected: float
    standard_deviation: float
    probabilities: tuple[float, ...]
    verdict_mass: float
    weight: float
    abstention_reason: str | None


@dataclass(frozen=True)
class Score:
    """The judge's score: `expected` in [1, 10], `reward` in [-1, 1]; None exactly when it abstained."""

    expected: float | None
    reward: float | None
    scores: tuple[PrincipleScore, ...]
    abstention_reason: str | None
    injection_suspected: bool
    label: str
    recorded_before: bool
    provenance: Provenance
    null_response_suspected: bool = False


@dataclass(frozen=True)
class RankedResponse:
    """`index` in the request, `rank` from 1, Bradley-Terry log-strength with mean 0 and its standard error."""

    index: int
    rank: int
    strength: float
    strength_standard_error: float


@dataclass(frozen=True)
class RankComparison:
    """One comparison behind a ranking."""

    first_index: int
    second_index: int
    verdict: Verdict


@dataclass(frozen=True)
class Ranking:
    """Responses from best to worst; empty exactly when `abstention_reason` is set."""

    ranking: tuple[RankedResponse, ...]
    cycles: tuple[tuple[int, ...], ...]
    comparisons: tuple[RankComparison, ...]
    abstention_reason: str | None


@dataclass(frozen=True)
class Critique:
    """Where a response departs from the principles; `text` is empty exactly when the judge abstained."""

    text: str
    principle_ids: tuple[str, ...]
    abstention_reason: str | None
    provenance: Provenance


@dataclass(frozen=True)
class Revision:
    """A response rewritten to answer a critique; `text` is empty exactly when the judge abstained."""

    text: str
    unchanged: bool
    abstention_reason: str | None
    provenance: Provenance


@dataclass(frozen=True)
class ConstitutionAudit:
    """Findings of the mechanical checks, and the judge model's own words when they were asked for."""

    findings: tuple[Finding, ...]
    written_audit: str
    written_audit_abstention_reason: str | None
    provenance: Provenance


@dataclass(frozen=True)
class JudgeState:
    """Which judge answers; `fingerprint` is empty when some of its weights cannot be identified.

    `num_verdict_samples` is as in Provenance.
    """

    model_uri: str
    model_digest: str
    template: str
    template_sha256: str
    context_length_tokens: int
    panel: tuple[str, ...]
    calibrations: tuple[str, ...]
    fingerprint: str
    num_verdict_samples: int = 0
