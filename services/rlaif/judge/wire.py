"""Judgements into the messages that are recorded and answered."""

from __future__ import annotations

from dataclasses import asdict

from rlaif.core.audit import Finding
from rlaif.core.constitution import Constitution, Principle
from rlaif.core.conversation import Message, Role
from rlaif.core.preference import AbstentionReason, JudgeVote, Preference, PrincipleVote
from rlaif.core.reward import PrincipleScore, ResponseScore
from rlaif.core.template import JudgeTemplate
from rlaif.engine.protocol import Engine
from rlaif.judge.screening import Screening
from rlaif.judge.settling import SettledPair
from rlaif.judge.tasks import Task
from rlaif.runtime.revision import service_revision
from rlaif.runtime.telemetry import current_trace_id
from rlaif.v1 import conversation_pb2, judge_service_pb2, ledger_service_pb2, provenance_pb2

_ROLES: dict[Role, conversation_pb2.Role.ValueType] = {
    "system": conversation_pb2.ROLE_SYSTEM,
    "user": conversation_pb2.ROLE_USER,
    "assistant": conversation_pb2.ROLE_ASSISTANT,
}


class ProvenanceMaker:
    """Says how each value of one judge is made."""

    def __init__(self, engine: Engine, *, template: JudgeTemplate, num_verdict_samples: int = 0) -> None:
        self._engine = engine
        self._template = template
        self._num_verdict_samples = num_verdict_samples

    def __call__(self, task: Task) -> provenance_pb2.Provenance:
        """Provenance of a label being made now, in the call being served."""
        template_sha256 = self._template.reasoning_sha256 if task.options.reasoning else self._template.sha256
        provenance = self.of(task.constitution, template_sha256=template_sha256, seed=task.seed)
        provenance.num_verdict_samples = self._num_verdict_samples
        return provenance

    def of(self, constitution: Constitution, *, template_sha256: str, seed: int) -> provenance_pb2.Provenance:
        """Provenance of a value being made now under a constitution."""
        identity = self._engine.identity
        provenance = provenance_pb2.Provenance(
            model=provenance_pb2.ModelRef(uri=identity.uri, digest=identity.digest, version=identity.version),
            constitution=provenance_pb2.ConstitutionRef(
                constitution=constitution.name, sha256=constitution.sha256, version=constitution.version
            ),
            template_sha256=template_sha256,
            seed=seed,
            service_revision=service_revision(),
            trace_id=current_trace_id(),
        )
        provenance.create_time.GetCurrentTime()
        return provenance


def label_message(
    task: Task,
    decision: SettledPair | ResponseScore,
    *,
    screening: Screening,
    provenance: provenance_pb2.Provenance,
    rationale: str = "",
) -> ledger_service_pb2.Label:
    """The label as it is recorded and answered: texts only where the caller asked for them, digests always."""
    label = ledger_service_pb2.Label(
        name=label_name(task),
        request_sha256=task.request_sha256,
        source=ledger_service_pb2.LABEL_SOURCE_AI,
        subject=_subject(task),
    )
    if isinstance(decision, SettledPair):
        label.verdict.CopyFrom(_verdict(decision, provenance=provenance))
        label.verdict.rationale = rationale
        label.verdict.injection_suspected = screening.injection_suspected
        label.verdict.null_response_suspected = screening.null_response_suspected
        label.verdict.responses_nearly_identical = screening.responses_nearly_identical
    else:
        label.score.CopyFrom(_score(decision, provenance=provenance))
        label.score.injection_suspected = screening.injection_suspected
        label.score.null_response_suspected = screening.null_response_suspected
    return label


def label_name(task: Task) -> str:
    """Ledger resource of a task's label."""
    return f"labels/{task.request_sha256}"


def constitution_message(constitution: Constitution) -> judge_service_pb2.Constitution:
    """A constitution with its principles."""
    return judge_service_pb2.Constitution(
        name=constitution.name,
        version=constitution.version,
        sha256=constitution.sha256,
        description=constitution.description,
        principles=[_principle(principle) for principle in constitution.principles],
        critique=constitution.critique,
        revision=constitution.revision,
    )


