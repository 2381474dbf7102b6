"""Fitting a calibration to what people said, and telling by cross-validation whether it helps."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import groupby

from rlaif.core.calibration import Calibration, CalibrationKey, CalibrationScores, Method
from rlaif.core.errors import PreconditionError
from rlaif.core.reliability import Forecast, brier, expected_calibration_error, log_loss

MIN_LABELS = 50
_LARGEST_LOG_TEMPERATURE = 3.0
# Exchanging the responses twice must give the same probability again.
_DIGITS = 12


@dataclass(frozen=True)
class ReviewedLabel:
    """A raw P(first) of the judge, the share of people who preferred the first, and the conversation they belong to."""

    raw_probability_first: float
    human_share: float
    conversation: str


def fit_calibration(
    labels: Sequence[ReviewedLabel],
    *,
    key: CalibrationKey,
    constitution: str,
    method: Method = "temperature",
    num_folds: int = 5,
    seed: int = 0,
) -> Calibration:
    """The calibration fitted on all labels, scored by maps fitted on other conversations (cross-validation).

    PreconditionError with fewer than MIN_LABELS labels, or fewer conversations than folds.
    """
    if len(labels) < MIN_LABELS:
        raise PreconditionError(
            f"{len(labels)} human-reviewed labels are fewer than the {MIN_LABELS} that a calibration needs: a map "
            "fitted on so few would be noise",
            reason="TOO_FEW_LABELS",
        )
    folds = _folds(labels, num_folds=num_folds, seed=seed)
    raw = [(label.raw_probability_first, label.human_share) for label in labels]
    held_out: list[Forecast] = []
    for index, fold in enumerate(folds):
        others = [_forecast(label) for other, held in enumerate(folds) if other != index for label in held]
        apply = _fit(others, method=method, key=key).apply
        held_out += [(apply(p), y) for p, y in map(_forecast, fold)]
    fitted = _fit(raw, method=method, key=key)
    return Calibration(
        key=key,
        constitution=constitution,
        method=method,
        temperature=fitted.temperature,
        knots=fitted.knots,
        num_labels=len(labels),
        num_folds=num_folds,
        before=_scores(raw),
        after=_scores(held_out),
    )


def fit_temperature(forecasts: Sequence[Forecast]) -> float:
    """The T > 0 that minimises the log-loss of σ(logit(p) / T), within e⁻³ to e³ (Guo et al. 2017, §4.2).

    No intercept: which response is called first says nothing.
    """
    from scipy.optimize import minimize_scalar

    from rlaif.core.calibration import scale

    def loss(log_temperature: float) -> float:
        temperature = math.exp(log_temperature)
        return log_loss([(scale(p, temperature=temperature), y) for p, y in forecasts]).value or 0.0

    bounds = (-_LARGEST_LOG_TEMPERATURE, _LARGEST_LOG_TEMPERATURE)
    return math.exp(float(minimize_scalar(loss, bounds=bounds, method="bounded").x))


def fit_isotonic(forecasts: Sequence[Forecast]) -> tuple[tuple[float, float], ...]:
    """Knots of the rising map with the least squared error (Zadrozny and Elkan 2002), by pooling adjacent violators.

    Fitted on the forecasts and on the same with both responses exchanged, so that the map treats them alike. Values
    stay within 1/(n + 2) of 0 and 1 (Laplace's rule): no sample shows that something never happens.
    """
    from scipy.optimize import isotonic_regression

    both = sorted((round(q, _DIGITS), z) for p, y in forecasts for q, z in ((p, y), (1 - p, 1 - y)))
    points = [
        (x, [z for _, z in rows]) for x, rows in ((x, list(rows)) for x, rows in groupby(both, lambda row: row[0]))
    ]
    fitted = isotonic_regression(
        [sum(outcomes) / len(outcomes) for _, outcomes in points], weights=[len(outcomes) for _, outcomes in points]
    ).x.tolist()
    margin = 1 / (len(forecasts) + 2)
    values = [min(max(value, margin), 1 - margin) for value in fitted]
    knots = [(x, value) for (x, _), value in zip(points, values, strict=True)]
    # Within a level only its ends matter.
    return tuple(
        knot
        for index, knot in enumerate(knots)
        if index in (0, len(knots) - 1) or not knots[index - 1][1] == knot[1] == knots[index + 1][1]
    )


def _fit(forecasts: Sequence[Forecast], *, method: Method, key: CalibrationKey) -> Calibration:
    unscored = CalibrationScores(0.0, 0.0, 0.0)
    temperature = fit_temperature(forecasts) if method == "temperature" else 1.0
    knots = fit_isotonic(forecasts) if method == "isotonic" else ()
    return Calibration(key, "", method, temperature, knots, len(forecasts), 0, unscored, unscored)


def _folds(labels: Sequence[ReviewedLabel], *, num_folds: int, seed: int) -> list[list[ReviewedLabel]]:
    """Labels dealt out by conversation, so that no conversation is on both sides of a fit."""
    conversations = sorted({label.conversation for label in labels})
    if len(conversations) < num_folds:
        raise PreconditionError(
            f"the reviewed labels are of {len(conversations)} conversations, fewer than the {num_folds} folds of the "
            "cross-validation",
            reason="TOO_FEW_CONVERSATIONS",
        )
    random.Random(seed).shuffle(conversations)  # noqa: S311 - not for secrets
    fold_of = {conversation: index % num_folds for index, conversation in enumerate(conversations)}
    folds: list[list[ReviewedLabel]] = [[] for _ in range(num_folds)]
    for label in labels:
        folds[fold_of[label.conversation]].append(label)
    return folds


def _forecast(label: ReviewedLabel) -> Forecast:
    return label.raw_probability_first, label.human_share


def _scores(forecasts: Sequence[Forecast]) -> CalibrationScores:
    found = {"brier": brier, "nll": log_loss, "ece": expected_calibration_error}
    return CalibrationScores(**{name: _value(score, forecasts) for name, score in found.items()})


def _value(score: Callable[[Sequence[Forecast]], object], forecasts: Sequence[Forecast]) -> float:
    value = getattr(score(forecasts), "value", None)
    assert value is not None
    return float(value)
