"""What a request must be before anything is stored; every refusal names the field."""

from __future__ import annotations

import re
from collections.abc import Sequence

from rlaif.core.canonical import digest, sha256_hex
from rlaif.core.conversation import check_language
from rlaif.core.errors import InvalidInputError
from rlaif.v1 import conversation_pb2, judge_service_pb2, ledger_service_pb2

_SHA256 = re.compile(r"[0-9a-f]{64}")
_UUID = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}")
_EVENT_TYPE = re.compile(r"[a-z][a-z0-9_]{0,63}")
_CONSTITUTION = re.compile(r"constitutions/[^\s/]{1,200}")
_MAX_SUBJECT_CHARACTERS = 512
_MAX_CATEGORY_CHARACTERS = 128
_MAX_ANNOTATOR_CHARACTERS = 128
_MAX_PAGE = 1000
_DEFAULT_PAGE = 50
# Means of probabilities may leave their range by rounding.
_ROUNDING = 1e-6

_ROLES = {
    conversation_pb2.ROLE_SYSTEM: "system",
    conversation_pb2.ROLE_USER: "user",
    conversation_pb2.ROLE_ASSISTANT: "assistant",
}
_NUM_RESPONSES = {"verdict": 2, "score": 1}
_AI = ledger_service_pb2.LABEL_SOURCE_AI


def check_sha256(value: str, *, field: str) -> str:
    """The digest, if it is 64 lower-case hex digits."""
    if not _SHA256.fullmatch(value):
        raise InvalidInputError(f"{field} must be 64 lower-case hex digits", field=field)
    return value


def check_request_id(value: str) -> str:
    """The request id in lower case, if it is a UUID."""
    if not _UUID.fullmatch(value.lower()):
        raise InvalidInputError("request_id must be a UUID, for example from uuid.uuid4()", field="request_id")
    return value.lower()


def check_count(values: Sequence[object], *, field: str, most: int) -> None:
    """InvalidInputError unless there are 1 to `most` values."""
    if not 1 <= len(values) <= most:
        raise InvalidInputError(f"{field} must hold 1 to {most} entries, not {len(values)}", field=field)


def check_page_size(value: int) -> int:
    """Entries a page may have, 1 to 1000."""
    if value < 0:
        raise InvalidInputError("page_size must not be negative", field="page_size")
    return min(value or _DEFAULT_PAGE, _MAX_PAGE)


def check_event_type(value: str, *, field: str) -> str:
    """The type, if it is lower_snake."""
    if not _EVENT_TYPE.fullmatch(value):
        raise InvalidInputError("event_type must be lower_snake, at most 64 characters", field=field)
    return value


def check_subject(value: str, *, field: str) -> str:
    """The subject, if it is short and printable."""
    return _check_text(value, most=_MAX_SUBJECT_CHARACTERS, field=field)


def check_constitution(value: str, *, field: str) -> str:
    """The constitution's resource name, or nothing."""
    if value and not (_CONSTITUTION.fullmatch(value) and value.isprintable()):
        raise InvalidInputError(f"{field} must be of the form constitutions/{{constitution}}", field=field)
    return value


def check_label(label: ledger_service_pb2.Label, *, field: str) -> None:
    """InvalidInputError unless the label is whole and its digests are those of its texts."""
    check_sha256(label.request_sha256, field=f"{field}.request_sha256")
    _check_text(label.annotator, most=_MAX_ANNOTATOR_CHARACTERS, field=f"{field}.annotator")
    if label.annotator and label.source == _AI:
        raise InvalidInputError(
            f"{field}.annotator is of people; the judge made this label", field=f"{field}.annotator"
        )
    decision = label.WhichOneof("decision")
    if decision is None:
        raise InvalidInputError(f"{field} must hold a verdict or a score", field=f"{field}.decision")
    _check_subject_of(label.subject, num_responses=_NUM_RESPONSES[decision], field=f"{field}.subject")
    if decision == "verdict":
        _check_verdict(label.verdict, ai=label.source == _AI, field=f"{field}.verdict")
    else:
        _check_score(label.score, field=f"{field}.score")
    _check_provenance(label, field=f"{field}.{decision}.provenance")