def _principle(principle: Principle) -> judge_service_pb2.Principle:
    return judge_service_pb2.Principle(
        principle_id=principle.principle_id,
        text=principle.text,
        weight=principle.weight,
        dimension=principle.dimension,
        applies_to=principle.applies_to,
        critique=principle.critique,
        revision=principle.revision,
        exemplars=[judge_service_pb2.Exemplar(**asdict(exemplar)) for exemplar in principle.exemplars],
    )


def abstention_code(reason: AbstentionReason | None) -> judge_service_pb2.AbstentionReason.ValueType:
    """Enum value of a reason; unspecified when there is a verdict."""
    if reason is None:
        return judge_service_pb2.ABSTENTION_REASON_UNSPECIFIED
    return judge_service_pb2.AbstentionReason.Value(f"ABSTENTION_REASON_{reason.name}")


def finding_message(finding: Finding) -> judge_service_pb2.AuditFinding:
    """A finding of an audit."""
    return judge_service_pb2.AuditFinding(
        kind=judge_service_pb2.AuditFindingKind.Value(f"AUDIT_FINDING_KIND_{finding.kind.name}"),
        principle_ids=finding.principle_ids,
        description=finding.description,
        suggestion=finding.suggestion,
    )


def preference_code(preference: Preference) -> judge_service_pb2.Preference.ValueType:
    """Enum value of a preference."""
    return judge_service_pb2.Preference.Value(f"PREFERENCE_{preference.name}")


def _subject(task: Task) -> ledger_service_pb2.LabelSubject:
    candidate = task.candidate
    subject = ledger_service_pb2.LabelSubject(
        conversation_sha256=candidate.conversation_sha256,
        response_sha256s=candidate.response_sha256s,
        category=candidate.category,
        language=candidate.language,
        response_num_characters=map(len, candidate.responses),
    )
    if task.options.keep_texts:
        subject.messages.extend(_turn(message) for message in candidate.conversation)
        subject.responses.extend(candidate.responses)
    return subject


def _turn(message: Message) -> conversation_pb2.Message:
    return conversation_pb2.Message(role=_ROLES[message.role], content=message.content)


def _verdict(pair: SettledPair, *, provenance: provenance_pb2.Provenance) -> judge_service_pb2.Verdict:
    return judge_service_pb2.Verdict(
        preference=preference_code(pair.preference),
        probability_first=pair.probability_first,
        raw_probability_first=pair.raw_probability_first,
        order_consistent=pair.order_consistent,
        principle_votes=[_principle_vote(vote) for vote in pair.principle_votes],
        judge_votes=[_judge_vote(vote) for vote in pair.judge_votes],
        panel_disagreement=pair.panel_disagreement,
        abstention_reason=abstention_code(pair.abstention_reason),
        calibration=pair.calibration,
        provenance=provenance,
    )


def _judge_vote(vote: JudgeVote) -> judge_service_pb2.JudgeVote:
    return judge_service_pb2.JudgeVote(
        judge=vote.judge,
        model=provenance_pb2.ModelRef(uri=vote.model_uri, digest=vote.model_digest, version=vote.model_version),
        probability_first=vote.probability_first or 0.0,
        abstention_reason=abstention_code(vote.abstention_reason),
    )


def _principle_vote(vote: PrincipleVote) -> judge_service_pb2.PrincipleVote:
    return judge_service_pb2.PrincipleVote(
        principle_id=vote.principle_id,
        probability_first=vote.probability_first,
        probability_shown_first=vote.probability_when_first,
        probability_shown_second=vote.probability_when_second,
        verdict_mass=vote.verdict_mass,
        weight=vote.weight,
        abstention_reason=abstention_code(vote.abstention_reason),
    )


def _score(score: ResponseScore, *, provenance: provenance_pb2.Provenance) -> judge_service_pb2.Score:
    return judge_service_pb2.Score(
        expected=score.expected,
        reward=score.reward,
        principle_scores=[_principle_score(each) for each in score.scores],
        abstention_reason=abstention_code(score.abstention_reason),
        provenance=provenance,
    )


def _principle_score(score: PrincipleScore) -> judge_service_pb2.PrincipleScore:
    return judge_service_pb2.PrincipleScore(
        principle_id=score.principle_id,
        expected=score.expected,
        standard_deviation=score.standard_deviation,
        probabilities=score.probabilities,
        verdict_mass=score.verdict_mass,
        weight=score.weight,
        abstention_reason=abstention_code(score.abstention_reason),
    )
