"""Labels off the wire as the pairs that statistics are made of: the judge's verdicts beside people's votes."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from dataclasses import dataclass, field

from rlaif.core.calibration import CalibrationKey
from rlaif.core.canonical import sha256_hex
from rlaif.core.judged_pair import JudgedPair
from rlaif.v1 import judge_service_pb2
from rlaif.v1 import ledger_service_pb2 as pb

_ID_DIGITS = 32
_JUDGE_CHARACTERS = 12
_VOTES = {
    judge_service_pb2.PREFERENCE_FIRST: 1.0,
    judge_service_pb2.PREFERENCE_SECOND: 0.0,
    judge_service_pb2.PREFERENCE_TIE: 0.5,
}


@dataclass
class _People:
    """What people said of one pair, in the order of the responses' digests."""

    votes: dict[tuple[str, str], float | None] = field(default_factory=dict)
    category: str = ""
    language: str = ""
    num_characters: tuple[int, int] | None = None


class HumanVotes:
    """People's votes by pair. Of one annotator's votes on a pair under one constitution, the last one added counts."""

    def __init__(self, labels: Iterable[pb.Label] = ()) -> None:
        self._people: dict[str, _People] = {}
        for label in labels:
            self.add(label)

    def add(self, label: pb.Label) -> None:
        """Counts a person's comparison; anything else is passed over."""
        if label.source != pb.LABEL_SOURCE_HUMAN or label.WhichOneof("decision") != "verdict":
            return
        people = self._people.setdefault(pair_id(label.subject), _People())
        vote = _VOTES.get(label.verdict.preference)
        if vote is not None and _exchanged(label.subject):
            vote = 1 - vote
        # Nobody knows whether two people without a name are one.
        annotator = label.annotator or f"labels/{label.request_sha256}"
        people.votes[label.verdict.provenance.constitution.constitution, annotator] = vote
        people.category = label.subject.category or people.category
        people.language = label.subject.language or people.language
        people.num_characters = _num_characters(label.subject) or people.num_characters

    def judged(self, label: pb.Label) -> JudgedPair | None:
        """The judge's comparison beside people's votes on it; None when the label is no comparison by the judge.

        Votes under another constitution are not about this label; those that name none are about all.
        """
        if label.source != pb.LABEL_SOURCE_AI or label.WhichOneof("decision") != "verdict":
            return None
        pair = pair_id(label.subject)
        people = self._people.get(pair, _People())
        return _judged(label, pair=pair, people=people)


def pair_id(subject: pb.LabelSubject) -> str:
    """Identity of a conversation and two responses, whichever is called first."""
    parts = [subject.conversation_sha256, *sorted(subject.response_sha256s)]
    return sha256_hex("\n".join(parts).encode())[:_ID_DIGITS]


def _judged(label: pb.Label, *, pair: str, people: _People) -> JudgedPair:
    verdict, subject = label.verdict, label.subject
    exchanged = _exchanged(subject)
    provenance = verdict.provenance
    constitution = provenance.constitution.constitution
    when_first, when_second = _orders(verdict)
    if exchanged and when_first is not None and when_second is not None:
        when_first, when_second = 1 - when_second, 1 - when_first

    def turned(probability: float) -> float:
        return 1 - probability if exchanged else probability

    return JudgedPair(
        pair=pair,
        probability_first=turned(verdict.probability_first) if verdict.HasField("probability_first") else None,
        raw_probability_first=(
            turned(verdict.raw_probability_first) if verdict.HasField("raw_probability_first") else None
        ),
        order_consistent=verdict.order_consistent,
        probability_when_first=when_first,
        probability_when_second=when_second,
        human_votes=tuple(
            vote for (under, _), vote in people.votes.items() if vote is not None and under in ("", constitution)
        ),
        panel_votes=(
            tuple(turned(vote.probability_first) for vote in verdict.judge_votes if not vote.abstention_reason)
            if len(verdict.judge_votes) > 1
            else ()
        ),
        num_characters=_num_characters(subject) or people.num_characters,
        conversation=subject.conversation_sha256[:_ID_DIGITS],
        judge=sys.intern(provenance.model.digest[:_JUDGE_CHARACTERS] or provenance.model.uri),
        constitution=sys.intern(constitution),
        category=sys.intern(subject.category or people.category),
        language=sys.intern(subject.language or people.language),
        key=_key(label),
        calibration=sys.intern(verdict.calibration),
    )


def _exchanged(subject: pb.LabelSubject) -> bool:
    """Whether the responses stand against the order of their digests, the one in which pairs are compared."""
    first, second = subject.response_sha256s
    return first > second


def _num_characters(subject: pb.LabelSubject) -> tuple[int, int] | None:
    lengths = list(subject.response_num_characters) or [len(response) for response in subject.responses]
    if len(lengths) != 2:
        return None
    return (lengths[1], lengths[0]) if _exchanged(subject) else (lengths[0], lengths[1])


def _orders(verdict: judge_service_pb2.Verdict) -> tuple[float | None, float | None]:
    """Weighted means over the principles that voted of P(first) when shown first, and when shown second."""
    voting = [vote for vote in verdict.principle_votes if not vote.abstention_reason]
    weight = sum(vote.weight for vote in voting)
    if weight <= 0:
        return None, None
    return (
        sum(vote.weight * vote.probability_shown_first for vote in voting) / weight,
        sum(vote.weight * vote.probability_shown_second for vote in voting) / weight,
    )


def _key(label: pb.Label) -> CalibrationKey | None:
    provenance = label.verdict.provenance
    digests = (provenance.model.digest, provenance.template_sha256, provenance.constitution.sha256)
    return CalibrationKey(*map(sys.intern, digests)) if all(digests) else None
