"""Judgements into the messages that are recorded and answered."""

from __future__ import annotations

from dataclasses import asdict

from rlaif.core.constitution import Constitution, Principle
from rlaif.core.conversation import Message, Role
from rlaif.core.preference import AbstentionReason, PairLabel, Preference, PrincipleVote
from rlaif.core.reward import PrincipleScore, ResponseScore
from rlaif.core.template import JudgeTemplate
from rlaif.engine.protocol import Engine
from rlaif.judge.labelling import Judgement
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
    """Says how each label of one judge is made."""

    def __init__(self, engine: Engine, *, template: JudgeTemplate) -> None:
        self._engine = engine
        self._template_sha256 = template.sha256

    def __call__(self, task: Task) -> provenance_pb2.Provenance:
        """Provenance of a label being made now, in the call being served."""
        identity, constitution = self._engine.identity, task.constitution
        provenance = provenance_pb2.Provenance(
            model=provenance_pb2.ModelRef(uri=identity.uri, digest=identity.digest, version=identity.version),
            constitution=provenance_pb2.ConstitutionRef(
                constitution=constitution.name, sha256=constitution.sha256, version=constitution.version
            ),
            template_sha256=self._template_sha256,
            seed=task.seed,
            service_revision=service_revision(),
            trace_id=current_trace_id(),
        )
        provenance.create_time.GetCurrentTime()
        return provenance


def label_message(
    task: Task, judgement: Judgement, *, provenance: provenance_pb2.Provenance
) -> ledger_service_pb2.Label:
    """The label as the ledger keeps it: texts only where the caller asked for them, digests always."""
    label = ledger_service_pb2.Label(
        name=label_name(task),
        request_sha256=task.request_sha256,
        source=ledger_service_pb2.LABEL_SOURCE_AI,
        subject=_subject(task),
    )
    if isinstance(judgement.decision, PairLabel):
        label.verdict.CopyFrom(_verdict(judgement.decision, provenance=provenance))
        label.verdict.injection_suspected = judgement.injection_suspected
    else:
        label.score.CopyFrom(_score(judgement.decision, provenance=provenance))
        label.score.injection_suspected = judgement.injection_suspected
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


def preference_code(preference: Preference) -> judge_service_pb2.Preference.ValueType:
    """Enum value of a preference."""
    return judge_service_pb2.Preference.Value(f"PREFERENCE_{preference.name}")


def _subject(task: Task) -> ledger_service_pb2.LabelSubject:
    candidate = task.candidate
    subject = ledger_service_pb2.LabelSubject(
        conversation_sha256=candidate.conversation_sha256,
        response_sha256s=candidate.response_sha256s,
        category=candidate.category,
    )
    if task.options.keep_texts:
        subject.messages.extend(_turn(message) for message in candidate.conversation)
        subject.responses.extend(candidate.responses)
    return subject


def _turn(message: Message) -> conversation_pb2.Message:
    return conversation_pb2.Message(role=_ROLES[message.role], content=message.content)


def _verdict(label: PairLabel, *, provenance: provenance_pb2.Provenance) -> judge_service_pb2.Verdict:
    reason = abstention_code(label.abstention_reason)
    return judge_service_pb2.Verdict(
        preference=preference_code(label.preference),
        probability_first=label.probability_first,
        raw_probability_first=label.probability_first,
        order_consistent=label.order_consistent,
        principle_votes=[_principle_vote(vote) for vote in label.votes],
        judge_votes=[
            judge_service_pb2.JudgeVote(
                model=provenance.model, probability_first=label.probability_first or 0.0, abstention_reason=reason
            )
        ],
        abstention_reason=reason,
        provenance=provenance,
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
