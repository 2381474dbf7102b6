"""Confusion matrices and ROC curves on pairs that a reader can count."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from rlaif_pipelines.evaluation.classification import Scored, classify
from rlaif_pipelines.evaluation.people import scored_by_people
from rlaif_pipelines.training.config.pairs import LabelFile


def test_the_matrix_counts_what_was_wanted_in_rows_and_what_was_said_in_columns() -> None:
    pairs = [Scored(0.9, 1.0), Scored(0.8, 1.0), Scored(0.3, 1.0), Scored(0.6, 0.0), Scored(0.1, 0.0)]
    found = classify(pairs).to_json()
    assert found["classes"] == ["first", "second"]
    assert found["confusion"] == [[2, 1], [1, 1]]


def test_ties_are_a_class_where_there_are_any_and_no_part_of_the_curve() -> None:
    found = classify([Scored(0.5, 1.0), Scored(0.2, 0.5), Scored(0.9, 1.0), Scored(0.1, 0.0)]).to_json()
    assert found["classes"] == ["first", "tie", "second"]
    assert found["confusion"] == [[1, 1, 0], [0, 0, 1], [0, 0, 1]]
    assert found["roc"] == [[1.9, 0.0, 0.0], [0.9, 0.0, 0.5], [0.5, 0.0, 1.0], [0.1, 1.0, 1.0]]


def test_the_curve_takes_equal_scores_together() -> None:
    found = classify([Scored(0.7, 1.0), Scored(0.7, 0.0), Scored(0.2, 1.0), Scored(0.2, 0.0)]).to_json()
    assert found["roc"] == [[1.7, 0.0, 0.0], [0.7, 0.5, 0.5], [0.2, 1.0, 1.0]]


@pytest.mark.parametrize("wanted", [0.0, 1.0])
def test_one_class_has_no_curve(wanted: float) -> None:
    assert classify([Scored(0.7, wanted), Scored(0.2, wanted)]).roc == ()


def test_a_long_curve_keeps_its_ends_and_about_a_hundred_points() -> None:
    pairs = [Scored(number / 1000, float(number % 3 == 0)) for number in range(1000)]
    roc = classify(pairs).roc
    assert len(roc) <= 101
    assert (roc[0].false_positive_rate, roc[0].true_positive_rate) == (0.0, 0.0)
    assert (roc[-1].false_positive_rate, roc[-1].true_positive_rate) == (1.0, 1.0)


def test_people_s_votes_meet_the_judge_s_label_whichever_response_they_name_first(tmp_path: Path) -> None:
    path = tmp_path / "people.jsonl"
    votes = [
        {"prompt": "Why?", "first": "b", "second": "a", "preference": "first"},
        {"prompt": "Why not?", "first": "a", "second": "b", "preference": "first"},
    ]
    path.write_text("\n".join(map(json.dumps, votes)))
    messages = [{"role": "user", "content": "Why?"}]
    label = {"messages": messages, "first": "a", "second": "b", "probability_first": 0.2}
    abstained = {**label, "first": "c", "probability_first": None}
    assert scored_by_people([label, abstained], LabelFile(path=path)) == [Scored(0.2, 0.0)]
