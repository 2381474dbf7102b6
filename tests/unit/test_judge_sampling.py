"""Verdicts estimated from draws: counted by hand, marked as estimates, and never more than the draws say."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import pytest

from judge_fakes import CONSTITUTION, QUESTION, MemoryLedger, ScriptedEngine
from rlaif.core.errors import InvalidInputError
from rlaif.core.preference import AbstentionReason, combine_orders, order_vote
from rlaif.core.reward import principle_score
from rlaif.core.template import COMPACT
from rlaif.engine.protocol import Capabilities, ChoiceRequest, GenerateRequest, Generation
from rlaif.judge.judging import Judge
from rlaif.judge.labelling import LabellingCore
from rlaif.judge.metrics import judge_metrics
from rlaif.judge.recording import Recorder
from rlaif.judge.sampling import VerdictSampler
from rlaif.judge.tasks import Candidate, JudgingOptions
from rlaif.judge.wire import ProvenanceMaker, abstention_code

NUM_DRAWS = 8
PAIR = Candidate(QUESTION, ("Knead it and bake it.", "I will not say."))


class DrawingEngine(ScriptedEngine):
    """Says what `write` says, and gives no log-probabilities."""

    def __init__(self, write: Any, *, constraints: bool = False, digest: str = "") -> None:
        super().__init__(lambda context, question: (), write=write, digest=digest)
        self.capabilities = Capabilities(
            choice_logprobs=False,
            constraints=constraints,
            loads_weights=False,
            loads_adapters=False,
            repeatable=False,
            token_ids=False,
        )


def sampler_of(engine: DrawingEngine, num_samples: int = NUM_DRAWS) -> VerdictSampler:
    return VerdictSampler(engine, run_generate=engine.generate, num_samples=num_samples)


def judge_of(engine: DrawingEngine, ledger: MemoryLedger | None = None) -> Judge:
    return Judge(
        engine,
        core=LabellingCore(engine, template=COMPACT, run_choices=sampler_of(engine)),
        template=COMPACT,
        recorder=Recorder(ledger, max_delay_seconds=0.001) if ledger else None,
        make_provenance=ProvenanceMaker(engine, template=COMPACT, num_verdict_samples=NUM_DRAWS),
        metrics=judge_metrics(),
        num_verdict_samples=NUM_DRAWS,
    )


def answering(*answers: str) -> Any:
    return lambda prompt, index: answers[index % len(answers)]


def request_of(engine: DrawingEngine, *questions: str, labels: Sequence[str] = ("1", "2")) -> ChoiceRequest:
    [prefix, _] = engine.encode_judge_prompt("Compare.", "")
    suffixes = tuple(engine.encode_judge_prompt("", question)[1] for question in questions)
    return ChoiceRequest(prefix, suffixes, engine.encode_choices(labels), seed=5)


async def test_a_label_has_the_share_of_the_draws_that_are_it_and_nothing_else() -> None:
    engine = DrawingEngine(answering("1", " 1\n", "2", "1.", "Reply 1", "", "1 2", "one"))
    [result] = await sampler_of(engine)([request_of(engine, "Better?", "Shorter?")])
    assert result.logprobs == ((math.log(2 / 8), math.log(1 / 8)),) * 2
    assert result.unlisted == (0.0, 0.0)
    assert not result.too_long


async def test_a_label_that_no_draw_gave_counts_as_0_and_draws_without_labels_abstain() -> None:
    engine = DrawingEngine(answering("1"))
    [decision] = await judge_of(engine).decide([PAIR], constitution=CONSTITUTION, options=JudgingOptions())
    [vote, _] = decision.verdict.principle_votes
    # "1" in both orders: the judge follows the position, and the orders average to one half.
    assert (vote.probability_shown_first, vote.probability_shown_second, vote.verdict_mass) == (1.0, 0.0, 1.0)
    assert decision.verdict.probability_first == 0.5
    silent = DrawingEngine(answering("I would rather not compare."))
    [decision] = await judge_of(silent).decide([PAIR], constitution=CONSTITUTION, options=JudgingOptions())
    assert not decision.verdict.HasField("probability_first")
    assert decision.verdict.abstention_reason == abstention_code(AbstentionReason.LOW_VERDICT_MASS)


async def test_the_mass_is_the_share_of_draws_that_gave_a_label_and_can_be_too_small() -> None:
    engine = DrawingEngine(answering("2", "no", "no", "no"))
    options = JudgingOptions(min_verdict_mass=0.25)
    [decision] = await judge_of(engine).decide([PAIR], constitution=CONSTITUTION, options=options)
    assert decision.verdict.principle_votes[0].verdict_mass == pytest.approx(0.25)
    assert decision.verdict.HasField("probability_first")
    options = JudgingOptions(min_verdict_mass=0.26)
    [decision] = await judge_of(engine).decide([PAIR], constitution=CONSTITUTION, options=options)
    assert decision.verdict.abstention_reason == abstention_code(AbstentionReason.LOW_VERDICT_MASS)


async def test_scores_are_estimated_likewise() -> None:
    engine = DrawingEngine(answering("10", "8", "7", "many"))
    single = Candidate(QUESTION, ("Knead it and bake it.",))
    [decision] = await judge_of(engine).decide([single], constitution=CONSTITUTION, options=JudgingOptions())
    assert decision.score.expected == pytest.approx((10 + 8 + 7) / 3)
    assert decision.score.principle_scores[0].verdict_mass == pytest.approx(6 / 8)
    assert decision.score.provenance.num_verdict_samples == NUM_DRAWS


async def test_an_estimate_says_so_and_names_the_seed_of_its_draws() -> None:
    engine = DrawingEngine(answering("1", "2"))
    options = JudgingOptions(seed=11)
    [decision] = await judge_of(engine).decide([PAIR], constitution=CONSTITUTION, options=options)
    provenance = decision.verdict.provenance
    assert (provenance.num_verdict_samples, provenance.seed) == (NUM_DRAWS, 11)
    assert {(draws.seed, draws.num_completions, draws.temperature) for draws in engine.written} == {(11, NUM_DRAWS, 1)}
    # One stream a prompt, both orders and principles.
    assert len({draws.stream for draws in engine.written}) == len(engine.written) == 4


@pytest.mark.parametrize("constraints", [True, False])
async def test_draws_are_held_to_the_labels_where_the_engine_can(constraints: bool) -> None:
    engine = DrawingEngine(answering("1"), constraints=constraints)
    await sampler_of(engine)([request_of(engine, "Better?")])
    [draws] = engine.written
    assert (draws.constraint is not None) == constraints
    assert draws.constraint is None or draws.constraint.choices == ("1", "2")


async def test_labels_of_unknown_weights_never_answer_and_those_vouched_for_answer_their_own_kind_only() -> None:
    for digest, again in (("", False), ("d" * 64, True)):
        engine, ledger = DrawingEngine(answering("1", "2"), digest=digest), MemoryLedger()
        recorded = []
        for seed in (1, 1, 2):
            options = JudgingOptions(seed=seed)
            [decision] = await judge_of(engine, ledger).decide([PAIR], constitution=CONSTITUTION, options=options)
            recorded.append(decision.recorded_before)
        assert recorded == [False, again, False]
        assert ledger.num_lookups == (3 if again else 0)


async def test_one_prompt_that_a_server_finds_too_long_does_not_cost_the_others_their_answers() -> None:
    engine = DrawingEngine(answering("2"))

    async def generate(requests: Sequence[GenerateRequest]) -> list[list[Generation]]:
        if any(len(request.prompt_ids) > 40 for request in requests):
            raise InvalidInputError("longer than the context", reason="PROMPT_TOO_LONG", field="messages")
        return await engine.generate(requests)

    sampler = VerdictSampler(engine, run_generate=generate, num_samples=2)
    results = await sampler([request_of(engine, "Better?"), request_of(engine, "Better? " * 9)])
    assert [result.too_long for result in results] == [False, True]
    assert results[0].logprobs == ((-math.inf, 0.0),)


@pytest.mark.parametrize(
    ("one", "two", "unlisted", "expected"),
    [
        # .8 known, .004 may be missing: half a hundredth of the mass.
        (math.log(0.8), -math.inf, 0.004, (1.0, 0.8)),
        (-math.inf, math.log(0.8), 0.004, (0.0, 0.8)),
        # More than a hundredth of what is known: it might decide.
        (math.log(0.8), -math.inf, 0.0081, None),
        (-math.inf, -math.inf, 1e-6, None),
        (math.nan, math.log(0.8), 0.0, None),
        (math.log(0.6), math.log(0.2), 0.2, (0.75, 0.8)),
        (math.log(0.8), -math.inf, None, None),
    ],
)
def test_a_label_that_was_not_listed_is_0_only_where_it_cannot_matter(
    one: float, two: float, unlisted: float | None, expected: tuple[float, float] | None
) -> None:
    vote = order_vote(one, two, unlisted=unlisted)
    if expected is None:
        assert vote is None
    else:
        assert vote is not None
        assert (vote.probability_shown_first, vote.verdict_mass) == pytest.approx(expected)


def test_no_mass_is_no_vote_even_where_none_is_asked_for() -> None:
    nothing = order_vote(-math.inf, -math.inf, unlisted=0.0)
    vote = combine_orders("p", weight=1.0, first_shown_first=nothing, second_shown_first=nothing, min_verdict_mass=0.0)
    assert vote.abstention_reason is AbstentionReason.LOW_VERDICT_MASS


def test_a_score_whose_labels_were_not_all_listed_follows_the_same_rule() -> None:
    logprobs = [-math.inf] * 8 + [math.log(0.3), math.log(0.6)]
    sure = principle_score("p", weight=1.0, logprobs=logprobs, min_verdict_mass=0.5, unlisted=0.0089)
    assert sure.expected == pytest.approx((9 * 0.3 + 10 * 0.6) / 0.9)
    assert sure.verdict_mass == pytest.approx(0.9)
    unsure = principle_score("p", weight=1.0, logprobs=logprobs, min_verdict_mass=0.5, unlisted=0.0091)
    assert unsure.abstention_reason is AbstentionReason.NOT_FINITE
