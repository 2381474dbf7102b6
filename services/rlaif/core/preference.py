"""How votes become a label: both orders, then principles, then judges, then a preference or a typed abstention.

Soft labels with both presentation orders averaged follow RLAIF (arXiv 2309.00267 §3.1).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import Enum
from statistics import fmean, median, pstdev
from typing import Literal

TIE_MARGIN = 1e-9
"""Probabilities closer than this to one half are a tie."""
MAX_UNLISTED_SHARE = 0.01
"""Labels that an engine did not list count as 0 where that moves no share of the labels' mass by more than this."""
REASONED_RANGE = (0.4, 0.6)
"""After a rationale a judge is too sure of itself: its probabilities are clamped (arXiv 2212.08073 §4.1)."""

PanelRule = Literal["mean", "median", "majority"]


class Preference(Enum):
    """Which response was preferred."""

    FIRST = "first"
    SECOND = "second"
    TIE = "tie"
    ABSTAIN = "abstain"


class AbstentionReason(Enum):
    """Why there is no verdict."""

    LOW_VERDICT_MASS = "low_verdict_mass"
    UNPARSEABLE = "unparseable"
    PANEL_SPLIT = "panel_split"
    TOO_LONG = "too_long"
    INJECTION_SUSPECTED = "injection_suspected"
    REFUSED = "refused"
    NOT_FINITE = "not_finite"
    TRUNCATED = "truncated"
    EMPTY = "empty"
    TIMED_OUT = "timed_out"
    UNREACHABLE = "unreachable"


TRANSIENT_REASONS = frozenset({AbstentionReason.TIMED_OUT, AbstentionReason.UNREACHABLE, AbstentionReason.REFUSED})
"""What says nothing of the pair: a label that lacks a vote for such a reason must not answer later requests."""


@dataclass(frozen=True)
class OrderVote:
    """One presentation order: P(label "1") of the two labels' mass, and that mass; both in [0, 1]."""

    probability_shown_first: float
    verdict_mass: float


@dataclass(frozen=True)
class PrincipleVote:
    """What one principle says of one pair. Probabilities are of the first response, in [0, 1]; 0 when it abstains."""

    principle_id: str
    weight: float
    probability_first: float
    probability_when_first: float
    probability_when_second: float
    verdict_mass: float
    abstention_reason: AbstentionReason | None = None

    @property
    def order_consistent(self) -> bool:
        """Both presentation orders prefer the same response."""
        return (self.probability_when_first > 0.5) == (self.probability_when_second > 0.5)


@dataclass(frozen=True)
class PairLabel:
    """The combined decision on one pair; probabilities are None exactly when the judge abstained."""

    preference: Preference
    probability_first: float | None
    order_consistent: bool
    votes: tuple[PrincipleVote, ...]
    abstention_reason: AbstentionReason | None = None


@dataclass(frozen=True)
class JudgeVote:
    """What one judge of a panel said of one pair; probabilities are None exactly when it has no vote.

    `judge` is its name in the panel, empty for the service's own model. `probability_first` is calibrated where that
    judge has a calibration, `raw_probability_first` is not; the others are by order of presentation, uncalibrated.
    """

    judge: str
    model_uri: str
    model_digest: str
    model_version: int = 0
    probability_first: float | None = None
    raw_probability_first: float | None = None
    probability_when_first: float | None = None
    probability_when_second: float | None = None
    abstention_reason: AbstentionReason | None = None


@dataclass(frozen=True)
class PanelDecision:
    """What a panel decides; probabilities are None exactly when it abstains.

    `disagreement` is the population standard deviation of the votes' probabilities, in [0, 0.5].
    """

    probability_first: float | None
    raw_probability_first: float | None
    order_consistent: bool
    disagreement: float
    abstention_reason: AbstentionReason | None = None


def label_masses(logprobs: Sequence[float], *, unlisted: float | None = None) -> tuple[float, ...] | None:
    """Probability of each label from its natural log-probability; None when they cannot be told.

    Every one must be finite, unless `unlisted` says how much probability all labels at -inf have together at most: they
    were not listed, and count as 0 where no label's share of the known mass moves by more than MAX_UNLISTED_SHARE.
    """
    missing = [logprob for logprob in logprobs if not math.isfinite(logprob)]
    masses = tuple(math.exp(logprob) for logprob in logprobs if not math.isnan(logprob))
    if not missing:
        return masses
    if unlisted is None or any(logprob != -math.inf for logprob in missing):
        return None
    return masses if unlisted <= MAX_UNLISTED_SHARE * math.fsum(masses) else None


def order_vote(logprob_one: float, logprob_two: float, *, unlisted: float | None = None) -> OrderVote | None:
    """Vote of one presentation from the natural log-probabilities of "1" and "2"; None when they cannot be told.

    `unlisted` is as in `label_masses`.
    """
    masses = label_masses((logprob_one, logprob_two), unlisted=unlisted)
    if masses is None:
        return None
    nothing = logprob_one == logprob_two == -math.inf
    return OrderVote(
        probability_shown_first=0.5 if nothing else _sigmoid(logprob_one - logprob_two),
        verdict_mass=min(1.0, math.fsum(masses)),
    )


