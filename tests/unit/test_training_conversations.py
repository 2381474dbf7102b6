"""Conversations to learn from: what is read, what is refused, and which tokens are learnt behind which."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import pytest

from model_fixtures import CHAT_TEMPLATE, make_tokenizer
from rlaif.core.conversation import Message
from rlaif.core.errors import InvalidInputError
from rlaif_pipelines.training.conversations import (
    SftConversation,
    encode_conversation,
    encode_conversations,
    read_conversations,
)
from rlaif_pipelines.training.tokens import ChatEncoder
from training_fakes import write_lines

GOOD = {"prompt": "How do I boil an egg?", "response": "Put it into hot water."}
TWO_REPLIES = (
    Message("system", "Be brief."),
    Message("user", "Hello?"),
    Message("assistant", "Yes."),
    Message("user", "How do I boil an egg?"),
    Message("assistant", "In hot water."),
)
FORGETFUL_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|' + message['role'] + '|>' + ('…' if message['role'] == 'assistant' else '') + message['content'] "
    "+ '<|end|>' }}{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)
"""A past reply looks otherwise than a present one."""


def messages(*contents: str, first: int = 0) -> dict[str, Any]:
    roles = ("user", "assistant")
    return {"messages": [{"role": roles[(n + first) % 2], "content": text} for n, text in enumerate(contents)]}


def encoder(template: str = CHAT_TEMPLATE) -> ChatEncoder:
    tokenizer = make_tokenizer()
    tokenizer.chat_template = template
    return ChatEncoder(tokenizer)


def test_both_forms_of_a_line_are_the_same_conversation(tmp_path: Path) -> None:
    rows = [GOOD, messages(GOOD["prompt"], GOOD["response"]) | {"weight": 2}]
    first, second = read_conversations(write_lines(tmp_path / "c.jsonl", rows)).found
    assert first.turns == second.turns
    assert first.prompt_id == second.prompt_id
    assert (first.weight, second.weight) == (1.0, 2.0)


def test_what_cannot_be_learnt_from_is_counted_and_left_out(tmp_path: Path) -> None:
    rows = [
        GOOD,
        GOOD | {"weight": 0},
        messages("Hello?"),
        {"messages": []},
        GOOD | {"response": " "},
        messages("Hello?", "", "Well?", "Yes."),
        messages("Hello?", "Yes.", "And now?"),
    ]
    found = read_conversations(write_lines(tmp_path / "c.jsonl", rows))
    assert [len(each.turns) for each in found.found] == [2, 2], "what follows the last reply teaches nothing"
    assert (found.num_weightless, found.num_without_reply, found.num_empty) == (1, 2, 2)


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        (GOOD | {"weight": float("nan")}, "weight is nan, not a number from 0 up"),
        (GOOD | {"weight": -1}, "weight is -1, not a number from 0 up"),
        (GOOD | {"weight": True}, "weight is True, not a number from 0 up"),
        (
            GOOD | {"wieght": 1},
            "unknown key 'wieght'; known are messages, prompt, response, weight, prompt_id, category",
        ),
        (GOOD | {"prompt_id": 3}, "prompt_id must be text"),
        ({"prompt": "Hello?"}, "response must be text"),
        ({"prompt": None, "response": "Yes."}, "prompt must be text"),
        (GOOD | messages("Hello?"), "give messages, or prompt and response, not both"),
        ({"messages": "Hello?"}, "messages must be a list of turns"),
        ({"messages": [{"role": "robot", "content": "Beep."}]}, "messages[0].role: role 'robot' is not one of"),
        ({"messages": [{"role": "user", "content": 3}]}, "messages[0].content: content must be text"),
        (messages("Yes.", "Hello?", "Yes.", first=1), "messages[0].role: turn 0 is the assistant's where the user's"),
        (messages("", "Yes."), "messages[0].content: content is empty"),
    ],
)
def test_a_line_that_is_no_conversation_is_named(line: dict[str, Any], sentence: str, tmp_path: Path) -> None:
    path = write_lines(tmp_path / "c.jsonl", [GOOD, line])
    with pytest.raises(InvalidInputError) as caught:
        read_conversations(path)
    assert str(caught.value).startswith(f"{path}, line 2: {sentence}")


def test_a_file_that_teaches_nothing_is_refused(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "c.jsonl", [messages("Hello?"), GOOD | {"weight": 0}])
    with pytest.raises(InvalidInputError, match=r"none of the 2 .* \(1 without a reply, 0 with an empty one, 1 weigh"):
        read_conversations(path)
    path.write_text("no JSON\n")
    with pytest.raises(InvalidInputError, match="line 1: not JSON"):
        read_conversations(path)
    with pytest.raises(InvalidInputError, match=r"cannot read .*: No such file"):
        read_conversations(tmp_path / "gone.jsonl")


@pytest.mark.parametrize("loss_on", ["all_replies", "last_reply"])
def test_replies_are_learnt_behind_what_a_sampler_would_show(loss_on: Literal["all_replies", "last_reply"]) -> None:
    coder = encoder()
    [found] = encode_conversation(SftConversation("p", TWO_REPLIES, 1.5), encoder=coder, loss_on=loss_on)
    replies = [coder.response("Yes."), coder.response("In hot water.")]
    assert found.ids == coder.prompt(TWO_REPLIES[:4]) + replies[1]
    learnt = tuple(token for token, is_learnt in zip(found.ids, found.learnt, strict=True) if is_learnt)
    assert learnt == (replies[0] + replies[1] if loss_on == "all_replies" else replies[1])
    assert found.weight == 1.5 * len(learnt)
    assert not found.learnt[0]


def test_replies_that_a_template_renders_otherwise_once_past_stand_in_sequences_of_their_own() -> None:
    coder = encoder(FORGETFUL_TEMPLATE)
    found = encode_conversation(SftConversation("p", TWO_REPLIES, 1.0), encoder=coder, loss_on="all_replies")
    assert [each.ids for each in found] == [
        coder.prompt(TWO_REPLIES[:2]) + coder.response("Yes."),
        coder.prompt(TWO_REPLIES[:4]) + coder.response("In hot water."),
    ]
    assert [each.num_learnt for each in found] == [len(coder.response(text)) for text in ("Yes.", "In hot water.")]


def test_conversations_longer_than_the_context_are_counted_and_all_of_them_refused() -> None:
    long = SftConversation("p", (Message("user", "egg " * 200), Message("assistant", "Yes.")), 1.0)
    short = SftConversation("q", TWO_REPLIES, 1.0)
    found, num_too_long = encode_conversations(
        [long, short], encoder=encoder(), context_length=60, loss_on="all_replies"
    )
    assert ([each.prompt_id for each in found], num_too_long) == (["q"], 1)
    with pytest.raises(InvalidInputError, match="every conversation is longer than the model's context of 60 tokens"):
        encode_conversations([long], encoder=encoder(), context_length=60, loss_on="all_replies")
