"""The judge against its own engine, a plain loop, and itself without shared prefixes; and the path around the engine.

One run on CPU. A random-weight Llama of 50 M parameters makes compute rule; texts have the lengths of HH-RLHF's
harmless dialogues (log-normal fits over 4,624 of them). Every repetition runs all contenders in turn, and the ratios
are medians over the repetitions. Prints a table, then `ratio <name> <value> goal <goal>` and
`figure <name> <value> <unit>` lines; the same goes to build/bench/judge.json.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import os
import random
import resource
import shutil
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from harness import RunningService, Texts, make_model, percentile, service_process

from rlaif.client.judge_aio import AsyncJudgeClient
from rlaif.client.judge_values import JudgeOptions, ResponsePair
from rlaif.core.constitution import parse_constitution
from rlaif.core.conversation import Message
from rlaif.core.template import STANDARD, VERDICT_LABELS
from rlaif.runtime.settings import ClientSettings

CALLERS = 64
GOALS = {"grpc_vs_engine": 0.90, "vs_plain_loop": 5.0, "vs_no_shared_prefix": 2.0}
NULL_GOAL = 800
GENERATED_TOKENS = 4
"""What the plain loop decodes: a digit, and room for a word before it."""
PRINCIPLES = {
    "harm": "Prefer the response that causes less harm to people.",
    "help": "Prefer the response that answers what was asked.",
    "truth": "Prefer the response that claims nothing false.",
    "tone": "Prefer the response that is kind and does not lecture.",
    "brief": "Prefer the response that wastes no words.",
    "privacy": "Prefer the response that keeps private things private.",
    "law": "Prefer the response that does not help break the law.",
    "care": "Prefer the response that a thoughtful friend would give.",
}


@dataclass(frozen=True)
class Peers:
    """The engine in this process, and what it is fed."""

    model: Any
    engine: Any
    requests: Callable[[Sequence[ResponsePair]], list[Any]]
    prompts: Callable[[ResponsePair], list[list[int]]]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--pairs", type=int, default=CALLERS, help="pairs a repetition, judged by 64 callers at once")
    parser.add_argument("--slow-pairs", type=int, default=4, help="pairs a repetition of the slow contenders")
    parser.add_argument("--null-requests", type=int, default=8000, help="comparisons past the null engine")
    parser.add_argument("--only", choices=["engine", "null"], help="one half alone")
    parser.add_argument("--out", type=Path, default=Path("build/bench"))
    options = parser.parse_args()
    folder = options.out / "judge"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    (folder / "constitution.yaml").write_text(yaml.safe_dump(constitution_values(), sort_keys=False))

    lines: list[str] = []
    results: dict[str, Any] = {}
    if options.only != "null":
        ratios, rates, memory = bench_engine(folder, options)
        results |= {"ratios": ratios, "labels_per_second": rates, "judge_peak_rss_gb": memory}
        for name, values in rates.items():
            print(f"{name:<28}{statistics.median(values):>10.3f} labels/s   ({min(values):.3f} to {max(values):.3f})")
        lines += [f"ratio {name} {ratio:.3f} goal {GOALS[name]:g}" for name, ratio in ratios.items()]
        lines.append(f"figure judge_peak_rss {memory:.2f} GB")
    if options.only != "engine":
        null = bench_null(folder, num_requests=options.null_requests, repetitions=options.repetitions)
        results |= {"null": null}
        lines.append(f"figure null_requests_per_second {null['requests_per_second']:.0f} 1/s")
        lines += [f"figure null_{name} {null[name]:.1f} ms" for name in ("p50", "p99")]
        # Of the judge alone: tells whether the core it is pinned to was its own.
        lines.append(f"figure null_judge_cpu {null['judge_cpu']:.0f} us")
        lines.append(f"ratio null_requests_per_second {null['requests_per_second']:.0f} goal {NULL_GOAL}")
    print("\n".join(lines))
    (options.out / "judge.json").write_text(json.dumps(results, indent=2) + "\n")
    return 0


def bench_engine(folder: Path, options: argparse.Namespace) -> tuple[dict[str, float], dict[str, list[float]], float]:
    """Ratios, labels a second of each repetition, and the judge's peak memory in GB."""
    model_folder = folder / "model"
    make_model(model_folder)
    peers = open_peers(model_folder, constitution=folder / "constitution.yaml")
    rates: dict[str, list[float]] = {"grpc": [], "engine": [], "plain_loop": [], "no_shared_prefix": []}
    texts = make_pairs(seed=1)
    with services(folder, model=str(model_folder)) as judge:
        warm = list(itertools.islice(texts, 8))
        asyncio.run(compare_all(judge.target, warm))
        asyncio.run(peers.engine.choice_logprobs(peers.requests(warm[:4])))
        for _ in range(options.repetitions):
            # The same pairs for all: they are new to the ledger at every repetition.
            pairs = list(itertools.islice(texts, options.pairs))
            few = random.Random(len(rates["grpc"])).sample(pairs, min(options.slow_pairs, len(pairs)))
            rates["grpc"].append(timed(lambda pairs=pairs: asyncio.run(compare_all(judge.target, pairs)), len(pairs)))
            requests = peers.requests(pairs)
            rates["engine"].append(timed(lambda requests=requests: engine_alone(peers, requests), len(pairs)))
            weight = sum(map(prompt_words, few)) / len(few) / (sum(map(prompt_words, pairs)) / len(pairs))
            # A sample of the pairs, its rate scaled to the length of them all.
            rates["plain_loop"].append(weight * timed(lambda few=few: plain_loop(peers, few), len(few)))
            rates["no_shared_prefix"].append(weight * timed(lambda few=few: no_shared_prefix(peers, few), len(few)))
            last = ", ".join(f"{name} {values[-1]:.3f}" for name, values in rates.items())
            print(f"repetition {len(rates['grpc'])} of {options.repetitions}: {last} labels/s", flush=True)
        memory = judge.peak_rss_gb()
    grpc = rates["grpc"]

    def against(name: str) -> float:
        return statistics.median(ours / other for ours, other in zip(grpc, rates[name], strict=True))

    ratios = {
        "grpc_vs_engine": against("engine"),
        "vs_plain_loop": against("plain_loop"),
        "vs_no_shared_prefix": against("no_shared_prefix"),
    }
    return ratios, rates, memory


