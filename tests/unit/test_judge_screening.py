"""What is noticed about responses before they are judged."""

from __future__ import annotations

import pytest

from judge_fakes import CONSTITUTION, QUESTION, MemoryLedger, ScriptedEngine, make_judge
from rlaif.core.conversation import Message
from rlaif.judge.screening import Screen
from rlaif.judge.tasks import Candidate, JudgeFingerprint, JudgingOptions, make_tasks

FINGERPRINT = JudgeFingerprint("d" * 64, "t" * 64)


def screen(screener: Screen, *candidates: Candidate):
    tasks = make_tasks(candidates, constitution=CONSTITUTION, options=JudgingOptions(), fingerprint=FINGERPRINT)
    return screener(tasks)


def asked(number: int, *responses: str) -> Candidate:
    return Candidate((Message("user", f"Question {number}?"),), responses)


def test_one_text_answering_many_conversations_is_flagged_from_the_threshold_on():
    screener = Screen(max_conversations=3)
    constant = "Thank you for your question! It is a great one."
    found = screen(screener, *(asked(i, constant, f"Answer {i}") for i in range(5)))
    assert [each.null_response_suspected for each in found] == [False, False, True, True, True]
    [other] = screen(screener, asked(9, "thank you  for your question -- it is a great ONE", "Answer 9"))
    assert other.null_response_suspected


def test_one_text_answering_one_conversation_many_times_is_not():
    screener = Screen(max_conversations=3)
    found = screen(screener, *(asked(1, "Mix and bake.", f"Answer {i}") for i in range(9)))
    assert not any(each.null_response_suspected for each in found)


def test_what_was_seen_long_ago_is_forgotten():
    screener = Screen(max_conversations=2, max_responses=4)
    screen(screener, asked(0, "same"))
    screen(screener, *(asked(i, f"other {i}") for i in range(1, 5)))
    [found] = screen(screener, asked(9, "same"))
    assert not found.null_response_suspected
    assert len(screener._answered) == 4


@pytest.mark.parametrize("response", ["", "  \n", "...", "\u200b\u200b", "!?", "—"])
def test_a_response_that_says_nothing_is_null(response: str):
    [found] = screen(Screen(), asked(1, response))
    assert found.null_response_suspected


@pytest.mark.parametrize(
    ("first", "second", "identical"),
    [
        ("Mix and bake.", "mix  and bake", True),
        ("Mix and bake.", "Mix and\u200b bake!", True),
        ("Ｍｉｘ and bake.", "Mix and bake.", True),
        ("Mix and bake.", "Mix and bake it.", False),
        ("12", "1.2", True),
    ],
)
def test_responses_that_differ_in_form_alone_are_nearly_identical(first: str, second: str, identical: bool):
    [found] = screen(Screen(), asked(1, first, second))
    assert found.responses_nearly_identical is identical


async def test_flags_reach_the_label_and_change_no_probability():
    judge = make_judge(ScriptedEngine(lambda context, question: (0.6, 0.3)), MemoryLedger())
    options = JudgingOptions()
    [plain] = await judge.decide([Candidate(QUESTION, ("Mix.", "No."))], constitution=CONSTITUTION, options=options)
    [same] = await judge.decide([Candidate(QUESTION, ("Mix.", "mix"))], constitution=CONSTITUTION, options=options)
    [null] = await judge.decide([Candidate(QUESTION, ("Mix.", "..."))], constitution=CONSTITUTION, options=options)
    assert same.verdict.responses_nearly_identical
    assert null.verdict.null_response_suspected
    assert not plain.verdict.responses_nearly_identical
    assert not plain.verdict.null_response_suspected
    assert same.verdict.probability_first == null.verdict.probability_first == plain.verdict.probability_first
