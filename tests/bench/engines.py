"""Engines, sampler and reward service against their raw limits, on random-weight models of 50 M parameters on a CPU.

Prompts and replies have the lengths of HH-RLHF's harmless dialogues. Every repetition runs all contenders in turn and
the ratios are medians over the repetitions; a ratio without a goal is what the machine allows at most. Prints a table,
then `ratio <name> <value> goal <goal>` and `figure <name> <value> <unit>` lines; the same goes to
build/bench/engines.json. `--engine vllm` needs vLLM installed.
"""

from __future__ import annotations

import argparse
import asyncio
import shutil
import sys
import time
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
from harness import Figures, Texts, make_model, merge_json, percentile, service_process

from rlaif.core.conversation import Message
from rlaif.engine.factory import open_engine
from rlaif.engine.protocol import Engine, GenerateRequest
from rlaif.engine.settings import EngineSettings
from rlaif.v1 import (
    conversation_pb2,
    reward_service_pb2,
    reward_service_pb2_grpc,
    sampler_service_pb2,
    sampler_service_pb2_grpc,
)

SAMPLER_CALLERS, REWARD_CALLERS = 32, 64
LOADS = (1, 8, 64)
"""Callers at which latencies are taken."""
LONGEST_COMPLETION = 96
STATIC_BATCHES = (8, 32)
STATIC_SHARE = 2
"""Plain batches get every second completion of a repetition: a rate needs no more, and they take most of the time."""
BATCH_TOKENS = 4096
POLICY = "policies/bench"
REWARD_MODEL = "rewardModels/bench"
GOALS = {
    "sampler_grpc_vs_engine_hf": 0.95,
    "sampler_grpc_vs_engine_vllm": 0.95,
    "hf_engine_vs_static_generate": 1.5,
    "reward_grpc_vs_raw": 0.90,
    "reward_grpc_vs_one_by_one": 4.0,
}


@dataclass(frozen=True)
class Ask:
    """A prompt and how many tokens its completion may have."""

    prompt: str
    max_tokens: int


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--engine", choices=["hf", "vllm"], default="hf")
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--completions", type=int, default=64, help="completions a repetition, from 32 callers")
    parser.add_argument("--scores", type=int, default=128, help="scores a repetition, from 64 callers")
    parser.add_argument("--only", choices=["sampler", "reward"], help="one service alone")
    parser.add_argument("--out", type=Path, default=Path("build/bench"))
    options = parser.parse_args()
    folder = (options.out / f"engines-{options.engine}").absolute()
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    parts: dict[str, Callable[[], Coroutine[Any, Any, Figures]]] = {}
    if options.only != "reward":
        make_model(folder / "policy")
        parts[f"sampler_{options.engine}"] = lambda: bench_sampler(folder, options)
    if options.only != "sampler" and options.engine == "hf":
        make_model(folder / "reward_model", reward_model=True)
        parts["reward"] = lambda: bench_reward(folder, options)
    for name, part in parts.items():
        figures = asyncio.run(part())
        print("\n".join(figures.lines()), flush=True)
        merge_json(options.out / "engines.json", {name: figures.as_json()})
    return 0


async def bench_sampler(folder: Path, options: argparse.Namespace) -> Figures:
    """Tokens a second of the sampler, of its engine alone and, for hf, of plain static batches."""
    kind, figures = options.engine, Figures("tokens/s", GOALS)
    settings = engine_values(kind)
    texts = Texts(seed=1)

    def asks(count: int) -> list[Ask]:
        return [Ask(texts.prompt(), texts.num_tokens(limit=LONGEST_COMPLETION)) for _ in range(count)]

    config = {"model": str(folder / "policy"), "policy": POLICY, "engine": settings}
    engine = await open_engine(EngineSettings.model_validate(settings), model=str(folder / "policy"))
    model = load_plain(folder / "policy") if kind == "hf" else None
    with service_process(folder, "sampler", config) as sampler:
        warm = asks(8)
        await sample_over_grpc(sampler.target, warm, SAMPLER_CALLERS)
        await sample_with_engine(engine, warm)
        for _ in range(options.repetitions):
            batch = asks(options.completions)
            figures.add("grpc", await tokens_per_second(sample_over_grpc(sampler.target, batch, SAMPLER_CALLERS)))
            figures.add("engine", await tokens_per_second(sample_with_engine(engine, batch)))
            part = batch[::STATIC_SHARE]
            for rows in STATIC_BATCHES if model is not None else ():
                prompts = [list(engine.encode_chat([Message("user", ask.prompt)])) for ask in part]
                figures.add(f"static_generate_{rows}", static_generate(model, prompts, part, rows=rows))
            figures.tell(options.repetitions)
        figures.compare(f"sampler_grpc_vs_engine_{kind}", "grpc", "engine")
        if model is not None:
            columns = zip(*(figures.rates[f"static_generate_{rows}"] for rows in STATIC_BATCHES), strict=True)
            figures.rates["static_generate"] = [max(column) for column in columns]
            figures.compare("hf_engine_vs_static_generate", "engine", "static_generate")
        for callers in LOADS:
            _, seconds = await sample_over_grpc(sampler.target, asks(max(16, 2 * callers)), callers)
            add_latencies(figures, f"sampler_{kind}", callers, seconds)
        figures.figures[f"sampler_{kind}_peak_rss"] = (sampler.peak_rss_gb(), "GB")
    await engine.close()
    return figures


