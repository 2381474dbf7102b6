"""Continuous batching: calls join and leave the running batch, and get what they would have got alone."""

from __future__ import annotations

import asyncio
import dataclasses
import random
import re
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from model_fixtures import make_tokenizer
from model_fixtures import model_folder as model_folder
from model_fixtures import other_model_folder as other_model_folder
from rlaif.core.errors import InvalidInputError, UnavailableError
from rlaif.engine.hf import HfEngine
from rlaif.engine.hf.forward import ModelRunner
from rlaif.engine.protocol import ChoiceRequest, Constraint, Engine, GenerateRequest, Generation, ModelIdentity

LONG = GenerateRequest(prompt_ids=(9, 10, 11), num_completions=4, max_tokens=240, temperature=3.0, seed=1)
CHOICES = ChoiceRequest((9, 10, 11), ((12, 13), (14,)), ((20,), (21,)))


@asynccontextmanager
async def opened(folder: Path, **options: Any) -> AsyncIterator[HfEngine]:
    values = {"num_threads": 1, "continuous_batching": True} | options
    engine = HfEngine.load_model(str(folder), **values)
    try:
        yield engine
    finally:
        await engine.close()


async def until(holds: Callable[[], bool]) -> None:
    async with asyncio.timeout(30):
        while not holds():  # noqa: ASYNC110 - what is looked at tells nobody
            await asyncio.sleep(0.001)


def tokens_of(results: list[list[Generation]]) -> list[list[tuple[int, ...]]]:
    return [[generation.token_ids for generation in generations] for generations in results]


def mixed_requests(*, count: int, seed: int) -> list[GenerateRequest]:
    draw = random.Random(seed)
    return [
        GenerateRequest(
            prompt_ids=tuple(draw.randrange(9, 370) for _ in range(draw.choice((1, 2, 7, 30, 70)))),
            num_completions=draw.choice((1, 1, 3)),
            max_tokens=draw.choice((1, 5, 20, 60)),
            temperature=draw.choice((0.0, 0.7, 1.0)),
            top_p=draw.choice((1.0, 0.9)),
            stop_sequences=draw.choice(((), ("e",))),
            seed=draw.randrange(2**63),
            stream=index,
            priority=draw.choice((0, 0, 5)),
        )
        for index in range(count)
    ]


@pytest.mark.parametrize(
    "options",
    [
        {"attention": "eager"},
        {"attention": "sdpa"},
        # Slots are few and reused, prompts come in pieces.
        {"attention": "sdpa", "max_cache_tokens": 500, "max_batch_tokens": 16},
        {"attention": "eager", "max_cache_tokens": 140},
        # One call at a time, whose own rows take the slots of those that finished.
        {"attention": "eager", "max_cache_tokens": 500, "max_batch_tokens": 16, "continuous_batching": False},
    ],
    ids=lambda options: "-".join(map(str, options.values())),
)
async def test_calls_that_share_a_batch_get_what_they_would_have_got_alone(
    options: dict[str, Any], model_folder: Path
) -> None:
    requests = mixed_requests(count=40, seed=3)
    async with opened(model_folder, continuous_batching=False) as alone:
        expected = [(await alone.generate([request]))[0] for request in requests]

    async with opened(model_folder, **options) as engine:

        async def call(index: int) -> list[list[Generation]]:
            # Newcomers arrive while others are in the middle.
            for _ in range(7 * index):
                await asyncio.sleep(0)
            return await engine.generate(requests[4 * index : 4 * index + 4])

        results = [each for result in await asyncio.gather(*map(call, range(10))) for each in result]
        usage = engine.usage
    for generations, before in zip(results, expected, strict=True):
        for generation, alone_generation in zip(generations, before, strict=True):
            assert generation.token_ids == alone_generation.token_ids
            assert generation.text == alone_generation.text
            assert generation.stop_reason == alone_generation.stop_reason
            assert generation.logprobs == pytest.approx(alone_generation.logprobs, abs=1e-4)
    assert (usage.running_completions, usage.waiting_completions, usage.cache_usage) == (0, 0, 0.0)


async def test_a_newcomer_joins_and_leaves_while_others_run(model_folder: Path) -> None:
    async with opened(model_folder) as engine:
        order: list[str] = []

        async def call(name: str, request: GenerateRequest) -> None:
            await engine.generate([request])
            order.append(name)

        long = asyncio.create_task(call("long", LONG))
        await until(lambda: engine.usage.running_completions > 0)
        together = 0

        def look(*_: object) -> None:
            nonlocal together
            together = max(together, engine.usage.running_completions)

        await engine.generate([GenerateRequest((9, 10), 3, 2), GenerateRequest((9,), 1, 3)], on_generation=look)
        order.append("short")
        await long
    assert order == ["short", "long"]
    assert together > 1


