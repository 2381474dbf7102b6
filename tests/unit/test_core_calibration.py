"""Calibrations as values: what they do to a probability, and how they are kept."""

from __future__ import annotations

import json

import pytest

from rlaif.core.calibration import Calibration, CalibrationKey, CalibrationScores, parse_calibration
from rlaif.core.errors import InvalidInputError

KEY = CalibrationKey(judge_digest="a" * 64, template_sha256="b" * 64, constitution_sha256="c" * 64)
SCORES = CalibrationScores(brier=0.2, nll=0.6, ece=0.1)


def calibration(**changes: object) -> Calibration:
    values: dict[str, object] = {
        "key": KEY,
        "constitution": "constitutions/default",
        "method": "temperature",
        "temperature": 2.0,
        "knots": (),
        "num_labels": 60,
        "num_folds": 5,
        "before": SCORES,
        "after": SCORES,
    }
    return Calibration(**(values | changes))  # type: ignore[arg-type]


ISOTONIC = calibration(method="isotonic", temperature=1.0, knots=((0.1, 0.3), (0.5, 0.5), (0.9, 0.7)))


def test_a_temperature_divides_the_log_odds() -> None:
    # odds 9 to 1; a temperature of 2 takes their root: 3 to 1
    assert calibration().apply(0.9) == pytest.approx(0.75)
    assert calibration(temperature=0.5).apply(0.75) == pytest.approx(0.9)
    assert calibration(temperature=1.0).apply(0.3) == pytest.approx(0.3)


def test_an_isotonic_map_is_linear_between_its_knots_and_constant_beyond() -> None:
    assert [ISOTONIC.apply(p) for p in (0.0, 0.1, 0.3, 0.5, 0.7, 0.9, 1.0)] == pytest.approx(
        [0.3, 0.3, 0.4, 0.5, 0.6, 0.7, 0.7]
    )


@pytest.mark.parametrize("map_", [calibration(), ISOTONIC])
def test_both_responses_are_treated_alike(map_: Calibration) -> None:
    for p in (0.0, 0.05, 0.33, 0.5, 0.81, 1.0):
        assert map_.apply(1 - p) == pytest.approx(1 - map_.apply(p), abs=1e-9)


@pytest.mark.parametrize("p", [-0.01, 1.01, float("nan"), float("inf")])
def test_what_is_no_probability_is_refused(p: float) -> None:
    with pytest.raises(InvalidInputError) as caught:
        calibration().apply(p)
    assert caught.value.field == "probability"


@pytest.mark.parametrize("map_", [calibration(), ISOTONIC])
def test_a_file_gives_back_what_was_written(map_: Calibration) -> None:
    read = parse_calibration(json.dumps(map_.to_json(), indent=2))
    assert read == map_
    assert read.name == map_.name == f"calibrations/{map_.calibration_id}"


def test_another_temperature_has_another_name() -> None:
    assert calibration().name != calibration(temperature=2.1).name


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"temperature": 0.0}, "temperature"),
        ({"temperature": True}, "temperature"),
        ({"temperature": 3.0}, "id"),
        ({"method": "magic"}, "method"),
        ({"knots": [[0.1, 0.2]]}, "knots"),
        ({"num_labels": -1}, "num_labels"),
        ({"key": None}, "key"),
        ({"key": {"judge_digest": "a"}}, "key.judge_digest"),
        ({"before": {"brier": 0.1}}, "nll"),
    ],
)
def test_a_file_that_is_wrong_names_the_field(changes: dict[str, object], field: str) -> None:
    with pytest.raises(InvalidInputError) as caught:
        parse_calibration(json.dumps(calibration().to_json() | changes), source="my.json")
    assert caught.value.field == field
    assert caught.value.message.startswith("my.json: ")


@pytest.mark.parametrize(
    "knots", [[[0.1, 0.5], [0.1, 0.6]], [[0.1, 0.6], [0.2, 0.5]], [[0.1, 0.6], [0.2, 1.5]], [[0.1]], []]
)
def test_knots_that_do_not_rise_within_bounds_are_refused(knots: list[list[float]]) -> None:
    with pytest.raises(InvalidInputError) as caught:
        parse_calibration(json.dumps(ISOTONIC.to_json() | {"knots": knots}))
    assert caught.value.field == "knots"


def test_a_file_that_is_no_json_is_refused() -> None:
    with pytest.raises(InvalidInputError, match=r"my\.json: not valid JSON"):
        parse_calibration("{", source="my.json")
