"""Constitutions written, imported and compared."""

import json
from importlib import resources

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rlaif.core.audit import FindingKind, audit_constitution
from rlaif.core.constitution import Constitution, Exemplar, Principle, parse_constitution
from rlaif.core.constitution_diff import diff_constitutions
from rlaif.core.constitution_import import import_constitution
from rlaif.core.constitution_yaml import constitution_yaml
from rlaif.core.errors import InvalidInputError

SHIPPED = ("code-review", "harmless-only", "helpful-harmless", "playground", "summarisation")


def shipped(name: str) -> Constitution:
    text = resources.files("rlaif.constitutions").joinpath(f"{name}.yaml").read_text(encoding="utf-8")
    return parse_constitution(text, source=name)


@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_constitutions_are_named_as_their_files_and_written_back_the_same(name):
    constitution = shipped(name)
    assert constitution.constitution_id == name
    assert parse_constitution(constitution_yaml(constitution)) == constitution
    assert constitution.description


@pytest.mark.parametrize("name", [name for name in SHIPPED if name != "playground"])
def test_constitutions_for_real_models_say_how_to_criticise_and_rewrite_and_show_it(name):
    constitution = shipped(name)
    assert constitution.critique
    assert constitution.revision
    assert any(principle.exemplars for principle in constitution.principles)


@pytest.mark.parametrize(
    ("name", "kinds"),
    [
        ("helpful-harmless", set()),
        ("code-review", set()),
        ("summarisation", set()),
        ("harmless-only", {FindingKind.EDGE_CASE}),
    ],
)
def test_constitutions_for_real_models_pass_their_own_audit(name, kinds):
    found = {finding.kind for finding in audit_constitution(shipped(name))}
    assert found - {FindingKind.VALIDATION} == kinds


@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_constitutions_fit_into_a_request(name):
    assert len(constitution_yaml(shipped(name)).encode()) < 16 * 1024


def test_the_playground_keeps_the_digest_that_its_labels_carry():
    assert shipped("playground").sha256 == "de474962daa96a928850efa928a5895ab92ce947ea7f201a13b5447ad95a9de4"


texts = st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1, max_size=200).map(str.strip).filter(bool)
exemplars = st.builds(Exemplar, texts, texts, texts, texts)
principles = st.builds(
    Principle,
    st.just("one"),
    texts,
    st.floats(0.001, 1000),
    texts.filter(lambda text: "\n" not in text),
    applies_to=st.lists(texts, max_size=2, unique=True).map(tuple),
    critique=st.just("") | texts,
    revision=st.just("") | texts,
    exemplars=st.lists(exemplars, max_size=1).map(tuple),
)


@given(st.builds(Constitution, st.just("any"), st.integers(1, 9), texts, principles.map(lambda one: (one,))))
@settings(deadline=None, max_examples=150)
def test_whatever_is_written_is_read_back_equal(constitution):
    again = parse_constitution(constitution_yaml(constitution))
    assert again == constitution
    assert again.sha256 == constitution.sha256


INSTRUCTIONS = {
    "harmful0": {
        "prompt": ["\n\nCritiqueRequest: Say what in the reply is rude.\n\nCritique:"],
        "edit_request": "\n\nRevisionRequest: Take out what is rude.\n\nRevision:",
    },
    "harmful1": {"prompt": "Say what is false.", "edit_request": "Correct it."},
}


def test_instruction_pairs_become_principles_with_both_steps():
    made = import_constitution(json.dumps(INSTRUCTIONS), constitution_id="manners", source="list.json")
    assert made.constitution_id == "manners"
    first, second = made.principles
    assert first.principle_id == "harmful0"
    assert made.critique_instruction(first) == "Say what in the reply is rude."
    assert made.revision_instruction(first) == "Take out what is rude."
    assert first.text == "Prefer the response that leaves less to do for: Take out what is rude."
    assert second.revision == "Correct it."
    assert parse_constitution(constitution_yaml(made)) == made


def test_a_json_list_of_pairs_or_of_choices_is_read_too():
    pairs = import_constitution(json.dumps(list(INSTRUCTIONS.values())), constitution_id="x", source="list.json")
    assert [p.critique for p in pairs.principles] == ["Say what in the reply is rude.", "Say what is false."]
    choices = ["\nPlease choose the reply that is less rude. Options:", "Choose the reply that is less rude!"]
    made = import_constitution(json.dumps(choices), constitution_id="x", source="list.json")
    assert made.principles[0].text == "Please choose the reply that is less rude."
    assert [p.principle_id for p in made.principles] == ["rude", "rude-2"]


