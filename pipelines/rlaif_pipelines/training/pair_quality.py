"""How well margins of pairs never trained on predict their labels: overall and by slice, with intervals."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

import torch

from rlaif.core.estimate import clustered_share
from rlaif.core.reliability import Forecast, brier, expected_calibration_error
from rlaif_pipelines.training.losses import soft_bradley_terry_loss
from rlaif_pipelines.training.pairs import EncodedPair

MAX_SLICES: Final = 20
"""Of one dimension, the slices with the most pairs keep their names; the rest are put together as "other"."""


def pair_quality(
    margins: Sequence[float], pairs: Sequence[EncodedPair], *, are_log_odds: bool = True
) -> dict[str, Any]:
    """How well the margins of these pairs predict their labels; null where there is nothing to measure.

    `accuracy` is the share of the pairs without a tie whose better response has the higher reward, with the Wilson
    interval of Kish's effective size: pairs of one prompt are not independent. `auc` is the probability that a pair
    labelled "first" has a higher margin than one labelled "second" (Hanley and McNeil 1982). `brier` is the mean
    squared distance of σ(margin) from the label's probability, `ece` the calibration error against it in ten bins,
    `loss` the mean soft Bradley–Terry loss: these three only where margins are meant as log-odds. Every pair counts the
    same.
    """
    accuracy = clustered_share(_outcomes_by_prompt(margins, pairs))
    quality: dict[str, Any] = {
        "num_pairs": len(pairs),
        "accuracy": accuracy.value,
        "accuracy_low": accuracy.low,
        "accuracy_high": accuracy.high,
        "auc": _auc(margins, pairs),
        "brier": None,
        "ece": None,
        "loss": None,
    }
    if not are_log_odds or not pairs:
        return quality
    margin_P = torch.tensor(margins, dtype=torch.float64)
    probability_P = torch.tensor([pair.probability_first for pair in pairs], dtype=torch.float64)
    forecasts: list[Forecast] = list(zip(margin_P.sigmoid().tolist(), probability_P.tolist(), strict=True))
    loss = soft_bradley_terry_loss(
        margin_P,
        rewards_second_P=torch.zeros_like(margin_P),
        probability_first_P=probability_P,
        weights_P=torch.ones_like(margin_P),
    )
    return quality | {
        "brier": brier(forecasts).value,
        "ece": expected_calibration_error(forecasts).value,
        "loss": float(loss),
    }


def quality_by_slice(
    margins: Sequence[float], pairs: Sequence[EncodedPair], *, are_log_odds: bool = True
) -> dict[str, dict[str, Any]]:
    """The same by slice, "dimension=value"."""
    members: dict[str, list[int]] = defaultdict(list)
    for position, names in enumerate(_named_slices([pair.slices for pair in pairs])):
        for name in names:
            members[name].append(position)
    return {
        name: pair_quality(
            [margins[each] for each in members[name]],
            [pairs[each] for each in members[name]],
            are_log_odds=are_log_odds,
        )
        for name in sorted(members)
    }


def _named_slices(slices: Sequence[Mapping[str, str]]) -> Iterable[list[str]]:
    counts: dict[str, Counter[str]] = defaultdict(Counter)
    for values in slices:
        for dimension, value in values.items():
            counts[dimension][value] += 1
    kept = {dimension: {value for value, _ in counter.most_common(MAX_SLICES)} for dimension, counter in counts.items()}
    for values in slices:
        yield [f"{name}={value if value in kept[name] else 'other'}" for name, value in values.items()]


def _outcomes_by_prompt(margins: Sequence[float], pairs: Sequence[EncodedPair]) -> list[list[float]]:
    found: dict[str, list[float]] = defaultdict(list)
    for number, (margin, pair) in enumerate(zip(margins, pairs, strict=True)):
        if preferred := pair.preferred:
            agrees = 0.5 if margin == 0 else float((margin > 0) == (preferred > 0))
            found[pair.prompt_id or f"pair {number}"].append(agrees)
    return list(found.values())


def _auc(margins: Sequence[float], pairs: Sequence[EncodedPair]) -> float | None:
    """By the rank sum, equal margins at their mean rank; None with fewer than two classes."""
    decided = sorted((margin, side) for margin, pair in zip(margins, pairs, strict=True) if (side := pair.preferred))
    num_first = sum(side > 0 for _, side in decided)
    num_second = len(decided) - num_first
    if not num_first or not num_second or any(math.isnan(margin) for margin, _ in decided):
        return None
    ranks: dict[float, list[int]] = defaultdict(list)
    for rank, (margin, _) in enumerate(decided, start=1):
        ranks[margin].append(rank)
    rank_sum = sum(sum(ranks[margin]) / len(ranks[margin]) for margin, side in decided if side > 0)
    return (rank_sum - num_first * (num_first + 1) / 2) / (num_first * num_second)
