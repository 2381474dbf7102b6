"""From the judge's score distribution to a reward.

Direct RLAIF (arXiv 2309.00267 §3.2.2): r = Σ i·P(i) over i = 1…10, rescaled to [-1, 1].
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from rlaif.core.preference import AbstentionReason, label_masses

LOWEST_SCORE, HIGHEST_SCORE = 1, 10


@dataclass(frozen=True)
class PrincipleScore:
    """What one principle says of one response: distribution over 1…10, its mean and standard deviation."""

    principle_id: str
    weight: float
    expected: float
    standard_deviation: float
    probabilities: tuple[float, ...]
    verdict_mass: float
    abstention_reason: AbstentionReason | None = None


@dataclass(frozen=True)
class ResponseScore:
    """The combined score in [1, 10] and its reward in [-1, 1]; None exactly when the judge abstained."""

    expected: float | None
    reward: float | None
    scores: tuple[PrincipleScore, ...]
    abstention_reason: AbstentionReason | None = None


def principle_score(
    principle_id: str,
    *,
    weight: float,
    logprobs: Sequence[float],
    min_verdict_mass: float,
    unlisted: float | None = None,
) -> PrincipleScore:
    """Score from the natural log-probabilities of the labels "1"…"10", renormalised over them.

    `unlisted` is as in `label_masses`.
    """
    masses = label_masses(logprobs, unlisted=unlisted)
    if len(logprobs) != HIGHEST_SCORE or masses is None:
        return _no_score(principle_id, weight, 0.0, AbstentionReason.NOT_FINITE)
    mass = sum(masses)
    if mass <= 0.0 or mass < min_verdict_mass:
        return _no_score(principle_id, weight, mass, AbstentionReason.LOW_VERDICT_MASS)
    probabilities = tuple(value / mass for value in masses)
    expected = sum(score * p for score, p in enumerate(probabilities, start=LOWEST_SCORE))
    variance = sum((score - expected) ** 2 * p for score, p in enumerate(probabilities, start=LOWEST_SCORE))
    return PrincipleScore(principle_id, weight, expected, math.sqrt(variance), probabilities, min(1.0, mass))


def combine_scores(scores: Sequence[PrincipleScore]) -> ResponseScore:
    """Weighted mean over all principles; a single abstaining principle abstains the whole score.

    Unlike a vote, a reward must keep its scale from one response to the next, so no principle may drop out of the mean.
    """
    for score in scores:
        if score.abstention_reason is not None:
            return ResponseScore(None, None, tuple(scores), score.abstention_reason)
    expected = sum(score.weight * score.expected for score in scores) / sum(score.weight for score in scores)
    return ResponseScore(expected, rescale(expected), tuple(scores))


def rescale(expected: float) -> float:
    """Score in [1, 10] to reward in [-1, 1]."""
    return 2 * (expected - LOWEST_SCORE) / (HIGHEST_SCORE - LOWEST_SCORE) - 1


def _no_score(principle_id: str, weight: float, mass: float, reason: AbstentionReason) -> PrincipleScore:
    return PrincipleScore(principle_id, weight, 0.0, 0.0, (), mass, reason)
