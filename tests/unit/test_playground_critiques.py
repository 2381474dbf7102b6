"""Faults read off an answer's making, the critique that names them, and the answer put right."""

from __future__ import annotations

import ast
import random
from pathlib import Path

import pytest

from rlaif.playground import world
from rlaif.playground.answers import Answer, Part, assemble, compose, sample_kind
from rlaif_pipelines.playground import critiques
from rlaif_pipelines.playground.critiques import NO_FAULT, SENTENCES, critique_of, faults_named, faults_of, revised
from rlaif_pipelines.playground.judge_examples import sample_answer
from rlaif_pipelines.playground.rubric import rate
from rlaif_pipelines.playground.tokenizer import build_tokenizer

TEA = "How do I make tea?"
BIKE = "How do I steal a bike?"
KENYA = "Tell me the capital of Kenya."


def answer_of(prompt: str, *parts: tuple[str, str]) -> Answer:
    made = [Part(role, text) for role, text in parts]  # type: ignore[arg-type]
    return assemble(world.prompts_by_text()[prompt], "good", made)


def tea(*extra: tuple[str, str]) -> Answer:
    return answer_of(
        TEA,
        ("right_step", "Boil the water,"),
        ("right_step", "add the tea leaves,"),
        ("connective", "and"),
        ("right_step", "wait three minutes."),
        *extra,
    )


def test_a_complete_civil_answer_has_no_fault_and_is_left_as_it_is() -> None:
    assert faults_of(tea()) == ()
    assert critique_of(()) == NO_FAULT
    assert revised(random.Random(0), tea(), ()) == tea().text


@pytest.mark.parametrize(
    ("answer", "dimension", "fault"),
    [
        (answer_of(BIKE, ("connective", "Just"), ("harmful_step", "cut the lock.")), "harmless", "harm"),
        (answer_of(BIKE, ("evasion", "I am not sure.")), "harmless", "no_refusal"),
        (answer_of(BIKE, ("refusal", "I won't help with that.")), "helpful", "no_option"),
        (answer_of(TEA, ("refusal", "I won't help with that.")), "helpful", "needless_refusal"),
        (answer_of(TEA, ("evasion", "I am not sure.")), "helpful", "no_answer"),
        (answer_of(TEA, ("right_step", "boil the water.")), "helpful", "missing_steps"),
        (answer_of(TEA, ("wrong_step", "let it dry.")), "honest", "wrong_steps"),
        (answer_of(KENYA, ("connective", "It is"), ("wrong_fact", "Oslo.")), "honest", "wrong_answer"),
        (tea(("closer", "Please ask if you need more.")), "brief", "wasted_words"),
        (tea(("insult", "Stop wasting my time.")), "polite", "insult"),
        (tea(("sermon", "Every choice in life has many sides.")), "polite", "sermon"),
    ],
)
def test_each_fault_is_found_under_its_principle(answer: Answer, dimension: str, fault: str) -> None:
    assert faults_of(answer, [dimension]) == (fault,)  # type: ignore[list-item]


def test_a_fault_under_one_principle_is_none_under_another() -> None:
    assert faults_of(tea(("insult", "Stop wasting my time.")), ["harmless", "helpful", "honest"]) == ()


def test_a_critique_names_the_gravest_fault_first_and_reads_back() -> None:
    answer = answer_of(BIKE, ("insult", "Stop wasting my time."), ("harmful_step", "cut the lock."))
    faults = faults_of(answer)
    critique = critique_of(faults)
    assert critique.startswith(SENTENCES["harm"])
    assert faults_named(critique) == set(faults)


def test_faults_of_manner_are_cut_and_the_rest_kept_word_for_word() -> None:
    rude = tea(("insult", "Stop wasting my time."), ("closer", "Good luck."))
    assert revised(random.Random(0), rude, ["insult"]) == tea(("closer", "Good luck.")).text


def test_a_harmful_answer_is_revised_to_a_refusal_with_a_reason_and_another_way() -> None:
    answer = answer_of(BIKE, ("connective", "Just"), ("harmful_step", "cut the lock."))
    new = critiques.good_reply(random.Random(0), answer.prompt)
    assert [part.role for part in new.parts] == ["refusal", "reason", "alternative"]
    assert revised(random.Random(0), answer, ["harm"]) == new.text


@pytest.mark.parametrize("category", world.CATEGORIES)
def test_a_good_reply_has_no_fault_at_all(category: world.Category) -> None:
    rng = random.Random(1)
    for prompt in world.prompts_of("held_out", category=category)[:40]:
        assert faults_of(critiques.good_reply(rng, prompt)) == ()


def test_a_reply_worse_by_the_training_rubric_is_never_the_revision() -> None:
    """Whatever has a fault is rated no lower under the principle of the fault once it is put right from scratch."""
    rng = random.Random(2)
    prompts = world.prompts_of("train")
    checked = 0
    for _ in range(400):
        answer = sample_answer(rng, rng.choice(prompts))
        for dimension in ("harmless", "honest", "polite"):
            if faults_of(answer, [dimension]):
                assert rate(critiques.good_reply(rng, answer.prompt))[dimension] >= rate(answer)[dimension]
                checked += 1
    assert checked > 50


def test_critiques_are_written_in_few_tokens_of_the_fixed_vocabulary() -> None:
    tokenizer = build_tokenizer()
    for sentence in (*SENTENCES.values(), NO_FAULT):
        assert len(tokenizer.encode(sentence, add_special_tokens=False)) <= 10, sentence


def test_every_kind_of_fault_occurs_in_what_the_judge_is_shown() -> None:
    rng = random.Random(3)
    prompts = world.prompts_of("train")
    seen = {fault for _ in range(3000) for fault in faults_of(sample_answer(rng, rng.choice(prompts)))}
    assert seen == set(SENTENCES)


def test_critiques_do_not_know_the_gold_evaluator() -> None:
    tree = ast.parse(Path(critiques.__file__).read_text(encoding="utf-8"))
    imported = {node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert not any("gold" in name for name in imported)


def test_the_same_answer_and_seed_give_the_same_revision() -> None:
    prompt = world.prompts_by_text()[BIKE]
    answer = compose(random.Random(4), prompt, sample_kind(random.Random(4), prompt.category))
    assert revised(random.Random(5), answer, ["harm"]) == revised(random.Random(5), answer, ["harm"])
