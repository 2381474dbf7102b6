"""Shares averaged over strata, with confidence intervals."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean

from rlaif.core.estimate import Estimate, share, unknown, wilson_interval

__all__ = ["Estimate", "mean_of_strata", "share", "stratified_share", "wilson_interval"]


def stratified_share(strata: Sequence[Sequence[float]]) -> Estimate:
    """Mean over strata of their means, each stratum counting the same, with a Wilson interval.

    The interval uses the effective size 1 / Σ w²/n of the weighted mean (Kish 1965) with w = 1/number of strata: unlike
    the stratified normal interval it has no zero width when every outcome is the same. Empty strata are left out.
    """
    strata = [stratum for stratum in strata if stratum]
    if not strata:
        return unknown()
    value = mean_of_strata(strata)
    effective = len(strata) ** 2 / sum(1 / len(stratum) for stratum in strata)
    low, high = wilson_interval(value, effective)
    return Estimate(value, low, high, sum(len(stratum) for stratum in strata))


def mean_of_strata(strata: Sequence[Sequence[float]]) -> float:
    """Mean of the means of the strata that hold anything; 0 when none does."""
    means = [fmean(stratum) for stratum in strata if stratum]
    return fmean(means) if means else 0.0
