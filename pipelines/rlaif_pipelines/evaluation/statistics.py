"""Shares with confidence intervals, over one sample or averaged over strata."""

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
    """A share with its 95 % interval, all in [0, 1]; None when there was nothing to count."""

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


def wilson_interval(value: float, num_samples: float, *, z: float = Z_95) -> tuple[float, float]:
    """Wilson score interval of a share (Wilson 1927); `num_samples` may be an effective, fractional size."""
    z2 = z * z
    middle = (value + z2 / (2 * num_samples)) / (1 + z2 / num_samples)
    half = z / (1 + z2 / num_samples) * math.sqrt(value * (1 - value) / num_samples + z2 / (4 * num_samples**2))
    return max(0.0, middle - half), min(1.0, middle + half)


def share(outcomes: Sequence[float]) -> Estimate:
    """Mean of outcomes in [0, 1] with its Wilson interval, wide on purpose where outcomes are halves (ties)."""
    return stratified_share([outcomes])


def stratified_share(strata: Sequence[Sequence[float]]) -> Estimate:
    """Mean over strata of their means, each stratum counting the same, with a Wilson interval.

    The interval uses the effective size 1 / Σ w²/n of the weighted mean (Kish 1965) with w = 1/number of strata: unlike
    the stratified normal interval it has no zero width when every outcome is the same. Empty strata are left out.
    """
    strata = [stratum for stratum in strata if stratum]
    if not strata:
        return Estimate(None, None, None, 0)
    value = mean_of_strata(strata)
    effective = len(strata) ** 2 / sum(1 / len(stratum) for stratum in strata)
    low, high = wilson_interval(value, effective)
    return Estimate(value, low, high, sum(len(stratum) for stratum in strata))


def mean_of_strata(strata: Sequence[Sequence[float]]) -> float:
    """Mean of the means of the strata that hold anything; 0 when none does."""
    means = [fmean(stratum) for stratum in strata if stratum]
    return fmean(means) if means else 0.0


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 4)
