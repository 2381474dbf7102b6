"""People's preferences read from the forms that data sets have them in."""

from __future__ import annotations

import gzip
import json
import os
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from rlaif.core.conversation import Message
from rlaif.core.errors import InvalidInputError
from rlaif.core.human_preference import parse_preference
from rlaif.core.preference import Preference

ASKED = (Message("user", "How do I boil an egg?"),)
TURNS = [{"role": "user", "content": "How do I boil an egg?"}]


def answer(text: str) -> list[dict[str, str]]:
    return [{"role": "assistant", "content": text}]


@pytest.mark.parametrize(
    "row",
    [
        {"messages": TURNS, "first": "In water.", "second": "No.", "preference": "first"},
        {"prompt": "How do I boil an egg?", "first": "In water.", "second": "No.", "preference": "first"},
        {"prompt": "How do I boil an egg?", "chosen": "In water.", "rejected": "No."},
        {"prompt": TURNS, "chosen": answer("In water."), "rejected": answer("No.")},
        {"chosen": TURNS + answer("In water."), "rejected": TURNS + answer("No.")},
        {
            "chosen": "\n\nHuman: How do I boil an egg?\n\nAssistant: In water.",
            "rejected": "\n\nHuman: How do I boil an egg?\n\nAssistant: No.",
        },
        {"prompt": "\n\nHuman: How do I boil an egg?\n\nAssistant:", "chosen": " In water.", "rejected": " No."},
    ],
)
def test_every_form_says_the_same(row: dict[str, Any]) -> None:
    found = parse_preference(row)
    assert (found.conversation, found.first, found.second) == (ASKED, "In water.", "No.")
    assert found.preference is Preference.FIRST


def test_a_transcript_of_several_turns_keeps_them() -> None:
    before = "\n\nHuman: Hello\n\nAssistant: Hi, there\n\nHuman: Bye\n\nAssistant:"
    found = parse_preference({"chosen": before + " Bye!", "rejected": before + " No."})
    assert [(turn.role, turn.content) for turn in found.conversation] == [
        ("user", "Hello"),
        ("assistant", "Hi, there"),
        ("user", "Bye"),
    ]


def test_who_judged_and_which_slice_may_stand_in_any_form() -> None:
    row = {"prompt": "a", "chosen": "b", "rejected": "c", "annotator": "ada", "category": "x", "language": "en"}
    found = parse_preference(row)
    assert (found.annotator, found.category, found.language, found.constitution) == ("ada", "x", "en", "")


TWO_IN_A_ROW = "\n\nHuman: a\n\nHuman: b\n\nAssistant:"
OURS = {"prompt": "a", "first": "b", "second": "c", "preference": "first"}


@pytest.mark.parametrize(
    ("row", "field"),
    [
        ({}, "prompt"),
        (OURS | {"prompt": ""}, "prompt"),
        (OURS | {"prompt": 3}, "prompt"),
        (OURS | {"messages": ["a"]}, "messages"),
        (OURS | {"messages": [{"role": "assistant", "content": "a"}]}, "messages[0].role"),
        (OURS | {"first": None}, "first"),
        (OURS | {"second": "b"}, "second"),
        (OURS | {"preference": "left"}, "preference"),
        (OURS | {"annotator": 7}, "annotator"),
        ({"chosen": "b"}, "chosen"),
        ({"chosen": "b", "rejected": "c"}, "chosen"),
        ({"prompt": "a", "chosen": answer("b") * 2, "rejected": answer("c")}, "chosen"),
        ({"chosen": TURNS, "rejected": TURNS}, "chosen"),
        ({"chosen": [], "rejected": TURNS}, "chosen"),
        ({"chosen": TURNS + answer("b"), "rejected": answer("c")}, "rejected"),
        ({"chosen": "\n\nHuman: a\n\nAssistant: b", "rejected": "\n\nHuman: x\n\nAssistant: c"}, "rejected"),
        ({"chosen": TWO_IN_A_ROW + " c", "rejected": TWO_IN_A_ROW + " d"}, "chosen[1].role"),
    ],
)
def test_a_row_that_is_wrong_names_the_field(row: dict[str, Any], field: str) -> None:
    with pytest.raises(InvalidInputError) as caught:
        parse_preference(row)
    assert caught.value.field == field


def test_hh_rlhf_can_be_read_but_for_its_broken_rows() -> None:
    path = Path(os.environ.get("RLAIF_SHARED", "")) / "data" / "hh_rlhf" / "harmless_base_test.jsonl.gz"
    if not os.environ.get("RLAIF_SHARED") or not path.exists():
        pytest.skip("RLAIF_SHARED names no folder that holds data/hh_rlhf")
    found: Counter[str] = Counter()
    with gzip.open(path, "rt") as lines:
        for row in map(json.loads, lines):
            try:
                parse_preference(row)
                found["read"] += 1
            except InvalidInputError as error:
                found["other conversation" if error.field == "rejected" else "turns out of order"] += 1
    assert found == {"read": 2303, "other conversation": 5, "turns out of order": 4}
