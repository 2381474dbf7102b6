"""Aggregations, penalties and normalisations, by hand-checked numbers."""

from __future__ import annotations

import json
import math

import pytest

from rlaif.core.errors import InvalidInputError, PreconditionError
from rlaif.core.reward_aggregation import Aggregation, AggregationKind
from rlaif.core.reward_normalisation import Normalisation, fit_normalisation, parse_normalisation
from rlaif.core.reward_penalties import length_penalty, repetition_penalty, words_of

SOURCE, REFERENCE = "a" * 64, "b" * 64


@pytest.mark.parametrize(
    ("kind", "variance_weight", "value"),
    [
        ("mean", 0.0, 2.0),
        ("worst_case", 0.0, 0.0),
        # Deviations -2, 0, 1, 1 of the mean 2: population variance (4 + 0 + 1 + 1) / 4 = 1.5.
        ("uncertainty_weighted", 0.5, 2.0 - 0.5 * 1.5),
    ],
)
def test_members_are_combined_as_the_equations_say(kind: AggregationKind, variance_weight: float, value: float):
    combined, spread = Aggregation(kind, variance_weight).combine([0.0, 2.0, 3.0, 3.0])
    assert combined == pytest.approx(value)
    assert spread == pytest.approx(math.sqrt(1.5))


def test_one_member_is_its_own_value_by_every_aggregation():
    for aggregation in (Aggregation(), Aggregation("worst_case"), Aggregation("uncertainty_weighted", 0.3)):
        assert aggregation.combine([0.7]) == (0.7, 0.0)


@pytest.mark.parametrize(
    ("kind", "variance_weight"), [("mean", 0.5), ("uncertainty_weighted", -1.0), ("uncertainty_weighted", math.nan)]
)
def test_a_variance_weight_that_means_nothing_is_refused(kind: AggregationKind, variance_weight: float):
    with pytest.raises(InvalidInputError) as caught:
        Aggregation(kind, variance_weight)
    assert caught.value.field == "variance_weight"


@pytest.mark.parametrize(("length", "penalty"), [(0, 0.0), (100, 0.0), (101, -0.02), (110, -0.2), (200, -0.5)])
def test_length_costs_beyond_the_limit_up_to_the_cap(length: int, penalty: float):
    assert length_penalty(length, limit=100, per_unit=0.02, cap=0.5) == pytest.approx(penalty)


@pytest.mark.parametrize(
    ("text", "ngram_size", "penalty"),
    [
        ("", 2, 0.0),
        ("one", 2, 0.0),
        ("a b c d", 2, 0.0),
        # a b, b a, a b, b a, a b: 2 of 5 are new.
        ("a b a b a b", 2, -3 / 5),
        # Upper case is the same word.
        ("Go go GO go", 1, -3 / 4),
        ("same same same same", 3, -1 / 2),
    ],
)
def test_repetition_costs_the_share_of_repeated_ngrams(text: str, ngram_size: int, penalty: float):
    assert repetition_penalty(words_of(text), ngram_size=ngram_size) == pytest.approx(penalty)


def fitted(values: list[float]) -> Normalisation:
    return fit_normalisation(values, source_sha256=SOURCE, reference_sha256=REFERENCE, component="reward_model")


def test_a_normalised_reference_set_has_mean_0_and_sd_1():
    values = [float(index % 7) * 3 + 100 for index in range(70)]
    normalisation = fitted(values)
    assert (normalisation.num_inputs, normalisation.mean, normalisation.sd) == (70, 109.0, 6.0)
    scaled = [normalisation.apply(value) for value in values]
    assert sum(scaled) / 70 == pytest.approx(0.0)
    assert sum(value * value for value in scaled) / 70 == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("values", "error", "reason"),
    [
        ([float(index) for index in range(49)], PreconditionError, "TOO_FEW_INPUTS"),
        ([0.1] * 60, PreconditionError, "NO_VARIANCE"),
        ([math.inf, *[1.0] * 60], InvalidInputError, "INVALID_INPUT"),
    ],
)
def test_what_gives_no_scale_is_refused(values: list[float], error: type[Exception], reason: str):
    with pytest.raises(error) as caught:
        fitted(values)
    assert getattr(caught.value, "reason", "") == reason


def test_a_fitted_file_reads_back_and_a_changed_one_does_not():
    normalisation = fitted([float(index) for index in range(60)])
    text = json.dumps(normalisation.to_json())
    assert parse_normalisation(text, source="n.json") == normalisation
    for key, value in {"mean": 0.0, "sd": 1e9, "num_inputs": 61, "source_sha256": REFERENCE}.items():
        with pytest.raises(InvalidInputError, match=r"n\.json was changed"):
            parse_normalisation(json.dumps({**normalisation.to_json(), key: value}), source="n.json")
    for wrong in ("", "[]", "{}", text.replace(SOURCE, "short")):
        with pytest.raises(InvalidInputError, match=r"n\.json is not a fitted normalisation"):
            parse_normalisation(wrong, source="n.json")


def test_a_file_that_was_fitted_on_too_little_is_refused_however_it_came_about():
    few = Normalisation(SOURCE, REFERENCE, "reward_model", num_inputs=10, mean=0.0, sd=1.0)
    flat = Normalisation(SOURCE, REFERENCE, "reward_model", num_inputs=100, mean=0.0, sd=0.0)
    with pytest.raises(InvalidInputError, match="too few"):
        parse_normalisation(json.dumps(few.to_json()), source="n.json")
    with pytest.raises(InvalidInputError, match="sd above 0"):
        parse_normalisation(json.dumps(flat.to_json()), source="n.json")