async def test_without_continuous_batching_the_same_call_has_the_same_bits_among_others(model_folder: Path) -> None:
    requests = mixed_requests(count=8, seed=5)
    async with opened(model_folder, continuous_batching=False) as engine:
        assert engine.capabilities.repeatable
        alone = await engine.generate(requests)
        long = asyncio.create_task(engine.generate([LONG]))
        again, scored, _ = await asyncio.gather(
            engine.generate(requests), engine.choice_logprobs([CHOICES]), engine.generate(requests[:3])
        )
        await long
        assert again == alone
        assert scored == await engine.choice_logprobs([CHOICES])


async def test_no_more_rows_run_than_the_cache_holds_and_the_others_wait(model_folder: Path) -> None:
    # Rows of at most 3 + 17 tokens: five fit into 100.
    request = GenerateRequest((9, 10, 11), 30, 17, temperature=3.0)
    async with opened(model_folder, max_cache_tokens=100) as engine:
        seen: list[tuple[int, int]] = []

        def look(*_: object) -> None:
            usage = engine.usage
            seen.append((usage.running_completions, usage.waiting_completions))
            assert usage.cache_usage is not None
            assert 0 <= usage.cache_usage <= 1

        call = asyncio.create_task(engine.generate([request], on_generation=look))
        await asyncio.sleep(0)
        assert engine.usage.waiting_completions + engine.usage.running_completions == 30
        await call
    assert max(running for running, _ in seen) <= 5
    assert max(waiting for _, waiting in seen) >= 10


async def test_a_row_larger_than_the_cache_runs_alone(model_folder: Path) -> None:
    async with opened(model_folder, max_cache_tokens=50) as engine:
        results = await engine.generate([LONG])
    async with opened(model_folder, continuous_batching=False) as engine:
        assert tokens_of(results) == tokens_of(await engine.generate([LONG]))


async def test_a_flood_of_long_prompts_does_not_stop_those_who_run(model_folder: Path) -> None:
    # A pass over prompts takes 16 tokens, so each of the 150 prompts needs ten, and 40 tokens come one a pass.
    running = dataclasses.replace(LONG, num_completions=1, max_tokens=40, temperature=10.0)
    async with opened(model_folder, max_batch_tokens=16) as engine:
        first = asyncio.create_task(engine.generate([running]))
        await until(lambda: engine.usage.running_completions > 0)
        flood = [
            asyncio.create_task(engine.generate([GenerateRequest((9, 10, 11 + number) * 53, 1, 1)]))
            for number in range(150)
        ]
        await first
        usage = engine.usage
        assert usage.waiting_completions > 100
        await asyncio.gather(*flood)


async def test_urgent_calls_overtake_those_that_wait(model_folder: Path) -> None:
    for continuous in (True, False):
        async with opened(model_folder, max_cache_tokens=60, continuous_batching=continuous) as engine:
            order: list[int] = []

            async def call(priority: int, engine: Engine = engine, order: list[int] = order) -> None:
                await engine.generate([GenerateRequest((9, 10), 1, 50, temperature=3.0, priority=priority)])
                order.append(priority)

            first = asyncio.create_task(call(0))
            await until(lambda engine=engine: engine.usage.running_completions > 0)  # type: ignore[misc]
            await asyncio.gather(first, *(call(priority) for priority in (3, 2, -1, 1)))
            assert order == [0, -1, 1, 2, 3]


async def test_a_cancelled_call_frees_its_slots_at_once_and_hurts_nobody(model_folder: Path) -> None:
    request = GenerateRequest((9, 10, 12), 2, 40, seed=4)
    async with opened(model_folder) as engine:
        expected = tokens_of(await engine.generate([request]))
        endless = [asyncio.create_task(engine.generate([LONG] * 20)) for _ in range(3)]
        await until(lambda: engine.usage.running_completions == 240)
        beside = asyncio.create_task(engine.generate([request]))
        for call in endless:
            call.cancel()
        done = await asyncio.gather(*endless, return_exceptions=True)
        assert all(isinstance(outcome, asyncio.CancelledError) for outcome in done)
        assert tokens_of(await beside) == expected
        await until(lambda: engine.usage.running_completions == engine.usage.waiting_completions == 0)

        # Those that wait leave as well.
        endless = [asyncio.create_task(engine.generate([LONG] * 200)) for _ in range(2)]
        await until(lambda: engine.usage.waiting_completions > 0)
        endless[1].cancel()
        endless[0].cancel()
        await until(lambda: engine.usage.running_completions == engine.usage.waiting_completions == 0)