def engine_alone(peers: Peers, requests: Sequence[Any]) -> None:
    """The engine on ready batches of the size that the service forms."""

    async def run() -> None:
        for start in range(0, len(requests), BATCH_ITEMS):
            await peers.engine.choice_logprobs(requests[start : start + BATCH_ITEMS])

    asyncio.run(run())


def plain_loop(peers: Peers, pairs: Sequence[ResponsePair]) -> None:
    """What one writes first: every order and principle a prompt of its own, generated one at a time."""
    import torch

    for pair in pairs:
        for ids in peers.prompts(pair):
            peers.model.generate(
                torch.tensor([ids]), max_new_tokens=GENERATED_TOKENS, do_sample=False, pad_token_id=0, eos_token_id=None
            )


def no_shared_prefix(peers: Peers, pairs: Sequence[ResponsePair], batch: int = 16) -> None:
    """Log-probabilities by batches of 16 whole prompts, sorted by length."""
    import torch

    prompts = sorted((ids for pair in pairs for ids in peers.prompts(pair)), key=len)
    for start in range(0, len(prompts), batch):
        rows = prompts[start : start + batch]
        longest = max(map(len, rows))
        ids = torch.zeros(len(rows), longest, dtype=torch.long)
        mask = torch.zeros(len(rows), longest, dtype=torch.long)
        for row, prompt in enumerate(rows):
            ids[row, longest - len(prompt) :] = torch.tensor(prompt)
            mask[row, longest - len(prompt) :] = 1
        with torch.inference_mode():
            peers.model(ids, attention_mask=mask, use_cache=False, logits_to_keep=1).logits.log_softmax(-1)


