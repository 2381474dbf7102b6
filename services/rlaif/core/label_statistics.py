"""Every statistic of label quality, over all labels and by slice."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from rlaif.core import agreement, position, reliability, verbosity
from rlaif.core.errors import InvalidInputError
from rlaif.core.estimate import Estimate, share
from rlaif.core.judged_pair import JudgedPair
from rlaif.core.reliability import Forecast, ReliabilityBin

MAX_SLICES = 50
"""Of one dimension, the slices with the most labels keep their names; the rest are put together."""
OTHER: Final = "other"


@dataclass(frozen=True)
class SliceStatistic:
    """One statistic over one slice, "" for all labels, else "dimension=value"."""

    statistic: str
    slice: str
    estimate: Estimate


@dataclass(frozen=True)
class SliceReliability:
    """The reliability bins of one slice."""

    slice: str
    bins: tuple[ReliabilityBin, ...]


@dataclass(frozen=True)
class LabelStatistics:
    """Statistics ordered by name, then slice; those that cannot be known have no value."""

    statistics: tuple[SliceStatistic, ...]
    reliability: tuple[SliceReliability, ...]


def _forecasts(pairs: Sequence[JudgedPair]) -> list[Forecast]:
    return [
        (pair.probability_first, pair.human_share)
        for pair in pairs
        if pair.probability_first is not None and pair.human_share is not None
    ]


def _raw_forecasts(pairs: Sequence[JudgedPair]) -> list[Forecast]:
    return [
        (pair.raw_probability_first, pair.human_share)
        for pair in pairs
        if pair.raw_probability_first is not None and pair.human_share is not None and pair.calibration
    ]


STATISTICS: Final[Mapping[str, Callable[[Sequence[JudgedPair]], Estimate]]] = {
    "abstention_rate": lambda pairs: share([float(pair.probability_first is None) for pair in pairs]),
    "brier": lambda pairs: reliability.brier(_forecasts(pairs)),
    "ece": lambda pairs: reliability.expected_calibration_error(_forecasts(pairs)),
    "entropy_bits": lambda pairs: reliability.entropy_bits(
        [pair.probability_first for pair in pairs if pair.probability_first is not None]
    ),
    "human_agreement": agreement.human_agreement,
    "human_agreement_with_ties": agreement.human_agreement_with_ties,
    "human_kappa": agreement.human_kappa,
    "human_longer_preferred": verbosity.human_longer_preferred,
    "human_verbosity_slope": verbosity.human_verbosity_slope,
    "longer_preferred": verbosity.longer_preferred,
    "nll": lambda pairs: reliability.log_loss(_forecasts(pairs)),
    "order_inconsistency": position.order_inconsistency,
    "panel_kappa": agreement.panel_kappa,
    "people_kappa": agreement.people_kappa,
    "raw_brier": lambda pairs: reliability.brier(_raw_forecasts(pairs)),
    "raw_ece": lambda pairs: reliability.expected_calibration_error(_raw_forecasts(pairs)),
    "raw_nll": lambda pairs: reliability.log_loss(_raw_forecasts(pairs)),
    "shown_first_share": position.shown_first_share,
    "single_order_agreement": agreement.single_order_agreement,
    "verbosity_slope": verbosity.verbosity_slope,
}
"""By name: what is estimated from judged pairs. Definitions stand with the functions and in docs/label-quality.md."""

DIMENSIONS: Final[Mapping[str, Callable[[JudgedPair], str]]] = {
    "category": lambda pair: pair.category,
    "constitution": lambda pair: pair.constitution,
    "judge": lambda pair: pair.judge,
    "language": lambda pair: pair.language,
    "length": lambda pair: pair.length_class,
}
"""By name: the slice that a pair belongs to, empty when it is not known."""


def label_statistics(
    pairs: Sequence[JudgedPair], *, dimensions: Sequence[str] = (), max_slices: int = MAX_SLICES
) -> LabelStatistics:
    """Every statistic over all pairs, then by the slices of each dimension; InvalidInputError for an unknown one."""
    slices = {"": list(pairs)}
    for index, dimension in enumerate(dimensions):
        if dimension not in DIMENSIONS:
            raise InvalidInputError(
                f"unknown slice {dimension!r}; there are {', '.join(DIMENSIONS)}", field=f"slices[{index}]"
            )
        slices |= slice_pairs(pairs, dimension, most=max_slices)
    return LabelStatistics(
        statistics=tuple(
            SliceStatistic(statistic, name, estimate(slices[name]))
            for statistic, estimate in STATISTICS.items()
            for name in sorted(slices)
        ),
        reliability=tuple(
            SliceReliability(name, reliability.reliability_bins(forecasts))
            for name in sorted(slices)
            if (forecasts := _forecasts(slices[name]))
        ),
    )


def slice_pairs(pairs: Sequence[JudgedPair], dimension: str, *, most: int = MAX_SLICES) -> dict[str, list[JudgedPair]]:
    """Pairs by "dimension=value"; those of no known value are in none, rare values are together under OTHER."""
    value_of = DIMENSIONS[dimension]
    counts = Counter(value for pair in pairs if (value := value_of(pair)))
    kept = {value for value, _ in counts.most_common(most)}
    slices: dict[str, list[JudgedPair]] = defaultdict(list)
    for pair in pairs:
        if value := value_of(pair):
            slices[f"{dimension}={value if value in kept else OTHER}"].append(pair)
    return dict(slices)
