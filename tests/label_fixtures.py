"""Comparisons by a judge and by people, as the ledger keeps them."""

from __future__ import annotations

from ledger_fixtures import CONSTITUTION, sha256
from rlaif.core.canonical import digest
from rlaif.v1 import conversation_pb2, judge_service_pb2
from rlaif.v1 import ledger_service_pb2 as pb

JUDGE, TEMPLATE, CONSTITUTION_DIGEST = sha256("judge"), sha256("template"), sha256("constitution")


def pair_subject(prompt: str, first: str, second: str, *, texts: bool = True, category: str = "") -> pb.LabelSubject:
    """Two responses to one user turn."""
    subject = pb.LabelSubject(
        conversation_sha256=digest([{"role": "user", "content": prompt}]),
        response_sha256s=[sha256(first), sha256(second)],
        response_num_characters=[len(first), len(second)],
        category=category,
    )
    if texts:
        subject.messages.add(role=conversation_pb2.ROLE_USER, content=prompt)
        subject.responses.extend([first, second])
    return subject


def judge_label(
    subject: pb.LabelSubject,
    *,
    when_first: float,
    when_second: float,
    constitution: str = CONSTITUTION,
    raw: float | None = None,
    seed: str = "",
) -> pb.Label:
    """What a judge of one principle recorded, from P(first) when shown first and when shown second."""
    probability = (when_first + when_second) / 2
    subject_key = digest([subject.conversation_sha256, list(subject.response_sha256s), constitution, seed])
    label = pb.Label(request_sha256=subject_key, source=pb.LABEL_SOURCE_AI, subject=subject)
    verdict = label.verdict
    verdict.preference = (
        judge_service_pb2.PREFERENCE_FIRST
        if probability > 0.5
        else judge_service_pb2.PREFERENCE_SECOND
        if probability < 0.5
        else judge_service_pb2.PREFERENCE_TIE
    )
    verdict.probability_first = probability
    verdict.raw_probability_first = probability if raw is None else raw
    verdict.order_consistent = (when_first > 0.5) == (when_second > 0.5)
    verdict.principle_votes.add(
        principle_id="helpful",
        probability_first=probability,
        probability_shown_first=when_first,
        probability_shown_second=when_second,
        verdict_mass=1.0,
        weight=1.0,
    )
    verdict.provenance.model.digest = JUDGE
    verdict.provenance.template_sha256 = TEMPLATE
    verdict.provenance.constitution.constitution = constitution
    verdict.provenance.constitution.sha256 = CONSTITUTION_DIGEST
    return label


def abstention(subject: pb.LabelSubject) -> pb.Label:
    """A judge that did not decide."""
    label = judge_label(subject, when_first=0.5, when_second=0.5)
    label.verdict.preference = judge_service_pb2.PREFERENCE_ABSTAIN
    label.verdict.abstention_reason = judge_service_pb2.ABSTENTION_REASON_LOW_VERDICT_MASS
    label.verdict.ClearField("probability_first")
    label.verdict.ClearField("raw_probability_first")
    label.verdict.ClearField("principle_votes")
    return label


def human_label(
    subject: pb.LabelSubject,
    preference: judge_service_pb2.Preference.ValueType,
    *,
    annotator: str = "",
    constitution: str = "",
    key: str = "",
) -> pb.Label:
    """What one person said."""
    parts = [subject.conversation_sha256, list(subject.response_sha256s), preference, annotator, key]
    label = pb.Label(request_sha256=digest(parts), source=pb.LABEL_SOURCE_HUMAN, subject=subject, annotator=annotator)
    label.verdict.preference = preference
    label.verdict.provenance.constitution.constitution = constitution
    return label


FIRST, SECOND, TIE = (
    judge_service_pb2.PREFERENCE_FIRST,
    judge_service_pb2.PREFERENCE_SECOND,
    judge_service_pb2.PREFERENCE_TIE,
)