def _check_subject_of(subject: ledger_service_pb2.LabelSubject, *, num_responses: int, field: str) -> None:
    check_sha256(subject.conversation_sha256, field=f"{field}.conversation_sha256")
    if len(subject.response_sha256s) != num_responses:
        raise InvalidInputError(f"{field} needs {num_responses} response digests", field=f"{field}.response_sha256s")
    for index, value in enumerate(subject.response_sha256s):
        check_sha256(value, field=f"{field}.response_sha256s[{index}]")
    _check_text(subject.category, most=_MAX_CATEGORY_CHARACTERS, field=f"{field}.category")
    check_language(subject.language, field=f"{field}.language")
    if len(subject.response_num_characters) not in (0, num_responses):
        raise InvalidInputError(
            f"{field}.response_num_characters must hold none or {num_responses} lengths",
            field=f"{field}.response_num_characters",
        )
    if subject.messages:
        turns = [{"role": _ROLES.get(turn.role, ""), "content": turn.content} for turn in subject.messages]
        if digest(turns) != subject.conversation_sha256:
            raise InvalidInputError(
                f"{field}.conversation_sha256 is not the digest of its messages", field=f"{field}.conversation_sha256"
            )
    if subject.responses:
        made = [sha256_hex(response.encode()) for response in subject.responses]
        if made != list(subject.response_sha256s):
            raise InvalidInputError(
                f"{field}.response_sha256s are not the digests of its responses", field=f"{field}.response_sha256s"
            )
        lengths = list(subject.response_num_characters)
        if lengths and lengths != [len(response) for response in subject.responses]:
            raise InvalidInputError(
                f"{field}.response_num_characters are not the lengths of its responses",
                field=f"{field}.response_num_characters",
            )


def _check_verdict(verdict: judge_service_pb2.Verdict, *, ai: bool, field: str) -> None:
    abstained = verdict.preference == judge_service_pb2.PREFERENCE_ABSTAIN
    if verdict.preference not in judge_service_pb2.Preference.values() or not verdict.preference:
        raise InvalidInputError(f"{field}.preference is not set", field=f"{field}.preference")
    # People may abstain without one of the judge's reasons.
    if bool(verdict.abstention_reason) != abstained and (ai or verdict.abstention_reason):
        raise InvalidInputError(
            f"{field} must have an abstention_reason exactly when it abstains", field=f"{field}.abstention_reason"
        )
    has_probability = verdict.HasField("probability_first")
    if has_probability and abstained:
        raise InvalidInputError(f"{field} abstains and has a probability", field=f"{field}.probability_first")
    if ai and not abstained and not has_probability:
        raise InvalidInputError(f"{field}.probability_first is not set", field=f"{field}.probability_first")
    _check_range(verdict.probability_first, 0, 1, field=f"{field}.probability_first")
    _check_range(verdict.raw_probability_first, 0, 1, field=f"{field}.raw_probability_first")
    for index, vote in enumerate(verdict.principle_votes):
        _check_range(vote.probability_first, 0, 1, field=f"{field}.principle_votes[{index}].probability_first")


def _check_score(score: judge_service_pb2.Score, *, field: str) -> None:
    if bool(score.abstention_reason) == score.HasField("expected"):
        raise InvalidInputError(
            f"{field} must have either an expected score or an abstention_reason", field=f"{field}.expected"
        )
    if score.HasField("expected"):
        _check_range(score.expected, 1, 10, field=f"{field}.expected")
    _check_range(score.reward, -1, 1, field=f"{field}.reward")


def _check_provenance(label: ledger_service_pb2.Label, *, field: str) -> None:
    decision = label.verdict if label.HasField("verdict") else label.score
    if label.source == _AI and not decision.provenance.HasField("model"):
        raise InvalidInputError(f"{field}.model is not set: who judged?", field=f"{field}.model")
    # Remote engines cannot tell their weights: an empty digest is allowed, a wrong one is not.
    if decision.provenance.model.digest:
        check_sha256(decision.provenance.model.digest, field=f"{field}.model.digest")
    check_constitution(decision.provenance.constitution.constitution, field=f"{field}.constitution.constitution")


def _check_range(value: float, least: float, most: float, *, field: str) -> None:
    # Written so that NaN fails.
    if not least - _ROUNDING <= value <= most + _ROUNDING:
        raise InvalidInputError(f"{field} is {value}, not within {least:g} to {most:g}", field=field)


def _check_text(value: str, *, most: int, field: str) -> str:
    if len(value) > most or not value.isprintable():
        raise InvalidInputError(f"{field} must be printable and at most {most} characters", field=field)
    return value
