"""Critiques, revisions and rationales, with an engine that writes from a script."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest

from judge_fakes import CONSTITUTION, DECODING, LIMITS, QUESTION, MemoryLedger, ScriptedEngine, make_judge, make_writer
from rlaif.core.constitution import Constitution, Exemplar, Principle
from rlaif.core.errors import InvalidInputError, UnsupportedError
from rlaif.core.preference import AbstentionReason
from rlaif.core.template import COMPACT
from rlaif.engine.protocol import ChoiceLogprobs, ChoiceRequest, TokenIds
from rlaif.judge.generation import text_request
from rlaif.judge.requests import OptionDefaults, RequestReader
from rlaif.judge.tasks import Candidate, JudgingOptions, Reasoning
from rlaif.v1 import judge_service_pb2

RESPONSE = Candidate(QUESTION, ("No idea.",))
PAIR = Candidate(QUESTION, ("Mix and bake.", "No idea."))
ASKED = JudgingOptions(reasoning=Reasoning(1, DECODING), seed=3)


def undecided(context: str, question: str) -> Sequence[float]:
    return (0.4, 0.4)


async def test_a_critique_is_asked_in_the_words_small_judges_learn():
    engine = ScriptedEngine(undecided, write=lambda prompt, index: " It says nothing. ")
    text = await make_writer(engine).critique(
        RESPONSE, constitution=CONSTITUTION, principles=CONSTITUTION.principles, seed=5
    )
    assert text.content == "It says nothing."
    [request] = engine.written
    assert "".join(map(chr, request.prompt_ids)) == (
        "Find the fault of one reply to a user.\nUser: How do I bake bread?\nReply: No idea.\n"
        "Principle: Prefer the helpful reply. Prefer the harmless reply.\nCritique:"
    )
    assert (request.seed, request.max_tokens, request.num_completions) == (5, 200, 1)


async def test_instructions_follow_the_principle_and_exemplars_come_first():
    exemplars = tuple(Exemplar(f"Q{i}", f"A{i}", f"C{i}", f"R{i}") for i in range(3))
    kind = Principle("kind", "Be kind.", exemplars=exemplars, revision="Mend it.")
    constitution = Constitution("c", 1, "", (kind,), critique="Find what is unkind.")
    engine = ScriptedEngine(undecided, write=lambda prompt, index: "Hello!")
    writer = make_writer(engine)
    await writer.critique(RESPONSE, constitution=constitution, principles=(kind,), seed=0)
    await writer.revise(RESPONSE, critique="Rude.", constitution=constitution, principles=(kind,), seed=0)
    critique, revision = ("".join(map(chr, request.prompt_ids)) for request in engine.written)
    rule = "Principle: Be kind. Find what is unkind.\nCritique:"
    assert critique.startswith(
        f"Find the fault of one reply to a user.\nUser: Q0\nReply: A0\n{rule} C0\n\n"
        f"Find the fault of one reply to a user.\nUser: Q1\nReply: A1\n{rule} C1\n\n"
    )
    assert critique.endswith(f"Reply: No idea.\n{rule}")
    assert "Q2" not in critique
    assert revision.endswith("Reply: No idea.\nPrinciple: Be kind. Mend it.\nCritique: Rude.\nBetter reply:")


@pytest.mark.parametrize(("written", "unchanged"), [(" No idea.\n", True), ("Mix.", False)])
async def test_a_revision_that_changes_nothing_is_said_to_be_so(written: str, unchanged: bool):
    writer = make_writer(ScriptedEngine(undecided, write=lambda prompt, index: written))
    revision = await writer.revise(
        RESPONSE, critique="Empty.", constitution=CONSTITUTION, principles=CONSTITUTION.principles, seed=0
    )
    assert (revision.text, revision.unchanged, revision.abstention_reason) == (written.strip(), unchanged, None)


@pytest.mark.parametrize(
    ("written", "reason"), [(" \n", AbstentionReason.EMPTY), ("x" * 500, AbstentionReason.TRUNCATED)]
)
async def test_half_a_text_and_no_text_are_abstentions(written: str, reason: AbstentionReason):
    writer = make_writer(ScriptedEngine(undecided, write=lambda prompt, index: written))
    principles = CONSTITUTION.principles
    text = await writer.critique(RESPONSE, constitution=CONSTITUTION, principles=principles, seed=0)
    assert (text.content, text.abstention_reason) == ("", reason)
    revision = await writer.revise(
        RESPONSE, critique="Empty.", constitution=CONSTITUTION, principles=principles, seed=0
    )
    assert (revision.text, revision.unchanged, revision.abstention_reason) == ("", False, reason)


async def test_a_prompt_without_room_for_an_answer_is_refused():
    writer = make_writer(ScriptedEngine(undecided, write=lambda prompt, index: "x", context_length=100))
    with pytest.raises(InvalidInputError, match="context of 100") as caught:
        await writer.critique(RESPONSE, constitution=CONSTITUTION, principles=CONSTITUTION.principles, seed=0)
    assert caught.value.reason == "PROMPT_TOO_LONG"


def test_draws_depend_on_prompt_and_seed_alone():
    one, other = (text_request(prompt, decoding=DECODING, seed=7) for prompt in ((1, 2), (1, 3)))
    assert one == text_request((1, 2), decoding=DECODING, seed=7)
    assert one.stream != other.stream
    assert 0 <= one.stream < 2**64


def after_rationale(context: str, question: str) -> Sequence[float]:
    """Sure of the reply that a rationale calls good, but for the harmless principle, which is less so."""
    shown_first = "Reply 1: Mix" in context
    sure = 0.55 if "harmless" in question else 0.95
    assert "Reasons: Mixing is good" in question
    return (sure, 1 - sure) if shown_first else (1 - sure, sure)


async def reasoned(engine: ScriptedEngine, ledger: MemoryLedger | None = None, **changes: object):
    options = replace(ASKED, **changes)  # type: ignore[arg-type]
    judge = make_judge(engine, ledger)
    return (await judge.decide([PAIR], constitution=CONSTITUTION, options=options))[0]


async def test_a_verdict_is_read_after_a_rationale_and_clamped():
    engine = ScriptedEngine(after_rationale, write=lambda prompt, index: f"Mixing is good, {len(prompt)}.")
    decision = await reasoned(engine)
    verdict = decision.verdict
    # (1 * 0.95 + 3 * 0.55) / 4 = 0.65, clamped to 0.6.
    assert verdict.raw_probability_first == pytest.approx(0.65)
    assert verdict.probability_first == 0.6
    assert [vote.probability_first for vote in verdict.principle_votes] == pytest.approx([0.95, 0.55])
    assert verdict.rationale.startswith("[helpful, first response shown first] Mixing is good")
    assert verdict.rationale.count("Mixing is good") == 4
    assert verdict.provenance.seed == 3
    assert verdict.provenance.template_sha256 == COMPACT.reasoning_sha256


async def test_rationales_and_verdicts_continue_one_prefix_a_presentation():
    engine = ScriptedEngine(after_rationale, write=lambda prompt, index: "Mixing is good.")
    await reasoned(engine)
    [verdicts] = engine.batches
    assert [len(request.suffixes) for request in verdicts] == [2, 2]
    prefixes = {request.prefix_ids for request in verdicts}
    assert len(engine.written) == 4
    assert all(any(request.prompt_ids[: len(p)] == p for p in prefixes) for request in engine.written)


async def test_samples_are_averaged():
    def by_sample(context: str, question: str) -> Sequence[float]:
        sure = {"0": 0.9, "1": 0.5, "2": 0.4}[question.split("Sample ")[1][0]]
        return (sure, 1 - sure) if "Reply 1: Mix" in context else (1 - sure, sure)

    engine = ScriptedEngine(by_sample, write=lambda prompt, index: f"Sample {index}")
    verdict = (await reasoned(engine, reasoning=Reasoning(3, DECODING))).verdict
    assert verdict.raw_probability_first == pytest.approx((0.9 + 0.5 + 0.4) / 3)
    assert "Sample 0" in verdict.rationale
    assert "Sample 1" not in verdict.rationale


async def test_a_rationale_that_does_not_end_is_not_used():
    engine = ScriptedEngine(
        after_rationale, write=lambda prompt, index: "Mixing is good." if index == 1 else "and so on " * 99
    )
    verdict = (await reasoned(engine, reasoning=Reasoning(2, DECODING))).verdict
    assert verdict.raw_probability_first == pytest.approx(0.65)
    none = (await reasoned(engine)).verdict
    assert none.preference == judge_service_pb2.PREFERENCE_ABSTAIN
    assert none.abstention_reason == judge_service_pb2.ABSTENTION_REASON_UNPARSEABLE


class SwellingEngine(ScriptedEngine):
    """Reads "~" back as many tokens, and refuses what its context does not hold, as engines do."""

    def encode_judge_prompt(self, context: str, question: str) -> tuple[TokenIds, TokenIds]:
        return super().encode_judge_prompt(context, question.replace("~", "~" * 100))

    async def choice_logprobs(self, requests: Sequence[ChoiceRequest]) -> list[ChoiceLogprobs]:
        for request in requests:
            longest = len(request.prefix_ids) + max(map(len, request.suffixes))
            assert longest + 1 <= self.context_length, "refused"
        return await super().choice_logprobs(requests)


async def test_a_rationale_that_outgrows_the_context_when_read_back_is_not_used():
    engine = SwellingEngine(
        after_rationale,
        write=lambda prompt, index: "Mixing is good." if index == 1 else "Mixing is good~~~~~~~~~~",
        context_length=600,
    )
    verdict = (await reasoned(engine, reasoning=Reasoning(2, DECODING))).verdict
    assert verdict.raw_probability_first == pytest.approx(0.65)
    assert "~" not in verdict.rationale
    none = (await reasoned(engine)).verdict
    assert none.abstention_reason == judge_service_pb2.ABSTENTION_REASON_UNPARSEABLE


async def test_a_rationale_that_states_a_verdict_decides_nothing():
    engine = ScriptedEngine(undecided, write=lambda prompt, index: "Better reply: 1. 1 1 1")
    verdict = (await reasoned(engine)).verdict
    assert verdict.preference == judge_service_pb2.PREFERENCE_TIE


async def test_labels_with_and_without_a_rationale_and_of_other_seeds_are_not_the_same():
    ledger = MemoryLedger()
    engine = ScriptedEngine(lambda context, question: (0.6, 0.3), write=lambda prompt, index: "Mixing is good.")
    labels = [
        (await reasoned(engine, ledger, **changes)).label.name
        for changes in ({}, {"reasoning": None}, {"seed": 4}, {"reasoning": Reasoning(2, DECODING)}, {})
    ]
    assert len(set(labels)) == 4
    assert labels[0] == labels[-1]


async def test_a_rationale_is_kept_only_where_texts_are():
    engine = ScriptedEngine(after_rationale, write=lambda prompt, index: "Mixing is good.")
    ledger = MemoryLedger()
    assert (await reasoned(engine, ledger)).verdict.rationale
    again = await reasoned(engine, ledger)
    assert again.recorded_before
    assert again.verdict.rationale == ""
    kept = MemoryLedger()
    await reasoned(engine, kept, keep_texts=True)
    assert (await reasoned(engine, kept, keep_texts=True)).verdict.rationale


def test_a_model_that_writes_no_rationales_is_asked_for_none():
    defaults = OptionDefaults(min_verdict_mass=0.1, abstain_on_injection=False, keep_texts=False, reasoning=None)
    reader = RequestReader(LIMITS, defaults=defaults)
    assert reader.options(judge_service_pb2.JudgeOptions()).reasoning is None
    with pytest.raises(UnsupportedError, match="writes no rationales"):
        reader.options(judge_service_pb2.JudgeOptions(reasoning=True))


async def test_no_room_for_a_rationale_is_too_long():
    engine = ScriptedEngine(after_rationale, write=lambda prompt, index: "Mixing is good.", context_length=340)
    assert (await reasoned(engine)).verdict.abstention_reason == judge_service_pb2.ABSTENTION_REASON_TOO_LONG
    with pytest.raises(InvalidInputError, match="rationale of 200 tokens"):
        await make_judge(engine).decide([PAIR], constitution=CONSTITUTION, options=ASKED, refuse_too_long=True)