@pytest.mark.parametrize("continuous", [True, False])
async def test_scoring_does_not_wait_for_a_long_decode(model_folder: Path, continuous: bool) -> None:
    async with opened(model_folder, continuous_batching=continuous) as engine:
        expected = await engine.choice_logprobs([CHOICES])
        long = asyncio.create_task(engine.generate([LONG]))
        await until(lambda: engine.usage.running_completions > 0)
        for _ in range(3):
            assert await engine.choice_logprobs([CHOICES]) == expected
        assert not long.done()
        await long


@pytest.mark.parametrize("continuous", [True, False])
async def test_rows_in_flight_finish_on_the_old_weights_and_later_calls_get_the_new(
    model_folder: Path, other_model_folder: Path, continuous: bool
) -> None:
    short = GenerateRequest((9, 10), 2, 10, seed=2)
    async with opened(model_folder, continuous_batching=continuous) as engine:
        old = [tokens_of(await engine.generate([request])) for request in (LONG, short)]
        scored = await engine.choice_logprobs([CHOICES])
        calls = [asyncio.create_task(engine.generate([request])) for request in (LONG, short)]
        await until(lambda: engine.usage.running_completions > 0)
        loading = asyncio.create_task(engine.load(ModelIdentity(str(other_model_folder), "", 1)))
        await asyncio.sleep(0)
        later = asyncio.create_task(engine.generate([short]))
        later_scored = asyncio.create_task(engine.choice_logprobs([CHOICES]))
        assert [tokens_of(await call) for call in calls] == old
        await loading
        assert tokens_of(await later) != old[1]
        assert await later_scored != scored
        async with opened(other_model_folder, continuous_batching=continuous) as other:
            assert tokens_of(await later) == tokens_of(await other.generate([short]))


async def test_a_cancelled_load_lets_the_calls_after_it_go_on_with_the_old_weights(
    model_folder: Path, other_model_folder: Path
) -> None:
    short = GenerateRequest((9, 10), 2, 10, seed=2)
    async with opened(model_folder) as engine:
        before = tokens_of(await engine.generate([short]))
        long = asyncio.create_task(engine.generate([LONG]))
        await until(lambda: engine.usage.running_completions > 0)
        loading = asyncio.create_task(engine.load(ModelIdentity(str(other_model_folder), "", 1)))
        await asyncio.sleep(0)
        later = asyncio.create_task(engine.generate([short]))
        loading.cancel()
        await asyncio.gather(loading, return_exceptions=True)
        assert tokens_of(await later) == before
        assert engine.identity.version == 0
        await long


async def test_what_is_no_token_is_refused_and_hurts_nobody(model_folder: Path) -> None:
    good = GenerateRequest((9, 10), 2, 10, seed=2)
    async with opened(model_folder) as engine:
        before = tokens_of(await engine.generate([good]))
        for token in (-1, 100_000):
            with pytest.raises(InvalidInputError, match=str(token)) as caught:
                await engine.generate([good, GenerateRequest((9, token), 1, 4)])
            assert (caught.value.reason, caught.value.field) == ("TOKEN_OUT_OF_VOCABULARY", "prompts[1]")
        assert tokens_of(await engine.generate([good])) == before
        assert await engine.generate([]) == []