def combine_orders(
    principle_id: str,
    *,
    weight: float,
    first_shown_first: OrderVote | None,
    second_shown_first: OrderVote | None,
    min_verdict_mass: float,
    missing_reason: AbstentionReason = AbstentionReason.NOT_FINITE,
) -> PrincipleVote:
    """Average of both orders as P(first preferred), or an abstention of this principle."""
    if first_shown_first is None or second_shown_first is None:
        return _no_vote(principle_id, weight, 0.0, missing_reason)
    mass = min(first_shown_first.verdict_mass, second_shown_first.verdict_mass)
    if mass < min_verdict_mass or mass == 0:
        return _no_vote(principle_id, weight, mass, AbstentionReason.LOW_VERDICT_MASS)
    when_first = first_shown_first.probability_shown_first
    when_second = 1.0 - second_shown_first.probability_shown_first
    return PrincipleVote(principle_id, weight, (when_first + when_second) / 2, when_first, when_second, mass)


def average_samples(votes: Sequence[OrderVote]) -> OrderVote:
    """Mean of one presentation's votes after several rationales, and the least of their masses."""
    return OrderVote(
        probability_shown_first=fmean(vote.probability_shown_first for vote in votes),
        verdict_mass=min(vote.verdict_mass for vote in votes),
    )


def clamp_reasoned(probability_first: float) -> float:
    """The probability of a verdict that followed a rationale, clamped to REASONED_RANGE."""
    low, high = REASONED_RANGE
    return min(high, max(low, probability_first))


def combine_principles(votes: Sequence[PrincipleVote]) -> PairLabel:
    """Weighted mean over the principles that voted; abstains when those hold half the weight or less."""
    voting = [vote for vote in votes if vote.abstention_reason is None]
    weight = sum(vote.weight for vote in voting)
    if weight * 2 <= sum(vote.weight for vote in votes):
        reasons = [vote.abstention_reason for vote in votes if vote.abstention_reason is not None]
        return abstain(reasons[0] if reasons else AbstentionReason.LOW_VERDICT_MASS, votes=votes)
    probability_first = _mean(voting, weight, lambda vote: vote.probability_first)
    when_first, when_second = orders(voting)
    return PairLabel(
        preference=preference_of(probability_first),
        probability_first=probability_first,
        order_consistent=(when_first > 0.5) == (when_second > 0.5),
        votes=tuple(votes),
    )


def orders(votes: Sequence[PrincipleVote]) -> tuple[float, float]:
    """Weighted mean over the principles that voted of P(first) when shown first and when shown second."""
    voting = [vote for vote in votes if vote.abstention_reason is None]
    weight = sum(vote.weight for vote in voting)
    return (
        _mean(voting, weight, lambda vote: vote.probability_when_first),
        _mean(voting, weight, lambda vote: vote.probability_when_second),
    )


def combine_judges(
    votes: Sequence[JudgeVote], *, rule: PanelRule, quorum: int, max_disagreement: float = 0.5
) -> PanelDecision:
    """The panel's decision: mean, median, or the share of judges that prefer the first (majority; a tie counts half).

    It abstains when fewer than `quorum` judges vote, by majority when fewer than `quorum` agree on the outcome, and
    when the votes' standard deviation is above `max_disagreement`.
    """
    voting = [vote for vote in votes if vote.probability_first is not None]
    probabilities = [vote.probability_first for vote in voting if vote.probability_first is not None]
    disagreement = pstdev(probabilities) if probabilities else 0.0
    if len(voting) < quorum or disagreement > max_disagreement or not voting:
        return PanelDecision(None, None, False, disagreement, AbstentionReason.PANEL_SPLIT)
    if rule == "majority":
        outcomes = [preference_of(probability) for probability in probabilities]
        if max(outcomes.count(outcome) for outcome in set(outcomes)) < quorum:
            return PanelDecision(None, None, False, disagreement, AbstentionReason.PANEL_SPLIT)
    when_first = _pool([vote.probability_when_first for vote in voting], rule)
    when_second = _pool([vote.probability_when_second for vote in voting], rule)
    return PanelDecision(
        probability_first=_pool(probabilities, rule),
        raw_probability_first=_pool([vote.raw_probability_first for vote in voting], rule),
        order_consistent=(when_first > 0.5) == (when_second > 0.5),
        disagreement=disagreement,
    )


def _pool(values: Sequence[float | None], rule: PanelRule) -> float:
    known = [value for value in values if value is not None]
    if rule == "majority":
        shares = {Preference.FIRST: 1.0, Preference.TIE: 0.5, Preference.SECOND: 0.0}
        return fmean(shares[preference_of(value)] for value in known)
    return median(known) if rule == "median" else fmean(known)


def abstain(reason: AbstentionReason, *, votes: Sequence[PrincipleVote] = ()) -> PairLabel:
    """A label without a verdict."""
    return PairLabel(Preference.ABSTAIN, None, False, tuple(votes), reason)


def preference_of(probability_first: float) -> Preference:
    """The preference a probability stands for."""
    if abs(probability_first - 0.5) <= TIE_MARGIN:
        return Preference.TIE
    return Preference.FIRST if probability_first > 0.5 else Preference.SECOND


def _no_vote(principle_id: str, weight: float, mass: float, reason: AbstentionReason) -> PrincipleVote:
    return PrincipleVote(principle_id, weight, 0.0, 0.0, 0.0, mass, reason)


def _mean(votes: Sequence[PrincipleVote], weight: float, value: Callable[[PrincipleVote], float]) -> float:
    return sum(vote.weight * value(vote) for vote in votes) / weight


def _sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x)) if x >= 0 else math.exp(x) / (1 + math.exp(x))
