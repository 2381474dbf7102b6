"""Fitting calibrations: what was put in is found again, and what cannot be known is refused."""

from __future__ import annotations

import math
import random

import pytest

from rlaif.core.calibration import Calibration, CalibrationKey, Method, scale
from rlaif.core.calibration_fit import MIN_LABELS, ReviewedLabel, fit_calibration, fit_isotonic, fit_temperature
from rlaif.core.errors import PreconditionError

KEY = CalibrationKey(judge_digest="a" * 64, template_sha256="b" * 64, constitution_sha256="c" * 64)


def overconfident(number: int, *, temperature: float = 3.0, seed: int = 1) -> list[ReviewedLabel]:
    """A judge whose log-odds are `temperature` times what people's votes bear out."""
    rng = random.Random(seed)
    labels = []
    for index in range(number):
        raw = 1 / (1 + math.exp(-rng.gauss(0, 4)))
        vote = float(rng.random() < scale(raw, temperature=temperature))
        labels.append(ReviewedLabel(raw, vote, conversation=str(index)))
    return labels


def fit(labels: list[ReviewedLabel], method: Method = "temperature", **changes: int) -> Calibration:
    return fit_calibration(labels, key=KEY, constitution="constitutions/default", method=method, **changes)


def test_the_temperature_put_in_is_found_again() -> None:
    found = fit(overconfident(4000))
    assert found.temperature == pytest.approx(3.0, rel=0.1)
    assert (found.num_labels, found.num_folds, found.key) == (4000, 5, KEY)


def test_a_temperature_in_closed_form() -> None:
    # forecasts of 0.9 that hold three times in four: logit(.9) / T = ln 3, T = ln 9 / ln 3
    assert fit_temperature([(0.9, 1.0)] * 3 + [(0.9, 0.0)]) == pytest.approx(2.0, abs=1e-4)


@pytest.mark.parametrize("method", ["temperature", "isotonic"])
def test_an_overconfident_judge_becomes_honest_on_labels_not_fitted_on(method: Method) -> None:
    found = fit(overconfident(2000), method)
    assert found.after.nll < found.before.nll
    assert found.after.brier < found.before.brier
    assert found.after.ece < found.before.ece / 2


@pytest.mark.parametrize("method", ["temperature", "isotonic"])
def test_a_fitted_map_rises_and_treats_both_responses_alike(method: Method) -> None:
    found = fit(overconfident(300), method)
    values = [found.apply(p / 100) for p in range(101)]
    assert values == sorted(values)
    assert all(found.apply(1 - p / 100) == pytest.approx(1 - found.apply(p / 100), abs=1e-9) for p in range(101))
    assert all(0 < value < 1 for value in values)


def test_isotonic_pools_what_falls() -> None:
    # of the two at .6 and .8, the surer was right less often: they become one level of 1/2, mirrored below
    knots = fit_isotonic([(0.6, 1.0), (0.8, 0.0)] * 10 + [(0.95, 1.0)] * 8)
    # Laplace: eight of eight is no certainty, n = 28. A level keeps its ends only.
    assert [x for x, _ in knots] == pytest.approx([0.05, 0.2, 0.8, 0.95])
    assert [y for _, y in knots] == pytest.approx([1 / 30, 0.5, 0.5, 1 - 1 / 30])


def test_the_score_after_is_that_of_maps_which_had_not_seen_the_label() -> None:
    # Every conversation has its own direction, and its labels stand together: seen, it would be learnt.
    labels = [
        ReviewedLabel(0.5 + 0.001 * index, float(index % 2), conversation=str(index))
        for index in range(100)
        for _ in range(3)
    ]
    found = fit(labels, "isotonic")
    assert found.after.nll > math.log(2) * 0.99


def test_the_same_labels_give_the_same_calibration() -> None:
    labels = overconfident(200)
    assert fit(labels) == fit(labels)
    assert fit(labels).name == fit(labels).name


def test_fewer_than_fifty_labels_are_refused() -> None:
    assert MIN_LABELS == 50
    with pytest.raises(PreconditionError, match="49 human-reviewed labels are fewer than the 50") as caught:
        fit(overconfident(49))
    assert caught.value.reason == "TOO_FEW_LABELS"
    assert fit(overconfident(50)).num_labels == 50


def test_labels_of_few_conversations_are_refused() -> None:
    labels = [ReviewedLabel(0.8, 1.0, conversation=str(index % 4)) for index in range(80)]
    with pytest.raises(PreconditionError) as caught:
        fit(labels)
    assert caught.value.reason == "TOO_FEW_CONVERSATIONS"