def test_plain_text_gives_a_principle_a_paragraph_or_list_item():
    text = "# Rules\n\nPrefer the kinder\nreply.\n\n- Prefer the true reply.\n"
    text += "- Prefer what was\n  asked for.\n2. Be plain.\n"
    made = import_constitution(text, constitution_id="mixed", source="rules.txt")
    assert [principle.text for principle in made.principles] == [
        "Prefer the kinder reply.",
        "Prefer the true reply.",
        "Prefer what was asked for.",
        "Be plain.",
    ]
    assert [principle.principle_id for principle in made.principles] == ["kinder", "true", "asked", "plain"]
    assert made.description == "Imported from rules.txt."


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "x: holds no paragraph"),
        ("# only a heading\n", "x: holds no paragraph"),
        ("[]", "x: holds no instruction"),
        ("{\n 'a': 1}", "x:2: not valid JSON"),
        ("[3]", "x: [0]: must be a text"),
        ('{"a": {"colour": "red"}}', "x: a: has none of text"),
        ('{"a": {"prompt": 3}}', "x: a.prompt: must be a text"),
        ('["Options:"]', "x: [0]: is empty"),
        ("\n\n".join(f"Rule {i}." for i in range(65)), "at most 64"),
    ],
)
def test_what_cannot_be_imported_is_refused_by_place(text, message):
    with pytest.raises(InvalidInputError) as caught:
        import_constitution(text, constitution_id="x", source="x")
    assert message in caught.value.message


def test_a_diff_names_every_change_and_nothing_else():
    old = parse_constitution("id: a\nprinciples: [{id: x, text: X one.}, {id: y, text: Y.}, {id: z, text: Z.}]")
    new = parse_constitution(
        "id: a\nversion: 2\nprinciples: [{id: z, text: Z.}, {id: x, text: X two., weight: 3}, {id: w, text: W.}]"
    )
    assert [(change.kind, change.field) for change in diff_constitutions(old, new)] == [
        ("changed", "version"),
        ("removed", "principles[y]"),
        ("changed", "principles[x].text"),
        ("changed", "principles[x].weight"),
        ("added", "principles[w]"),
        ("moved", "principles"),
    ]
    assert diff_constitutions(old, old) == []


FULL = """\
id: full
critique: Find the fault.
revision: Mend it.
principles:
  - id: kind
    text: Prefer the kind reply.
    applies_to: [chat, care]
    critique: What is unkind?
    exemplars:
      - prompt: Sky?
        response: Green.
        critique: Wrong.
        revision: Blue.
"""


def test_optional_parts_are_read_and_count_in_the_digest():
    full = parse_constitution(FULL)
    (kind,) = full.principles
    assert kind.applies_to == ("chat", "care")
    assert kind.exemplars == (Exemplar("Sky?", "Green.", "Wrong.", "Blue."),)
    assert (full.critique_instruction(kind), full.revision_instruction(kind)) == ("What is unkind?", "Mend it.")
    for line in ("critique: Find the fault.\n", "revision: Mend it.\n", "    applies_to: [chat, care]\n"):
        assert parse_constitution(FULL.replace(line, "")).sha256 != full.sha256


@pytest.mark.parametrize(
    ("old", "new", "line", "field"),
    [
        ("critique: Find the fault.", "critique: ''", 2, "critique"),
        ("revision: Mend it.", "revision: [a]", 3, "revision"),
        ("[chat, care]", "chat", 7, "principles[0].applies_to"),
        ("[chat, care]", "[]", 7, "principles[0].applies_to"),
        ("[chat, care]", "[chat, chat]", 7, "principles[0].applies_to[1]"),
        ("[chat, care]", "[chat, 3]", 7, "principles[0].applies_to[1]"),
        ("        revision: Blue.\n", "", 10, "principles[0].exemplars[0].revision"),
        ("response: Green.", "respnse: Green.", 11, "principles[0].exemplars[0]"),
        ("response: Green.", "response: 3", 11, "principles[0].exemplars[0].response"),
        ("critique: What is unkind?", "critique: 7", 8, "principles[0].critique"),
    ],
)
def test_what_is_wrong_in_optional_parts_is_named_by_line_and_field(old, new, line, field):
    with pytest.raises(InvalidInputError) as caught:
        parse_constitution(FULL.replace(old, new), source="full.yaml")
    assert caught.value.field == field
    assert caught.value.message.startswith(f"full.yaml:{line}:")


def test_principles_are_left_out_where_they_do_not_apply():
    both = parse_constitution(
        "id: two\nprinciples: [{id: a, text: A., applies_to: [law]}, {id: b, text: B.},"
        " {id: c, text: C., applies_to: [art]}]"
    )
    assert [p.principle_id for p in both.select((), category="law")] == ["a", "b"]
    assert [p.principle_id for p in both.select(())] == ["a", "b", "c"]
    with pytest.raises(InvalidInputError, match="applies to 'art'"):
        both.select(("a",), category="art")
