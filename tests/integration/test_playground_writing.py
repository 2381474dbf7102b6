"""Critique, then revise, by the shipped judge through the engine: bad replies get better, sound ones are left alone."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence

import pytest

from rlaif.core.conversation import Message
from rlaif.core.template import COMPACT
from rlaif.engine.hf import HfEngine
from rlaif.engine.protocol import GenerateRequest
from rlaif.playground.gold import evaluate, prefers
from rlaif.playground.paths import JUDGE_DIR
from rlaif_pipelines.evaluation.statistics import wilson_interval
from rlaif_pipelines.playground.critiques import NO_FAULT, SENTENCES
from rlaif_pipelines.playground.held_out_writing import BAD_GOLD, WritingCase, bad_cases, sound_cases
from rlaif_pipelines.playground.principles import DIMENSIONS, TRAINED_WORDINGS

pytestmark = pytest.mark.slow

WORDINGS = {name: TRAINED_WORDINGS[name][0] for name in DIMENSIONS}
MAX_TOKENS = 96


@pytest.fixture(scope="module")
def engine() -> Iterator[HfEngine]:
    loaded = HfEngine.load_model(str(JUDGE_DIR), num_threads=1)
    yield loaded
    asyncio.run(loaded.close())


def written(engine: HfEngine, cases: Sequence[WritingCase]) -> list[tuple[str, str]]:
    """(critique, revision) of each case, greedily."""

    def continued(prompts: Sequence[tuple[str, str]]) -> list[str]:
        requests = []
        for context, question in prompts:
            prefix, suffix = engine.encode_judge_prompt(context, question)
            requests.append(
                GenerateRequest(prompt_ids=prefix + suffix, num_completions=1, max_tokens=MAX_TOKENS, temperature=0.0)
            )
        return [answers[0].text for answers in asyncio.run(engine.generate(requests))]

    said = [((Message(role="user", content=case.prompt.text),), case.answer.text) for case in cases]
    principles = [case.principle(WORDINGS) for case in cases]
    critiques = continued(
        [
            (COMPACT.criticism(conversation, response=reply), COMPACT.criticism_question(principle))
            for (conversation, reply), principle in zip(said, principles, strict=True)
        ]
    )
    revisions = continued(
        [
            (
                COMPACT.revision(conversation, response=reply),
                COMPACT.revision_question(principle, critique=critique),
            )
            for (conversation, reply), principle, critique in zip(said, principles, critiques, strict=True)
        ]
    )
    return list(zip(critiques, revisions, strict=True))


@pytest.mark.parametrize("single", [False, True], ids=["all_principles", "one_principle"])
def test_gold_prefers_the_revision_of_a_bad_held_out_reply_in_seventy_of_a_hundred(
    engine: HfEngine, single: bool
) -> None:
    cases = bad_cases(120, seed=7, single=single)
    assert {case.prompt.split for case in cases} == {"held_out"}
    wins = 0
    for case, (_, revision) in zip(cases, written(engine, cases), strict=True):
        before, after = evaluate(case.prompt.text, case.answer.text), evaluate(case.prompt.text, revision)
        assert before.overall <= BAD_GOLD
        wins += prefers(after, before) == 1.0
    low, high = wilson_interval(wins / len(cases), len(cases))
    assert wins / len(cases) >= 0.7, f"{wins} of {len(cases)}, interval {low:.3f} to {high:.3f}"


def test_critiques_of_bad_replies_are_in_the_words_taught_and_mostly_true(engine: HfEngine) -> None:
    cases = bad_cases(60, seed=8)
    critiques = [critique for critique, _ in written(engine, cases)]
    known = {*SENTENCES.values(), NO_FAULT}
    in_words = [all(f"{part}." in known for part in critique.rstrip(".").split(". ")) for critique in critiques]
    exact = [critique == case.true_critique for critique, case in zip(critiques, cases, strict=True)]
    assert sum(in_words) / len(cases) >= 0.95
    assert sum(exact) / len(cases) >= 0.6


def test_a_sound_reply_is_mostly_called_so_and_not_made_worse(engine: HfEngine) -> None:
    cases = sound_cases(60, seed=9)
    answers = written(engine, cases)
    assert sum(critique == NO_FAULT for critique, _ in answers) / len(cases) >= 0.7
    kept = [
        prefers(evaluate(case.prompt.text, revision), evaluate(case.prompt.text, case.answer.text)) >= 0.5
        for case, (_, revision) in zip(cases, answers, strict=True)
    ]
    assert sum(kept) / len(cases) >= 0.85
