"""Estimates with 95 % confidence intervals: shares, means, and shares whose observations come in clusters."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Final

Z_95: Final = 1.959963984540054
"""Two-sided 95 % quantile of the standard normal distribution."""


@dataclass(frozen=True)
class Estimate:
    """A value with its 95 % interval; None when there was nothing to estimate it from."""

    value: float | None
    low: float | None
    high: float | None
    num_samples: int

    def to_json(self) -> dict[str, float | int | None]:
        """Plain values, rounded to what the sample can tell."""
        return {
            "value": _rounded(self.value),
            "low": _rounded(self.low),
            "high": _rounded(self.high),
            "num_samples": self.num_samples,
        }


def unknown(num_samples: int = 0) -> Estimate:
    """What is said when the samples do not tell."""
    return Estimate(None, None, None, num_samples)


def wilson_interval(value: float, num_samples: float, *, z: float = Z_95) -> tuple[float, float]:
    """Wilson score interval of a share (Wilson 1927); `num_samples` may be an effective, fractional size."""
    z2 = z * z
    middle = (value + z2 / (2 * num_samples)) / (1 + z2 / num_samples)
    half = z / (1 + z2 / num_samples) * math.sqrt(value * (1 - value) / num_samples + z2 / (4 * num_samples**2))
    return max(0.0, middle - half), min(1.0, middle + half)


def share(outcomes: Sequence[float]) -> Estimate:
    """Mean of outcomes in [0, 1] with its Wilson interval, wide on purpose where outcomes are halves (ties)."""
    return clustered_share([[outcome] for outcome in outcomes])


def clustered_share(clusters: Sequence[Sequence[float]]) -> Estimate:
    """Mean over all outcomes in [0, 1] with a Wilson interval; `num_samples` counts the clusters that hold any.

    What several people say of one pair is not independent: the interval takes the effective size (Σ m)² / Σ m² of
    clusters of sizes m (Kish 1965, with intra-class correlation 1), the widest it can be.
    """
    sizes = [len(cluster) for cluster in clusters if cluster]
    if not sizes:
        return unknown()
    value = sum(sum(cluster) for cluster in clusters) / sum(sizes)
    low, high = wilson_interval(value, effective_size(sizes))
    return Estimate(value, low, high, len(sizes))


def effective_size(sizes: Sequence[int]) -> float:
    """(Σ m)² / Σ m²: how many independent observations clusters of these sizes are worth at least (Kish 1965)."""
    return sum(sizes) ** 2 / sum(size * size for size in sizes)


def mean(values: Sequence[float]) -> Estimate:
    """Mean with its normal interval, mean ± z·s/√n; without one for a single value."""
    if not values:
        return unknown()
    value = fmean(values)
    if len(values) == 1:
        return Estimate(value, None, None, 1)
    variance = sum((each - value) ** 2 for each in values) / (len(values) - 1)
    half = Z_95 * math.sqrt(variance / len(values))
    return Estimate(value, value - half, value + half, len(values))


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 4)