@contextmanager
def failing_forward(monkeypatch: pytest.MonkeyPatch, fails: Callable[[torch.Tensor], bool]) -> Iterator[None]:
    whole = ModelRunner.forward

    def forward(self: ModelRunner, ids: torch.Tensor, *arguments: Any, **options: Any) -> Any:
        if fails(ids):
            raise RuntimeError("the device is out of memory")
        return whole(self, ids, *arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr(ModelRunner, "forward", forward)
        yield


async def test_a_prompt_that_the_model_cannot_take_fails_its_own_call_only(
    model_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    good, bad = GenerateRequest((9, 10), 2, 20, seed=2), GenerateRequest((9, 333), 1, 4)
    async with opened(model_folder) as engine:
        before = tokens_of(await engine.generate([good]))
        with failing_forward(monkeypatch, lambda ids: bool((ids == 333).any()) and ids.shape[1] > 1):
            outcomes = await asyncio.gather(
                *(engine.generate([request]) for request in (good, bad, good, bad)), return_exceptions=True
            )
        for outcome, request in zip(outcomes, (good, bad, good, bad), strict=True):
            if request is good:
                assert tokens_of(outcome) == before  # type: ignore[arg-type]
            else:
                assert isinstance(outcome, RuntimeError)
        assert engine.usage.running_completions == engine.usage.waiting_completions == 0


async def test_a_step_that_fails_fails_those_who_run_and_the_engine_goes_on(
    model_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    good = GenerateRequest((9, 10), 2, 20, seed=2)
    async with opened(model_folder) as engine:
        before = tokens_of(await engine.generate([good]))
        with failing_forward(monkeypatch, lambda ids: ids.shape[1] == 1):
            outcomes = await asyncio.gather(*(engine.generate([good]) for _ in range(3)), return_exceptions=True)
        assert all(isinstance(outcome, RuntimeError) for outcome in outcomes)
        assert tokens_of(await engine.generate([good])) == before
        assert engine.usage.running_completions == 0


async def test_closing_finishes_what_runs_and_refuses_what_waits(model_folder: Path) -> None:
    async with opened(model_folder, max_cache_tokens=500) as engine:
        expected = tokens_of(await engine.generate([LONG]))
        running = asyncio.create_task(engine.generate([LONG]))
        await until(lambda: engine.usage.running_completions > 0)
        waiting = asyncio.create_task(engine.generate([LONG]))
        await asyncio.sleep(0)
        await engine.close()
        assert tokens_of(await running) == expected
        with pytest.raises(UnavailableError):
            await waiting
        with pytest.raises(UnavailableError):
            await engine.generate([LONG])


async def test_a_sliding_window_model_decodes_in_waves(tmp_path: Path) -> None:
    from transformers import MistralConfig, MistralForCausalLM

    tokenizer = make_tokenizer()
    torch.manual_seed(0)
    config = MistralConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=128,
        sliding_window=8,
        initializer_range=0.2,
        eos_token_id=3,
        pad_token_id=0,
    )
    MistralForCausalLM(config).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    requests = mixed_requests(count=12, seed=8)
    requests = [request for request in requests if len(request.prompt_ids) < 60]
    async with opened(tmp_path, continuous_batching=False) as engine:
        alone = [tokens_of(await engine.generate([request])) for request in requests]
    async with opened(tmp_path) as engine:
        together = await asyncio.gather(*(engine.generate([request]) for request in requests))
    assert [tokens_of(result) for result in together] == alone


async def test_a_narrower_prompt_and_learnt_positions_are_no_trouble(tmp_path: Path) -> None:
    # Learnt positions end with the context: what an empty slot is counted on to must not go past it.
    from transformers import GPT2Config, GPT2LMHeadModel

    tokenizer = make_tokenizer()
    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=len(tokenizer), n_embd=32, n_layer=2, n_head=2, n_positions=48, initializer_range=0.2, eos_token_id=3
    )
    GPT2LMHeadModel(config).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    requests = [
        GenerateRequest(tuple(range(9, 9 + length)), 3, 48, temperature=2.0, seed=length, stop_sequences=("q",))
        for length in (1, 46, 3, 40, 20, 47)
    ]
    async with opened(tmp_path, continuous_batching=False) as engine:
        alone = [tokens_of(await engine.generate([request])) for request in requests]
    async with opened(tmp_path, max_cache_tokens=300) as engine:
        together = await asyncio.gather(*(engine.generate([request]) for request in requests))
    assert [tokens_of(result) for result in together] == alone


async def test_constrained_and_free_rows_share_a_batch(model_folder: Path) -> None:
    free = GenerateRequest((9, 10, 11), 3, 20, seed=1)
    yes = dataclasses.replace(free, constraint=Constraint(choices=("yes", "no", 'a "b" \\ c')), max_tokens=30)
    digits = dataclasses.replace(free, constraint=Constraint(regex="[0-9]{4}"), max_tokens=30)
    async with opened(model_folder) as engine:
        alone = tokens_of(await engine.generate([free]))
        one, two, three = await asyncio.gather(*(engine.generate([request]) for request in (free, yes, digits)))
        assert tokens_of(one) == alone
        assert {generation.text for generation in two[0]} <= {"yes", "no", 'a "b" \\ c'}
        assert all(re.fullmatch("[0-9]{4}", generation.text) for generation in three[0])
        for generation in (*two[0], *three[0]):
            assert generation.stop_reason == "end_of_turn"
            # Log-probabilities are over what is allowed.
            assert all(-30 < logprob <= 0 for logprob in generation.logprobs)
        with pytest.raises(InvalidInputError, match="cannot be") as caught:
            await engine.generate([dataclasses.replace(free, constraint=Constraint(regex="(("))])
        assert caught.value.field == "constraint.regex"
        with pytest.raises(InvalidInputError) as caught:
            await engine.generate([dataclasses.replace(free, constraint=Constraint(json_schema='{"type": 7}'))])
        assert caught.value.field == "constraint.json_schema"


async def test_a_forced_token_has_the_log_probability_zero(model_folder: Path) -> None:
    request = GenerateRequest((9, 10, 11), 1, 20, constraint=Constraint(regex="7"))
    async with opened(model_folder) as engine:
        [[generation]] = await engine.generate([request])
    assert generation.text == "7"
    assert generation.logprobs == pytest.approx([0.0, 0.0], abs=1e-6)
