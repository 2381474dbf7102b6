"""What the judge answers, as frozen values."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal, cast

from rlaif.core.constitution import Constitution, Principle
from rlaif.core.conversation import Message, Role
from rlaif.v1 import conversation_pb2, judge_service_pb2, provenance_pb2

PreferenceName = Literal["first", "second", "tie", "abstain"]

_ROLES: dict[Role, conversation_pb2.Role.ValueType] = {
    "system": conversation_pb2.ROLE_SYSTEM,
    "user": conversation_pb2.ROLE_USER,
    "assistant": conversation_pb2.ROLE_ASSISTANT,
}


@dataclass(frozen=True)
class Provenance:
    """Which weights, rules and code made a value."""

    model_uri: str
    model_digest: str
    model_version: int
    constitution: str
    constitution_sha256: str
    template_sha256: str
    seed: int
    service_revision: str
    trace_id: str


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


def conversation_messages(conversation: Sequence[Message]) -> list[conversation_pb2.Message]:
    """A conversation for the wire."""
    return [conversation_pb2.Message(role=_ROLES[message.role], content=message.content) for message in conversation]


def verdict(message: judge_service_pb2.Verdict) -> Verdict:
    """A verdict off the wire."""
    name = judge_service_pb2.Preference.Name(message.preference).removeprefix("PREFERENCE_").lower()
    return Verdict(
        preference=cast(PreferenceName, name),
        probability_first=message.probability_first if message.HasField("probability_first") else None,
        raw_probability_first=message.raw_probability_first if message.HasField("raw_probability_first") else None,
        order_consistent=message.order_consistent,
        votes=tuple(
            PrincipleVote(
                principle_id=vote.principle_id,
                probability_first=vote.probability_first,
                probability_shown_first=vote.probability_shown_first,
                probability_shown_second=vote.probability_shown_second,
                verdict_mass=vote.verdict_mass,
                weight=vote.weight,
                abstention_reason=_reason(vote.abstention_reason),
            )
            for vote in message.principle_votes
        ),
        panel_disagreement=message.panel_disagreement,
        abstention_reason=_reason(message.abstention_reason),
        injection_suspected=message.injection_suspected,
        calibration=message.calibration,
        label=message.label,
        recorded_before=message.recorded_before,
        provenance=provenance(message.provenance),
    )


def score(message: judge_service_pb2.Score) -> Score:
    """A score off the wire."""
    return Score(
        expected=message.expected if message.HasField("expected") else None,
        reward=message.reward if message.HasField("reward") else None,
        scores=tuple(
            PrincipleScore(
                principle_id=each.principle_id,
                expected=each.expected,
                standard_deviation=each.standard_deviation,
                probabilities=tuple(each.probabilities),
                verdict_mass=each.verdict_mass,
                weight=each.weight,
                abstention_reason=_reason(each.abstention_reason),
            )
            for each in message.principle_scores
        ),
        abstention_reason=_reason(message.abstention_reason),
        injection_suspected=message.injection_suspected,
        label=message.label,
        recorded_before=message.recorded_before,
        provenance=provenance(message.provenance),
    )


def ranking(message: judge_service_pb2.RankResponsesResponse) -> Ranking:
    """A ranking off the wire."""
    return Ranking(
        ranking=tuple(
            RankedResponse(each.index, each.rank, each.strength, each.strength_standard_error)
            for each in message.ranking
        ),
        cycles=tuple(tuple(cycle.indices) for cycle in message.cycles),
        comparisons=tuple(
            RankComparison(each.first_index, each.second_index, verdict(each.verdict)) for each in message.comparisons
        ),
        abstention_reason=_reason(message.abstention_reason),
    )


def constitution(message: judge_service_pb2.Constitution) -> Constitution:
    """A constitution off the wire."""
    return Constitution(
        constitution_id=message.name.removeprefix("constitutions/"),
        version=message.version,
        description=message.description,
        principles=tuple(_principles(message.principles)),
    )


def provenance(message: provenance_pb2.Provenance) -> Provenance:
    """Provenance off the wire."""
    return Provenance(
        model_uri=message.model.uri,
        model_digest=message.model.digest,
        model_version=message.model.version,
        constitution=message.constitution.constitution,
        constitution_sha256=message.constitution.sha256,
        template_sha256=message.template_sha256,
        seed=message.seed,
        service_revision=message.service_revision,
        trace_id=message.trace_id,
    )


def _principles(principles: Iterable[judge_service_pb2.Principle]) -> Iterable[Principle]:
    for each in principles:
        yield Principle(each.principle_id, each.text, each.weight, each.dimension)


def _reason(code: judge_service_pb2.AbstentionReason.ValueType) -> str | None:
    if code == judge_service_pb2.ABSTENTION_REASON_UNSPECIFIED:
        return None
    return judge_service_pb2.AbstentionReason.Name(code).removeprefix("ABSTENTION_REASON_").lower()
