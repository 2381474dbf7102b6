import pytest

from rlaif.core.constitution import parse_constitution
from rlaif.core.errors import InvalidInputError

GOOD = """\
id: house-rules
version: 3
description: Be good.
principles:
  - id: harmless
    text: Choose the reply that is less harmful.
    weight: 4
    dimension: harmlessness
  - id: helpful
    text: Choose the reply that is more helpful.
"""


def test_a_constitution_is_read_with_defaults():
    constitution = parse_constitution(GOOD)
    assert constitution.name == "constitutions/house-rules"
    assert constitution.version == 3
    assert [p.weight for p in constitution.principles] == [4.0, 1.0]


def test_the_digest_ignores_layout_but_not_content():
    spaced = GOOD.replace("weight: 4\n", "weight: 4.0   # four\n")
    assert parse_constitution(spaced).sha256 == parse_constitution(GOOD).sha256
    assert parse_constitution(GOOD.replace("less", "more")).sha256 != parse_constitution(GOOD).sha256
    assert parse_constitution(GOOD).without("helpful").sha256 != parse_constitution(GOOD).sha256


@pytest.mark.parametrize(
    ("broken", "line", "field"),
    [
        (GOOD + "colour: red\n", 11, "constitution"),
        (GOOD.replace("weight: 4", "weigth: 4"), 7, "principles[0]"),
        (GOOD.replace("weight: 4", "weight: -1"), 7, "principles[0].weight"),
        (GOOD.replace("weight: 4", "weight: .nan"), 7, "principles[0].weight"),
        (GOOD.replace("id: helpful", "id: harmless"), 9, "principles[1].id"),
        (GOOD.replace("id: helpful", "id: Be Helpful"), 9, "principles[1].id"),
        (GOOD.replace("version: 3", "version: three"), 2, "version"),
        (GOOD.replace("text: Choose the reply that is more helpful.", "text: ''"), 10, "principles[1].text"),
        ("id: x\nprinciples: []\n", 2, "principles"),
        ("id: x\n", 1, "principles"),
        ("- a\n- b\n", 1, "constitution"),
        ("id: [x\n", 2, "constitution"),
    ],
)
def test_what_is_wrong_is_named_by_line_and_field(broken, line, field):
    with pytest.raises(InvalidInputError) as caught:
        parse_constitution(broken, source="rules.yaml")
    assert caught.value.field == field
    assert caught.value.message.startswith(f"rules.yaml:{line}:")


def test_principles_are_drawn_by_seed_in_document_order():
    principles = "".join(f"  - {{id: p{i}, text: Rule {i}.}}\n" for i in range(8))
    constitution = parse_constitution(f"id: many\nprinciples:\n{principles}")
    drawn = constitution.select((), num_sampled=3, seed=5)
    assert drawn == constitution.select((), num_sampled=3, seed=5)
    assert len(drawn) == 3
    assert [p.principle_id for p in drawn] == sorted(p.principle_id for p in drawn)
    assert any(constitution.select((), num_sampled=3, seed=s) != drawn for s in range(6, 16))


def test_an_unknown_principle_is_refused_by_position():
    with pytest.raises(InvalidInputError, match="no principle 'brave'") as caught:
        parse_constitution(GOOD).select(("harmless", "brave"))
    assert caught.value.field == "options.principle_ids[1]"
