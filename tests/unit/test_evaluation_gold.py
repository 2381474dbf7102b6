"""Gold over rows: figures, wins and the judge's accuracy cell by cell, on answers whose merit is plain."""

from __future__ import annotations

from typing import Any

import pytest

from rlaif.core.constitution import Principle
from rlaif.playground import lexicon, world
from rlaif_pipelines.evaluation.gold import gold_figures, judge_accuracy, label_accuracy, score_rows, win_rate

REFUSAL = f"{lexicon.REFUSALS[0]}"
HARMFUL = next(prompt for prompt in world.prompts() if prompt.category == "harmful")
HOWTO = next(prompt for prompt in world.prompts() if prompt.category == "howto")


def steps_of(prompt: world.Prompt) -> str:
    return " ".join(f"{step[0].upper()}{step[1:]}." for step in world.tasks()[prompt.key][1])


def row(prompt: world.Prompt, text: str) -> dict[str, Any]:
    return {
        "messages": [{"role": "user", "content": prompt.text}],
        "category": prompt.category,
        "completions": [{"text": text}],
    }


def label(prompt: world.Prompt, first: str, second: str, **votes: float | None) -> dict[str, Any]:
    return {
        "messages": [{"role": "user", "content": prompt.text}],
        "category": prompt.category,
        "first": first,
        "second": second,
        "probability_first": 0.9,
        "votes": [{"principle_id": name, "probability_first": value, "weight": 1.0} for name, value in votes.items()],
    }


def test_figures_separate_harm_from_refusal() -> None:
    rows = [row(HARMFUL, steps_of(HARMFUL)), row(HARMFUL, REFUSAL), row(HOWTO, steps_of(HOWTO)), row(HOWTO, REFUSAL)]
    categories = [str(each["category"]) for each in rows]
    found = gold_figures(categories, score_rows(rows))
    assert found.harmful_compliance.value == 0.5
    assert found.over_refusal.value == 0.5
    assert found.refusal_of_harmful == 0.5
    assert set(found.by_category) == {"harmful", "howto"}


def test_wins_are_counted_within_categories_first() -> None:
    before = [row(HARMFUL, steps_of(HARMFUL)), row(HOWTO, steps_of(HOWTO)), row(HOWTO, REFUSAL), row(HOWTO, REFUSAL)]
    after = [row(HARMFUL, REFUSAL), row(HOWTO, REFUSAL), row(HOWTO, REFUSAL), row(HOWTO, steps_of(HOWTO))]
    categories = [str(each["category"]) for each in before]
    found = win_rate(categories, score_rows(before), score_rows(after))
    # harmful: 1 of 1; howto: (0 + ½ + 1) / 3 = ½; mean of categories ¾
    assert found.value == pytest.approx(0.75)


def test_judge_accuracy_is_by_cell_and_leaves_out_ties_and_abstentions() -> None:
    principles = [Principle("harm", "…", dimension="harmless"), Principle("style", "…", dimension="rhyme")]
    labels = [
        label(HARMFUL, REFUSAL, steps_of(HARMFUL), harm=0.9, style=0.1),
        label(HARMFUL, REFUSAL, steps_of(HARMFUL), harm=0.2),
        label(HARMFUL, steps_of(HARMFUL), REFUSAL, harm=None),
        label(HOWTO, REFUSAL, steps_of(HOWTO), harm=0.9),
    ]
    found = judge_accuracy(labels, principles=principles)
    assert (found["harmful"]["harm"].num_correct, found["harmful"]["harm"].num_decided) == (1, 2)
    assert found["howto"]["harm"].value is None
    assert set(found["harmful"]) == {"harm"}


def test_label_accuracy_is_against_gold_overall() -> None:
    labels = [label(HARMFUL, REFUSAL, steps_of(HARMFUL)), label(HARMFUL, steps_of(HARMFUL), REFUSAL)]
    found = label_accuracy(labels)
    assert (found.num_correct, found.num_decided) == (1, 2)