def engine_values(kind: str) -> dict[str, Any]:
    """Settings of the engine, the same for the service and for the engine alone."""
    return {"kind": kind, "continuous_batching": True} if kind == "hf" else {"kind": kind}


def load_plain(folder: Path) -> Any:
    """The model as transformers loads it."""
    import torch
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


Sampled = tuple[int, list[float]]
"""Tokens, and the seconds of each call."""


async def tokens_per_second(work: Awaitable[Sampled]) -> float:
    start = time.perf_counter()
    tokens, _ = await work
    return tokens / (time.perf_counter() - start)


async def sample_over_grpc(target: str, asks: Sequence[Ask], callers: int) -> Sampled:
    """Every completion is a call of its own."""
    async with grpc.aio.insecure_channel(target) as channel:
        stub = sampler_service_pb2_grpc.SamplerServiceStub(channel)

        async def one(index: int, ask: Ask) -> int:
            request = sampler_service_pb2.SampleCompletionsRequest(
                policy=POLICY,
                prompts=[sampler_service_pb2.SamplePrompt(messages=[user_turn(ask.prompt)])],
                params=sampler_service_pb2.SamplingParams(num_completions=1, max_tokens=ask.max_tokens, seed=index),
            )
            response = await stub.SampleCompletions(request, timeout=600)
            return sum(len(completion.token_ids) for completion in response.completions)

        return await from_callers(asks, one, callers)


async def sample_with_engine(engine: Engine, asks: Sequence[Ask]) -> Sampled:
    """The same calls made of the engine itself."""

    async def one(index: int, ask: Ask) -> int:
        ids = engine.encode_chat([Message("user", ask.prompt)])
        [generations] = await engine.generate([GenerateRequest(ids, 1, ask.max_tokens, seed=index)])
        return sum(len(generation.token_ids) for generation in generations)

    return await from_callers(asks, one, SAMPLER_CALLERS)


async def from_callers(asks: Sequence[Any], one: Callable[[int, Any], Awaitable[int]], callers: int) -> Sampled:
    """Sum of what the calls give, and their seconds; each caller makes one call at a time."""
    waiting = iter(enumerate(asks))
    total, seconds = 0, []

    async def caller() -> None:
        nonlocal total
        for index, ask in waiting:
            start = time.perf_counter()
            made = await one(index, ask)
            total += made
            seconds.append(time.perf_counter() - start)

    await asyncio.gather(*(caller() for _ in range(callers)))
    return total, seconds


