"""Prompts of one's own: what is accepted, and the sentence for what is not."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from rlaif.core.conversation import Message
from rlaif.core.errors import InvalidInputError
from rlaif_pipelines.context import RunContext, read_rows
from rlaif_pipelines.settings import ServiceAddresses, make_settings
from rlaif_pipelines.stages.prompts import PROMPTS_FILE, prompts
from rlaif_pipelines.stages.prompts_file import parse_hh, read_prompts

GOOD = b'{"prompt": "first", "split": "train"}\n{"prompt": "second", "split": "held_out"}\n'


def test_every_accepted_form_is_read(tmp_path: Path) -> None:
    path = tmp_path / "my.jsonl"
    rows = [
        {"prompt": "How do I boil an egg?", "category": "howto", "split": "train", "prompt_id": "egg"},
        {"messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"}], "split": "train"},
        {"prompt": "\n\nHuman: Hi\n\nAssistant: Hello!\n\nHuman: Who are you?", "split": "held_out"},
    ]
    path.write_text("\ufeff" + "\n\n".join(json.dumps(row) for row in rows), encoding="utf-8")
    found = read_prompts(path).prompts
    assert (found[0].prompt_id, found[0].category) == ("egg", "howto")
    assert [message.role for message in found[1].messages] == ["system", "user"]
    assert found[2].messages == (Message("user", "Hi"), Message("assistant", "Hello!"), Message("user", "Who are you?"))
    assert [prompt.split for prompt in found] == ["train", "train", "held_out"]


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        (b"", "is empty"),
        (b"\n \n", "is empty"),
        (GOOD + b"\xff\xfe\n", r"line 3: not UTF-8 \(byte 1 of the line\)"),
        (GOOD + b"{'prompt': 1}\n", "line 3: not JSON: .* at column 2"),
        (GOOD + b'["a"]\n', "line 3: must be a JSON object, not a list"),
        (GOOD + b'{"prompt": 5}\n', "line 3: prompt: must be text, not a number"),
        (GOOD + b'{"prompt": " "}\n', r"line 3: prompt\[0\].content: content is empty"),
        (GOOD + b'{"text": "a"}\n', "line 3: unknown field 'text'; known are category, messages"),
        (GOOD + b'{"category": "a"}\n', "line 3: prompt: a row needs either prompt or messages"),
        (GOOD + b'{"messages": "a"}\n', "line 3: messages: must be a list"),
        (
            GOOD + b'{"messages": [{"role": "bot", "content": "a"}]}\n',
            r"line 3: messages\[0\].role: role 'bot' is not one",
        ),
        (GOOD + b'{"messages": [{"role": "assistant", "content": "a"}]}\n', r"line 3: messages\[0\].role: turn 0"),
        (
            GOOD + b'{"prompt": "\\n\\nHuman: a\\n\\nAssistant: b"}\n',
            "line 3: prompt.*: the last turn must be the user's",
        ),
        (GOOD + b'{"prompt": "a", "category": 3}\n', "line 3: category: must be text, not a number"),
        (GOOD + b'{"prompt": "a", "split": "test"}\n', "line 3: split: must be train or held_out, not 'test'"),
        (
            b'{"prompt": "a", "prompt_id": "x"}\n{"prompt": "b", "prompt_id": "x"}\n',
            "line 2: prompt_id 'x' is that of line 1 too",
        ),
        (b'{"prompt": "a", "split": "train"}\n', "leaves no held_out prompts among its 1"),
    ],
)
def test_a_bad_file_is_one_sentence(tmp_path: Path, line: bytes, sentence: str) -> None:
    path = tmp_path / "my.jsonl"
    path.write_bytes(line)
    with pytest.raises(InvalidInputError, match=sentence):
        read_prompts(path)


def test_a_missing_file_and_a_folder_are_named(tmp_path: Path) -> None:
    with pytest.raises(InvalidInputError, match="does not exist"):
        read_prompts(tmp_path / "none.jsonl")
    with pytest.raises(InvalidInputError, match="is a folder"):
        read_prompts(tmp_path)


def test_duplicates_are_dropped_and_counted(tmp_path: Path) -> None:
    path = tmp_path / "my.jsonl"
    path.write_bytes(GOOD + b'{"messages": [{"role": "user", "content": "first"}]}\n' + GOOD)
    found = read_prompts(path)
    assert (len(found.prompts), found.num_duplicates) == (2, 3)


def test_the_split_depends_on_the_prompt_alone(tmp_path: Path) -> None:
    rows = [json.dumps({"prompt": f"question {number}"}) for number in range(400)]
    forward, backward = tmp_path / "a.jsonl", tmp_path / "b.jsonl"
    forward.write_text("\n".join(rows))
    backward.write_text("\n".join(reversed(rows)))
    held = [{prompt.prompt_id for prompt in read_prompts(path).of("held_out")} for path in (forward, backward)]
    assert held[0] == held[1]
    assert 50 < len(held[0]) < 110


def test_text_before_the_first_mark_makes_it_a_plain_prompt() -> None:
    assert parse_hh("Explain this:\n\nHuman: hi") == (Message("user", "Explain this:\n\nHuman: hi"),)


def test_the_playground_brings_its_own_prompts(tmp_path: Path) -> None:
    context = RunContext(
        tmp_path, make_settings({"evaluation": {"num_harmful": 9, "num_other": 2}}), ServiceAddresses()
    )
    result = prompts(context)
    rows = list(read_rows(result.path(PROMPTS_FILE)))
    held_out = [row["category"] for row in rows if row["split"] == "held_out"]
    assert sorted(held_out) == ["borderline"] * 2 + ["fact"] * 2 + ["harmful"] * 9 + ["howto"] * 2
    assert result.values["num_train"] == sum(row["split"] == "train" for row in rows) > 500


def test_the_empty_turn_that_ends_a_dialogue_is_the_one_asked_for() -> None:
    turns = parse_hh("\n\nHuman: Hi\n\nAssistant: Hello!\n\nHuman: Who are you?\n\nAssistant:")
    assert [turn.role for turn in turns] == ["user", "assistant", "user"]
    assert turns[-1].content == "Who are you?"