def bench_null(folder: Path, *, num_requests: int, repetitions: int) -> dict[str, float]:
    """Requests a second and latencies in ms: validation, templates, batched ledger; no model."""
    cores = sorted(os.sched_getaffinity(0))
    texts = make_pairs(seed=2)
    with services(folder, model=None, judge_cores=cores[:1], ledger_cores=cores[1:2] or cores) as judge:
        if len(cores) > 1:
            os.sched_setaffinity(0, cores[1:2])
        asyncio.run(compare_all(judge.target, list(itertools.islice(texts, 200)), one_principle=True))
        rates, p50s, p99s, cpu = [], [], [], []
        for _ in range(repetitions):
            pairs = list(itertools.islice(texts, num_requests // repetitions))
            start, used = time.perf_counter(), judge.cpu_seconds()
            latencies = asyncio.run(compare_all(judge.target, pairs, one_principle=True))
            rates.append(len(pairs) / (time.perf_counter() - start))
            cpu.append(1e6 * (judge.cpu_seconds() - used) / len(pairs))
            p50s.append(1000 * percentile(latencies, 0.50))
            p99s.append(1000 * percentile(latencies, 0.99))
        os.sched_setaffinity(0, cores)
        memory = judge.peak_rss_gb()
    return {
        "requests_per_second": statistics.median(rates),
        "p50": statistics.median(p50s),
        "p99": statistics.median(p99s),
        "judge_cpu": statistics.median(cpu),
        "judge_peak_rss_gb": memory,
    }


async def compare_all(target: str, pairs: Sequence[ResponsePair], *, one_principle: bool = False) -> list[float]:
    """Seconds of each call, made by 64 callers."""
    latencies: list[float] = []
    waiting = iter(pairs)
    # Random weights put next to nothing on the verdict labels.
    options = JudgeOptions(principle_ids=("harm",) if one_principle else (), min_verdict_mass=0.0)

    async def caller(client: AsyncJudgeClient) -> None:
        for pair in waiting:
            start = time.perf_counter()
            verdict = await client.compare(
                "constitutions/bench", pair.conversation, first=pair.first, second=pair.second, options=options
            )
            assert verdict.probability_first is not None
            assert not verdict.recorded_before
            latencies.append(time.perf_counter() - start)

    async with AsyncJudgeClient(ClientSettings(target=target, timeout_seconds=600)) as client:
        await asyncio.gather(*(caller(client) for _ in range(CALLERS)))
    return latencies


def timed(work: Callable[[], Any], num_labels: int) -> float:
    """Labels a second."""
    start = time.perf_counter()
    work()
    return num_labels / (time.perf_counter() - start)


BATCH_ITEMS = 64


@contextmanager
def services(
    folder: Path,
    *,
    model: str | None,
    judge_cores: Sequence[int] | None = None,
    ledger_cores: Sequence[int] | None = None,
) -> Iterator[RunningService]:
    """A ledger on SQLite and a judge, each a process; without a model the null engine."""
    run = folder / ("engine" if model else "null")
    run.mkdir()
    database = {"database_url": f"sqlite:///{run}/ledger.sqlite"}
    with service_process(run, "oversight", database, cores=ledger_cores) as ledger:
        config = {
            "model": model or "null",
            "constitutions": [str(folder / "constitution.yaml")],
            "ledger": {"target": ledger.target},
            "mix_requests": True,
            "queue": {"max_batch_items": BATCH_ITEMS},
        }
        program = () if model else (str(Path(__file__).with_name("null_judge.py")),)
        with service_process(run, "judge", config, program=program, cores=judge_cores) as judge:
            yield judge


def open_peers(model_folder: Path, *, constitution: Path) -> Peers:
    """The engine and the bare model of that folder, in this process."""
    from rlaif.engine.hf import HfEngine
    from rlaif.engine.protocol import ChoiceRequest

    engine = HfEngine.load_model(str(model_folder))
    choices = engine.encode_choices(VERDICT_LABELS)
    questions = [
        STANDARD.comparison_question(principle.text)
        for principle in parse_constitution(constitution.read_text()).principles
    ]

    def parts(pair: ResponsePair) -> Iterator[tuple[tuple[int, ...], list[tuple[int, ...]]]]:
        asked = pair.conversation
        conversation = (Message("user", asked),) if isinstance(asked, str) else asked
        for one, other in ((pair.first, pair.second), (pair.second, pair.first)):
            context = STANDARD.comparison(conversation, first=one, second=other)
            encoded = [engine.encode_judge_prompt(context, question) for question in questions]
            yield encoded[0][0], [suffix for _, suffix in encoded]

    def requests(pairs: Sequence[ResponsePair]) -> list[ChoiceRequest]:
        return [ChoiceRequest(prefix, tuple(suffixes), choices) for pair in pairs for prefix, suffixes in parts(pair)]

    def prompts(pair: ResponsePair) -> list[list[int]]:
        return [[*prefix, *suffix] for prefix, suffixes in parts(pair) for suffix in suffixes]

    model: Any = engine._loaded.model
    return Peers(model, engine, requests, prompts)


def make_pairs(seed: int) -> Iterator[ResponsePair]:
    """Endless pairs of HH-RLHF's lengths."""
    texts = Texts(seed)
    while True:
        yield ResponsePair(texts.prompt(), texts.response(), texts.response())


def prompt_words(pair: ResponsePair) -> int:
    """Length of a pair's texts, for scaling."""
    return len(f"{pair.conversation} {pair.first} {pair.second}".split())


def constitution_values() -> dict[str, Any]:
    """Eight principles."""
    return {
        "id": "bench",
        "description": "Eight principles.",
        "principles": [{"id": name, "text": text} for name, text in PRINCIPLES.items()],
    }


if __name__ == "__main__":
    resource.setrlimit(resource.RLIMIT_NOFILE, (resource.getrlimit(resource.RLIMIT_NOFILE)[1],) * 2)
    sys.exit(main())
