"""What a judge answers as values of its clients, and constitutions and conversations both ways."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import UTC
from typing import cast

from rlaif.client.judge_values import (
    ConstitutionAudit,
    Critique,
    JudgeState,
    JudgeVote,
    PreferenceName,
    PrincipleScore,
    PrincipleVote,
    Provenance,
    RankComparison,
    RankedResponse,
    Ranking,
    Revision,
    Score,
    Verdict,
)
from rlaif.core.audit import Finding, FindingKind
from rlaif.core.constitution import Constitution, Exemplar, Principle
from rlaif.core.conversation import Message, Role
from rlaif.v1 import conversation_pb2, provenance_pb2
from rlaif.v1 import judge_service_pb2 as pb

Rules = str | Constitution
"""The name of a constitution that the judge has, "constitutions/{id}", or a constitution to send along."""

_ROLES: dict[Role, conversation_pb2.Role.ValueType] = {
    "system": conversation_pb2.ROLE_SYSTEM,
    "user": conversation_pb2.ROLE_USER,
    "assistant": conversation_pb2.ROLE_ASSISTANT,
}


def conversation_messages(conversation: Sequence[Message] | str) -> list[conversation_pb2.Message]:
    """A conversation for the wire; a text stands for one user turn."""
    turns = (Message("user", conversation),) if isinstance(conversation, str) else conversation
    return [conversation_pb2.Message(role=_ROLES[turn.role], content=turn.content) for turn in turns]


def verdict(message: pb.Verdict) -> Verdict:
    """A verdict off the wire."""
    return Verdict(
        preference=cast(PreferenceName, _lower(pb.Preference.Name(message.preference), prefix="PREFERENCE_")),
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
        judge_votes=tuple(
            JudgeVote(
                judge=vote.judge,
                model_uri=vote.model.uri,
                model_digest=vote.model.digest,
                probability_first=vote.probability_first,
                abstention_reason=_reason(vote.abstention_reason),
            )
            for vote in message.judge_votes
        ),
        rationale=message.rationale,
        null_response_suspected=message.null_response_suspected,
        responses_nearly_identical=message.responses_nearly_identical,
    )


def score(message: pb.Score) -> Score:
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
        null_response_suspected=message.null_response_suspected,
    )


def ranking(message: pb.RankResponsesResponse) -> Ranking:
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


def critique(message: pb.CritiqueResponseResponse) -> Critique:
    """A critique off the wire."""
    return Critique(
        text=message.critique,
        principle_ids=tuple(message.principle_ids),
        abstention_reason=_reason(message.abstention_reason),
        provenance=provenance(message.provenance),
    )


def revision(message: pb.ReviseResponseResponse) -> Revision:
    """A rewrite off the wire."""
    return Revision(
        text=message.revision,
        unchanged=message.unchanged,
        abstention_reason=_reason(message.abstention_reason),
        provenance=provenance(message.provenance),
    )


def audit(message: pb.AuditConstitutionResponse) -> ConstitutionAudit:
    """An audit off the wire."""
    return ConstitutionAudit(
        findings=tuple(
            Finding(
                kind=FindingKind(_lower(pb.AuditFindingKind.Name(each.kind), prefix="AUDIT_FINDING_KIND_")),
                principle_ids=tuple(each.principle_ids),
                description=each.description,
                suggestion=each.suggestion,
            )
            for each in message.findings
        ),
        written_audit=message.written_audit,
        written_audit_abstention_reason=_reason(message.written_audit_abstention_reason),
        provenance=provenance(message.provenance),
    )


def judge_state(message: pb.GetJudgeResponse) -> JudgeState:
    """Which judge it is, off the wire."""
    return JudgeState(
        model_uri=message.model.uri,
        model_digest=message.model.digest,
        template=message.template,
        template_sha256=message.template_sha256,
        context_length_tokens=message.context_length_tokens,
        panel=tuple(judge.judge for judge in message.panel),
        calibrations=tuple(message.calibrations),
        fingerprint=message.fingerprint,
        num_verdict_samples=message.num_verdict_samples,
    )


def constitution_message(constitution: Constitution) -> pb.Constitution:
    """A constitution for the wire, with its digest."""
    return pb.Constitution(
        name=constitution.name,
        version=constitution.version,
        sha256=constitution.sha256,
        description=constitution.description,
        critique=constitution.critique,
        revision=constitution.revision,
        principles=[
            pb.Principle(
                principle_id=each.principle_id,
                text=each.text,
                weight=each.weight,
                dimension=each.dimension,
                applies_to=each.applies_to,
                critique=each.critique,
                revision=each.revision,
                exemplars=[
                    pb.Exemplar(
                        prompt=exemplar.prompt,
                        response=exemplar.response,
                        critique=exemplar.critique,
                        revision=exemplar.revision,
                    )
                    for exemplar in each.exemplars
                ],
            )
            for each in constitution.principles
        ],
    )


def constitution(message: pb.Constitution) -> Constitution:
    """A constitution off the wire."""
    return Constitution(
        constitution_id=message.name.removeprefix("constitutions/"),
        version=message.version,
        description=message.description,
        principles=tuple(_principles(message.principles)),
        critique=message.critique,
        revision=message.revision,
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
        num_verdict_samples=message.num_verdict_samples,
        create_time=message.create_time.ToDatetime(UTC) if message.HasField("create_time") else None,
    )


def _principles(principles: Iterable[pb.Principle]) -> Iterable[Principle]:
    for each in principles:
        yield Principle(
            each.principle_id,
            each.text,
            each.weight,
            each.dimension,
            applies_to=tuple(each.applies_to),
            critique=each.critique,
            revision=each.revision,
            exemplars=tuple(
                Exemplar(exemplar.prompt, exemplar.response, exemplar.critique, exemplar.revision)
                for exemplar in each.exemplars
            ),
        )


def _reason(code: pb.AbstentionReason.ValueType) -> str | None:
    if code == pb.ABSTENTION_REASON_UNSPECIFIED:
        return None
    return _lower(pb.AbstentionReason.Name(code), prefix="ABSTENTION_REASON_")


def _lower(name: str, *, prefix: str) -> str:
    return name.removeprefix(prefix).lower()