def static_generate(model: Any, prompts: Sequence[list[int]], asks: Sequence[Ask], *, rows: int) -> float:
    """Tokens asked for, a second, by plain generate: a batch in order of arrival runs until its longest ends."""
    import torch

    start, tokens = time.perf_counter(), 0
    eos = model.config.eos_token_id
    for begin in range(0, len(prompts), rows):
        batch, wanted = prompts[begin : begin + rows], asks[begin : begin + rows]
        longest = max(map(len, batch))
        ids = torch.tensor([[0] * (longest - len(prompt)) + prompt for prompt in batch])
        mask = torch.tensor([[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in batch])
        with torch.inference_mode():
            made = model.generate(
                ids,
                attention_mask=mask,
                do_sample=True,
                max_new_tokens=max(ask.max_tokens for ask in wanted),
                pad_token_id=0,
                eos_token_id=eos,
            )[:, longest:].tolist()
        for row, ask in zip(made, wanted, strict=True):
            ended = row.index(eos) + 1 if eos in row else len(row)
            tokens += min(ended, ask.max_tokens)
    return tokens / (time.perf_counter() - start)


async def bench_reward(folder: Path, options: argparse.Namespace) -> Figures:
    """Scores a second of the reward service, of sorted batches of ready token ids, and of one input at a time."""
    figures = Figures("scores/s", GOALS)
    texts = Texts(seed=2)
    config = {
        "reward_models": {"bench": [str(folder / "reward_model")]},
        "engine": {"max_batch_tokens": BATCH_TOKENS},
        "mix_requests": True,
    }
    raw = RawRewardModel(folder / "reward_model")
    with service_process(folder, "reward", config) as reward:

        def inputs(count: int) -> list[tuple[str, str]]:
            return [(texts.prompt(), texts.response()) for _ in range(count)]

        await score_over_grpc(reward.target, inputs(16), REWARD_CALLERS)
        raw.sorted_batches(raw.encode(inputs(16)))
        for _ in range(options.repetitions):
            batch = inputs(options.scores)
            figures.add("grpc", await tokens_per_second(score_over_grpc(reward.target, batch, REWARD_CALLERS)))
            encoded = raw.encode(batch)
            figures.add("raw_sorted_batches", raw.sorted_batches(encoded))
            figures.add("one_by_one", raw.one_by_one(encoded))
            figures.tell(options.repetitions)
        figures.compare("reward_grpc_vs_raw", "grpc", "raw_sorted_batches")
        figures.compare("reward_grpc_vs_one_by_one", "grpc", "one_by_one")
        figures.compare("reward_raw_vs_one_by_one", "raw_sorted_batches", "one_by_one")
        for callers in LOADS:
            _, seconds = await score_over_grpc(reward.target, inputs(max(48, 4 * callers)), callers)
            add_latencies(figures, "reward", callers, seconds)
        figures.figures["reward_peak_rss"] = (reward.peak_rss_gb(), "GB")
    return figures


async def score_over_grpc(target: str, inputs: Sequence[tuple[str, str]], callers: int) -> Sampled:
    """Every input is a call of its own; the "tokens" are scores."""
    async with grpc.aio.insecure_channel(target) as channel:
        stub = reward_service_pb2_grpc.RewardServiceStub(channel)

        async def one(_: int, scored: tuple[str, str]) -> int:
            prompt, response = scored
            item = reward_service_pb2.ScoredInput(messages=[user_turn(prompt)], response=response)
            request = reward_service_pb2.ScoreResponsesRequest(reward_model=REWARD_MODEL, inputs=[item])
            answer = await stub.ScoreResponses(request, timeout=600)
            assert answer.rewards[0].HasField("value"), answer.rewards[0].failure_reason
            return 1

        return await from_callers(inputs, one, callers)


class RawRewardModel:
    """The reward model with nothing around it."""

    def __init__(self, folder: Path) -> None:
        import torch
        from transformers import AutoModelForSequenceClassification, AutoTokenizer

        self._model = AutoModelForSequenceClassification.from_pretrained(folder, dtype=torch.float32).eval()
        self._tokenizer = AutoTokenizer.from_pretrained(folder)

    def encode(self, inputs: Sequence[tuple[str, str]]) -> list[list[int]]:
        """Token ids of each conversation with its reply."""
        turns = [
            [{"role": "user", "content": prompt}, {"role": "assistant", "content": response}]
            for prompt, response in inputs
        ]
        return [self._tokenizer.apply_chat_template(talk, return_dict=False) for talk in turns]

    def sorted_batches(self, encoded: Sequence[list[int]]) -> float:
        """Scores a second by length-sorted batches of at most BATCH_TOKENS padded tokens."""
        start = time.perf_counter()
        batch: list[list[int]] = []
        for ids in sorted(encoded, key=len, reverse=True):
            if batch and (len(batch) + 1) * len(batch[0]) > BATCH_TOKENS:
                self._forward(batch)
                batch = []
            batch.append(ids)
        self._forward(batch)
        return len(encoded) / (time.perf_counter() - start)

    def one_by_one(self, encoded: Sequence[list[int]]) -> float:
        """Scores a second, each input alone."""
        start = time.perf_counter()
        for ids in encoded:
            self._forward([ids])
        return len(encoded) / (time.perf_counter() - start)

    def _forward(self, batch: Sequence[list[int]]) -> None:
        import torch

        longest, pad = max(map(len, batch)), self._model.config.pad_token_id
        ids = torch.tensor([row + [pad] * (longest - len(row)) for row in batch])
        mask = torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in batch])
        with torch.inference_mode():
            self._model(input_ids=ids, attention_mask=mask).logits.tolist()


def user_turn(text: str) -> conversation_pb2.Message:
    """One turn of a user."""
    return conversation_pb2.Message(role=conversation_pb2.ROLE_USER, content=text)


def add_latencies(figures: Figures, name: str, callers: int, seconds: Sequence[float]) -> None:
    """p50 and p99 of calls at that many callers, ms."""
    for label, share in (("p50", 0.50), ("p99", 0.99)):
        figures.figures[f"{name}_{label}_{callers}_callers"] = (1000 * percentile(seconds, share), "ms")


if __name__ == "__main__":
    sys.exit(main())
