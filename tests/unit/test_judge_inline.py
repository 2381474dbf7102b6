"""A constitution brought along in a request: the rules of files, and errors by field."""

from __future__ import annotations

import math

import pytest

from judge_fakes import CONSTITUTION
from rlaif.core.constitution import Constitution, Exemplar, Principle
from rlaif.core.errors import InvalidInputError
from rlaif.judge.inline import MAX_INLINE_BYTES, read_inline_constitution
from rlaif.judge.library import ConstitutionLibrary
from rlaif.judge.wire import constitution_message
from rlaif.v1 import judge_service_pb2

Message = judge_service_pb2.Constitution
Rule = judge_service_pb2.Principle


def test_it_comes_back_as_it_was_sent_digest_included():
    full = Constitution(
        "mine",
        3,
        'Quotes " and: colons',
        (
            Principle(
                "kind",
                "Be kind.\nAlways \u2028 even\x85 here: 'x' #1 😀",
                2.5,
                "kindness",
                ("chat", "code"),
                "Say what is unkind.",
                "Make it kind.",
                (Exemplar("Hi", "Go away", "It is rude.", "Hello!"),),
            ),
            Principle("brief", "true"),
        ),
        "Find faults.",
        "Mend them.",
    )
    for constitution in (full, CONSTITUTION):
        read = read_inline_constitution(constitution_message(constitution))
        assert read == constitution
        assert read.sha256 == constitution.sha256


def test_one_sentence_is_a_constitution():
    read = read_inline_constitution(Message(principles=[Rule(principle_id="given", text="Be kind.")]))
    assert (read.name, read.version) == ("constitutions/inline", 1)
    assert read.principles == (Principle("given", "Be kind.", 1.0),)


RULE = Rule(principle_id="kind", text="Be kind.")


@pytest.mark.parametrize(
    ("message", "field", "words"),
    [
        (Message(), "principles", "at least one principle"),
        (Message(principles=[Rule(text="x")]), "principles[0].principle_id", "missing"),
        (Message(principles=[Rule(principle_id="Kind", text="x")]), "principles[0].principle_id", "lower-case"),
        (Message(principles=[Rule(principle_id="kind")]), "principles[0].text", "wording"),
        (Message(principles=[Rule(principle_id="kind", text=" ")]), "principles[0].text", "text"),
        (Message(principles=[Rule(principle_id="kind", text="x" * 4001)]), "principles[0].text", "4000"),
        (Message(principles=[RULE, RULE]), "principles[1].principle_id", "twice"),
        (Message(principles=[RULE] * 65), "principles", "at most 64"),
        (Message(principles=[Rule(principle_id="a", text="x", weight=-1)]), "principles[0].weight", "above 0"),
        (Message(principles=[Rule(principle_id="a", text="x", weight=math.nan)]), "principles[0].weight", "number"),
        (Message(principles=[Rule(principle_id="a", text="x", weight=math.inf)]), "principles[0].weight", "number"),
        (Message(name="mine", principles=[RULE]), "name", "constitutions/"),
        (Message(name="constitutions/Mine", principles=[RULE]), "name", "lower-case"),
        (Message(description="x" * MAX_INLINE_BYTES, principles=[RULE]), "", "limit of 16384"),
    ],
)
def test_what_is_wrong_is_named_by_field_and_limit(message: Message, field: str, words: str):
    with pytest.raises(InvalidInputError, match=words) as caught:
        read_inline_constitution(message)
    assert caught.value.field == f"inline_constitution.{field}".rstrip(".")
    assert "inline_constitution:1" not in caught.value.message


def test_it_neither_stands_beside_a_name_nor_takes_anothers():
    library = ConstitutionLibrary([CONSTITUTION])
    mine = Message(principles=[RULE])
    assert library.resolve("", mine).name == "constitutions/inline"
    assert library.resolve(CONSTITUTION.name, None) == CONSTITUTION
    assert library.resolve("", constitution_message(CONSTITUTION)) == CONSTITUTION
    with pytest.raises(InvalidInputError, match="not both"):
        library.resolve(CONSTITUTION.name, mine)
    mine.name = CONSTITUTION.name
    with pytest.raises(InvalidInputError, match="another name"):
        library.resolve("", mine)
