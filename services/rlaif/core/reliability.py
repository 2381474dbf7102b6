"""Do the judge's probabilities mean what they say? Brier score, log-loss, reliability, calibration error, entropy."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from rlaif.core.calibration import SMALLEST_PROBABILITY
from rlaif.core.estimate import Estimate, mean, unknown

NUM_BINS = 10

Forecast = tuple[float, float]
"""P(first preferred) as forecast, and the share of people who preferred the first, both in [0, 1]."""


@dataclass(frozen=True)
class ReliabilityBin:
    """Forecasts of similar confidence: how sure they were on average, and how often they were right."""

    low: float
    """Lower end of the bin's confidence, in [0.5, 1)."""
    high: float
    """Upper end, in (0.5, 1]; exclusive but for the last bin."""
    num_labels: int
    mean_confidence: float | None
    """Mean of max(p, 1 - p); None for an empty bin."""
    accuracy: float | None
    """Share of people who preferred what was forecast; None for an empty bin."""


def brier(forecasts: Sequence[Forecast]) -> Estimate:
    """Mean of (p - y)², 0 perfect, 1/4 for always one half (Brier 1950, for two outcomes halved)."""
    return mean([(p - y) ** 2 for p, y in forecasts])


def log_loss(forecasts: Sequence[Forecast]) -> Estimate:
    """Mean of -y·ln p - (1 - y)·ln(1 - p) in nats, ln 2 for always one half; p is kept off 0 and 1 by
    SMALLEST_PROBABILITY."""
    losses = []
    for p, y in forecasts:
        clipped = min(max(p, SMALLEST_PROBABILITY), 1 - SMALLEST_PROBABILITY)
        losses.append(-y * math.log(clipped) - (1 - y) * math.log1p(-clipped))
    return mean(losses)


def reliability_bins(forecasts: Sequence[Forecast], *, num_bins: int = NUM_BINS) -> tuple[ReliabilityBin, ...]:
    """Bins of equal width over confidence max(p, 1 - p) in [0.5, 1] (Guo et al. 2017, arXiv 1706.04599, §2).

    Confidence, because which response is called first is arbitrary: p and 1 - p belong in one bin.
    """
    binned: list[list[Forecast]] = [[] for _ in range(num_bins)]
    for p, y in forecasts:
        confidence, right = (p, y) if p >= 0.5 else (1 - p, 1 - y)
        binned[min(num_bins - 1, int((confidence - 0.5) * 2 * num_bins))].append((confidence, right))
    return tuple(
        ReliabilityBin(
            low=0.5 + index / (2 * num_bins),
            high=0.5 + (index + 1) / (2 * num_bins),
            num_labels=len(held),
            mean_confidence=sum(confidence for confidence, _ in held) / len(held) if held else None,
            accuracy=sum(right for _, right in held) / len(held) if held else None,
        )
        for index, held in enumerate(binned)
    )


def expected_calibration_error(forecasts: Sequence[Forecast], *, num_bins: int = NUM_BINS) -> Estimate:
    """Σ (n_b / n) · |accuracy_b - confidence_b| over the bins (Guo et al. 2017, arXiv 1706.04599, eq. 3).

    Without an interval: the estimate is biased upwards in small samples, and a bootstrap would be too.
    """
    if not forecasts:
        return unknown()
    gaps = [
        held.num_labels * abs(held.accuracy - held.mean_confidence)
        for held in reliability_bins(forecasts, num_bins=num_bins)
        if held.accuracy is not None and held.mean_confidence is not None
    ]
    return Estimate(sum(gaps) / len(forecasts), None, None, len(forecasts))


def entropy_bits(probabilities: Sequence[float]) -> Estimate:
    """Mean binary entropy -p·log2 p - (1 - p)·log2(1 - p) (Shannon 1948): 0 always certain, 1 never."""
    return mean([_entropy(p) for p in probabilities])


def _entropy(p: float) -> float:
    return -sum(q * math.log2(q) for q in (p, 1 - p) if q > 0)
