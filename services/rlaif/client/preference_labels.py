"""People's preferences as labels for the ledger, and labels of the ledger as rows to train on."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rlaif.client.judge_messages import conversation_messages
from rlaif.core.canonical import digest, sha256_hex
from rlaif.core.conversation import to_json
from rlaif.core.human_preference import HumanPreference
from rlaif.v1 import conversation_pb2, judge_service_pb2
from rlaif.v1 import ledger_service_pb2 as pb

_ROLES = {
    conversation_pb2.ROLE_SYSTEM: "system",
    conversation_pb2.ROLE_USER: "user",
    conversation_pb2.ROLE_ASSISTANT: "assistant",
}
_SOURCES = {pb.LABEL_SOURCE_AI: "ai", pb.LABEL_SOURCE_HUMAN: "human"}

PairTexts = tuple[Sequence[Mapping[str, str]], str, str]
"""Conversation as JSON messages, first response, second response."""


@dataclass(frozen=True)
class NotExported:
    """Why a label is no row: "abstained", "tie", "score" or "no_texts"."""

    reason: str


def human_labels(preferences: Iterable[HumanPreference], *, keep_texts: bool = True) -> Iterator[pb.Label]:
    """Labels of these preferences; the same preferences give the same labels, so that a file counts once.

    Equal rows without an annotator are different people, and told apart by their order.
    """
    seen: dict[str, int] = {}
    for preference in preferences:
        subject = _subject(preference, keep_texts=keep_texts)
        identity = {
            "kind": "human_preference",
            "conversation_sha256": subject.conversation_sha256,
            "response_sha256s": list(subject.response_sha256s),
            "preference": preference.preference.value,
            "annotator": preference.annotator,
            "constitution": preference.constitution,
        }
        key = digest(identity)
        occurrence = 0 if preference.annotator else seen.get(key, 0)
        seen[key] = occurrence + 1
        label = pb.Label(
            request_sha256=digest(identity | {"occurrence": occurrence}),
            source=pb.LABEL_SOURCE_HUMAN,
            subject=subject,
            annotator=preference.annotator,
        )
        label.verdict.preference = judge_service_pb2.Preference.Value(f"PREFERENCE_{preference.preference.name}")
        label.verdict.provenance.constitution.constitution = preference.constitution
        yield label


def preference_row(label: pb.Label, *, texts: Mapping[str, PairTexts]) -> dict[str, Any] | NotExported:
    """The label in TRL's conversational preference form, with the soft label as `probability_chosen`.

    `texts` finds, by `subject_id`, what the ledger did not keep.
    """
    if label.WhichOneof("decision") != "verdict":
        return NotExported("score")
    verdict = label.verdict
    if verdict.preference == judge_service_pb2.PREFERENCE_ABSTAIN:
        return NotExported("abstained")
    if verdict.preference == judge_service_pb2.PREFERENCE_TIE:
        return NotExported("tie")
    found = _texts(label.subject) or texts.get(subject_id(label.subject))
    if found is None:
        return NotExported("no_texts")
    messages, first, second = found
    prefers_first = verdict.preference == judge_service_pb2.PREFERENCE_FIRST
    probability = verdict.probability_first if verdict.HasField("probability_first") else float(prefers_first)
    chosen, rejected = (first, second) if prefers_first else (second, first)
    return {
        "prompt": [dict(message) for message in messages],
        "chosen": [{"role": "assistant", "content": chosen}],
        "rejected": [{"role": "assistant", "content": rejected}],
        "probability_chosen": probability if prefers_first else 1 - probability,
        "order_consistent": verdict.order_consistent or label.source == pb.LABEL_SOURCE_HUMAN,
        "source": _SOURCES.get(label.source, ""),
        "annotator": label.annotator,
        "judge": verdict.provenance.model.digest or verdict.provenance.model.uri,
        "constitution": verdict.provenance.constitution.constitution,
        "category": label.subject.category,
        "language": label.subject.language,
        "label": label.name,
    }


def subject_id(subject: pb.LabelSubject) -> str:
    """Identity of a conversation and its responses in their order."""
    return _identity(subject.conversation_sha256, subject.response_sha256s)


def texts_id(texts: PairTexts) -> str:
    """The same of texts."""
    messages, first, second = texts
    turns = [{"role": turn["role"], "content": turn["content"]} for turn in messages]
    return _identity(digest(turns), [sha256_hex(first.encode()), sha256_hex(second.encode())])


def _identity(conversation_sha256: str, response_sha256s: Sequence[str]) -> str:
    return " ".join([conversation_sha256, *response_sha256s])


def _subject(preference: HumanPreference, *, keep_texts: bool) -> pb.LabelSubject:
    responses = (preference.first, preference.second)
    subject = pb.LabelSubject(
        conversation_sha256=digest(to_json(preference.conversation)),
        response_sha256s=[sha256_hex(response.encode()) for response in responses],
        response_num_characters=map(len, responses),
        category=preference.category,
        language=preference.language,
    )
    if keep_texts:
        subject.messages.extend(conversation_messages(preference.conversation))
        subject.responses.extend(responses)
    return subject


def _texts(subject: pb.LabelSubject) -> PairTexts | None:
    if not subject.messages or len(subject.responses) != 2:
        return None
    messages = [{"role": _ROLES[message.role], "content": message.content} for message in subject.messages]
    return messages, subject.responses[0], subject.responses[1]
