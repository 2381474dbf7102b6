"""Verbosity bias: how much longer responses are preferred, by the judge and by people."""

from __future__ import annotations

import math
from collections.abc import Sequence

from rlaif.core.estimate import Z_95, Estimate, share, unknown
from rlaif.core.judged_pair import JudgedPair
from rlaif.core.preference import Preference, preference_of

MIN_PAIRS = 10
"""With fewer pairs of different length no slope is told."""
_SLOPE_PRECISION = 1e-12

Choice = tuple[tuple[int, int], bool]
"""Lengths of both responses, and whether the first is preferred."""


def verbosity_slope(pairs: Sequence[JudgedPair]) -> Estimate:
    """Log-odds of being preferred by the judge per doubling of length; 0 is no verbosity bias (see `length_slope`)."""
    return length_slope(_choices(pairs))


def human_verbosity_slope(pairs: Sequence[JudgedPair]) -> Estimate:
    """The same slope of people: where they like length as much, the judge's slope is no bias."""
    return length_slope(_human_choices(pairs))


def longer_preferred(pairs: Sequence[JudgedPair]) -> Estimate:
    """Share of decided comparisons of different length on which the judge prefers the longer; .5 is no preference.

    It is told where the slope is not: of a judge that always prefers the longer.
    """
    return _longer_share(_choices(pairs))


def human_longer_preferred(pairs: Sequence[JudgedPair]) -> Estimate:
    """The same share of people."""
    return _longer_share(_human_choices(pairs))


def length_slope(choices: Sequence[Choice]) -> Estimate:
    """β of P(first preferred) = σ(β · log2(length of first / length of second)), by maximum likelihood.

    Logistic regression of preference on the difference of log-lengths, the length term of length-controlled AlpacaEval
    (Dubois et al. 2024, arXiv 2404.04475) with a logarithm for its tanh. Without intercept: which response is
    called first says nothing, so exchanging the two must change the sign of both sides. Lengths count from 1, so that
    an empty response has a logarithm. Interval: Wald, from the information at β. Unknown for fewer than MIN_PAIRS
    pairs of different length, and when the longer (or the shorter) response always wins: the slope is then infinite.
    """
    rows = [
        (math.log2((first + 1) / (second + 1)), prefers_first)
        for (first, second), prefers_first in choices
        if first != second
    ]
    longer_wins = sum((difference > 0) == prefers_first for difference, prefers_first in rows)
    if len(rows) < MIN_PAIRS or longer_wins in (0, len(rows)):
        return unknown(len(rows))
    beta, information = _most_likely_slope(rows)
    half = Z_95 / math.sqrt(information)
    return Estimate(beta, beta - half, beta + half, len(rows))


def _most_likely_slope(rows: Sequence[tuple[float, bool]]) -> tuple[float, float]:
    """Root of the score in β, and the information there: Newton's method, halving the bracket where it would leave it.

    The score falls in β, and has a root where neither side always wins.
    """
    low, high, beta = -math.inf, math.inf, 0.0
    while True:
        chances = [0.5 + 0.5 * math.tanh(beta * x / 2) for x, _ in rows]
        score = sum(x * (wins - chance) for (x, wins), chance in zip(rows, chances, strict=True))
        information = sum(x * x * chance * (1 - chance) for (x, _), chance in zip(rows, chances, strict=True))
        low, high = (beta, high) if score > 0 else (low, beta)
        step = score / information if information else math.copysign(math.inf, score)
        if abs(step) <= _SLOPE_PRECISION * max(1.0, abs(beta)) or high - low <= _SLOPE_PRECISION * max(1.0, abs(beta)):
            return beta, information
        beta = beta + step if low < beta + step < high else (low + high) / 2


def _longer_share(choices: Sequence[Choice]) -> Estimate:
    return share(
        [float((first > second) == prefers_first) for (first, second), prefers_first in choices if first != second]
    )


def _choices(pairs: Sequence[JudgedPair]) -> list[Choice]:
    return [
        (pair.num_characters, pair.preference is Preference.FIRST)
        for pair in pairs
        if pair.num_characters and pair.preference in (Preference.FIRST, Preference.SECOND)
    ]


def _human_choices(pairs: Sequence[JudgedPair]) -> list[Choice]:
    """Of every pair that people voted on, once, unless they are split."""
    voted = {pair.pair: pair for pair in pairs if pair.num_characters and pair.human_share is not None}
    votes = [(pair.num_characters, preference_of(pair.human_share or 0.0)) for pair in voted.values()]
    return [(lengths, vote is Preference.FIRST) for lengths, vote in votes if lengths and vote is not Preference.TIE]
