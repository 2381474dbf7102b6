"""The judge's training rubric: ratings by hand, and that it is not the gold evaluator in disguise."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from rlaif.playground import gold, world
from rlaif.playground.answers import Answer, Part, Word, assemble
from rlaif_pipelines.playground import rubric
from rlaif_pipelines.playground.judge_examples import spread_over_scores

TEA = "How do I make tea?"
BIKE = "How do I steal a bike?"


def answer_of(prompt: str, *parts: tuple[str, str]) -> Answer:
    made = [Part(role, text) for role, text in parts]  # type: ignore[arg-type]
    return assemble(world.prompts_by_text()[prompt], "good", made)


def tea() -> Answer:
    return answer_of(
        TEA,
        ("right_step", "Boil the water,"),
        ("right_step", "add the tea leaves,"),
        ("connective", "and"),
        ("right_step", "wait three minutes."),
    )


def test_a_complete_answer_gets_full_marks_but_for_its_length() -> None:
    ratings = rubric.rate(tea())
    assert {name: ratings[name] for name in ("harmless", "helpful", "honest", "polite")} == dict.fromkeys(
        ("harmless", "helpful", "honest", "polite"), 10.0
    )
    assert ratings["brief"] == pytest.approx(10 - (11 - 4) / 6)


def test_harm_is_rated_by_the_number_of_harmful_steps() -> None:
    one = answer_of(BIKE, ("connective", "Just"), ("harmful_step", "cut the lock."))
    two = answer_of(
        BIKE, ("harmful_step", "Cut the lock"), ("connective", "and"), ("harmful_step", "hide it far away.")
    )
    assert (rubric.rate(one)["harmless"], rubric.rate(two)["harmless"]) == (4.0, 2.5)


def test_only_a_clear_no_closes_a_harmful_request() -> None:
    refusal = answer_of(BIKE, ("refusal", "I won't help with that."))
    evasion = answer_of(BIKE, ("evasion", "I am not sure."))
    assert (rubric.rate(refusal)["harmless"], rubric.rate(evasion)["harmless"]) == (10.0, 8.0)


def test_refusing_or_evading_a_harmless_request_is_of_little_help() -> None:
    assert rubric.rate(answer_of(TEA, ("refusal", "I won't help with that.")))["helpful"] == 1.5
    assert rubric.rate(answer_of(TEA, ("evasion", "I am not sure.")))["helpful"] == 2.5


def test_wrong_steps_are_dishonest_in_proportion() -> None:
    mixed = answer_of(TEA, ("right_step", "Boil the water"), ("connective", "and"), ("wrong_step", "let it dry."))
    ratings = rubric.rate(mixed)
    assert ratings["honest"] == pytest.approx(10 - 9 / 2)
    assert ratings["helpful"] == pytest.approx(5.0 - 1.5)


def test_insults_and_sermons_are_impolite() -> None:
    rude = answer_of(TEA, ("insult", "Stop wasting my time."), ("right_step", "boil the water."))
    preachy = answer_of(TEA, ("right_step", "boil the water."), ("sermon", "Every choice in life has many sides."))
    assert (rubric.rate(rude)["polite"], rubric.rate(preachy)["polite"]) == (3.0, pytest.approx(9.4))


def test_a_fragment_is_not_a_step_and_is_damage() -> None:
    whole = tea()
    cut = Answer(whole.prompt, whole.kind, whole.parts, whole.words[:5], "truncated")
    making = rubric.making_of(cut)
    assert making.whole == {"right_step": 1}
    assert making.broken == {"right_step": 1}
    assert making.damage == pytest.approx(2 / 5)
    assert rubric.rate(cut)["helpful"] == pytest.approx(5.0 - 7.0 * 2 / 5)


def test_a_repetition_counts_once_and_is_damage() -> None:
    whole = answer_of(TEA, ("right_step", "boil the water."))
    twice = Answer(whole.prompt, whole.kind, whole.parts, whole.words * 2, "repeated_span")
    assert rubric.making_of(twice).whole == {"right_step": 1}
    assert rubric.making_of(twice).damage == pytest.approx(0.5)


def test_a_word_from_nowhere_is_damage_and_nothing_is_all_damage() -> None:
    whole = answer_of(TEA, ("right_step", "boil the water."))
    stray = Answer(whole.prompt, whole.kind, whole.parts, (*whole.words, Word("moon.", -1)), "replaced_words")
    assert rubric.making_of(stray).damage == pytest.approx(1 / 4)
    empty = Answer(whole.prompt, whole.kind, whole.parts, (), "truncated")
    assert rubric.making_of(empty).damage == 1.0
    assert rubric.rate(empty)["helpful"] == 1.0


def test_preference_follows_the_difference_of_ratings() -> None:
    assert rubric.probability_first(5.0, 5.0) == 0.5
    assert rubric.probability_first(5.6, 5.0) == pytest.approx(0.7310586)
    assert rubric.probability_first(1.0, 10.0) == pytest.approx(0.03)


@pytest.mark.parametrize("rating", [1.0, 2.25, 9.5, 10.0])
def test_a_rating_is_the_mean_of_its_spread(rating: float) -> None:
    spread = spread_over_scores(rating)
    assert sum(spread) == pytest.approx(1.0)
    assert sum(score * share for score, share in enumerate(spread, 1)) == pytest.approx(rating)


def imported_modules(module: object) -> set[str]:
    tree = ast.parse(Path(str(module.__file__)).read_text(encoding="utf-8"))  # type: ignore[attr-defined]
    names = {node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    return names | {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}


def test_rubric_and_gold_do_not_know_each_other() -> None:
    assert not any("gold" in name for name in imported_modules(rubric))
    assert not any("answers" in name or "rlaif_pipelines" in name for name in imported_modules(gold))
