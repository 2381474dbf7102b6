"""From the values of an ensemble's members to one reward, and how far the members are apart."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, pstdev
from typing import Literal

from rlaif.core.errors import InvalidInputError

AggregationKind = Literal["mean", "worst_case", "uncertainty_weighted"]


@dataclass(frozen=True)
class Aggregation:
    """How the k members' values r_i become one (Coste et al. 2023, arXiv 2310.02743, "WCO" and "UWO").

    mean: R = 1/k Σ r_i. worst_case (WCO): R = min_i r_i. uncertainty_weighted (UWO): R = 1/k Σ r_i - λ · 1/k Σ (r_i -
    1/k Σ r_j)², λ being `variance_weight`. The members' values are taken as they are: for the minimum to mean something
    they must be on one scale. InvalidInputError when λ is not finite, negative, or given to another kind.
    """

    kind: AggregationKind = "mean"
    variance_weight: float = 0.0

    def __post_init__(self) -> None:
        if not math.isfinite(self.variance_weight) or self.variance_weight < 0:
            raise InvalidInputError(
                f"variance_weight is {self.variance_weight}, not a finite number of at least 0", field="variance_weight"
            )
        if self.variance_weight and self.kind != "uncertainty_weighted":
            raise InvalidInputError(
                f"variance_weight is of the aggregation uncertainty_weighted, not of {self.kind}",
                field="variance_weight",
            )

    def combine(self, values: Sequence[float]) -> tuple[float, float]:
        """(the ensemble's value, population standard deviation of the members); 1 or more finite values."""
        if len(values) == 1:
            return values[0], 0.0
        mean, spread = fmean(values), pstdev(values)
        if self.kind == "worst_case":
            return min(values), spread
        return mean - self.variance_weight * spread * spread, spread
