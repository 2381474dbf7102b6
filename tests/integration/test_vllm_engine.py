"""The engine on vLLM beside the one on transformers: the same answers on the same weights. Adapters, priority, loss."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import random
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import pytest_asyncio
import torch
from safetensors.torch import load_file, save_file

from model_fixtures import write_model
from rlaif.client.judge import JudgeClient, ResponsePair
from rlaif.core.conversation import Message
from rlaif.core.errors import InvalidInputError, UnavailableError
from rlaif.engine.factory import open_engine
from rlaif.engine.protocol import ChoiceRequest, Engine, GenerateRequest, ModelIdentity
from rlaif.engine.settings import EngineSettings
from rlaif.playground.answers import compose, sample_kind
from rlaif.playground.paths import JUDGE_DIR
from rlaif.playground.world import prompts_of
from rlaif.runtime.artifacts import folder_digest
from rlaif.runtime.server import serving
from rlaif.runtime.settings import ClientSettings, ListenSettings

pytest.importorskip("vllm", reason="vLLM is not installed in this environment: make test-vllm runs these")
pytestmark = pytest.mark.asyncio(loop_scope="module")

HF = EngineSettings(num_threads=1)
VLLM = EngineSettings.model_validate(
    {"kind": "vllm", "num_threads": 1, "vllm": {"max_sequences": 1, "adapters": {"enabled": True, "max_rank": 8}}}
)


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model whose heads are large enough for vLLM on CPUs."""
    return write_model(tmp_path_factory.mktemp("model"), seed=0, head_dim=32)


@pytest.fixture(scope="module")
def other_model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same architecture with other weights."""
    return write_model(tmp_path_factory.mktemp("other_model"), seed=1, head_dim=32)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def engine(model_folder: Path) -> AsyncIterator[Engine]:
    """vLLM on the tiny model, one sequence at a time, with adapters."""
    engine = await open_engine(VLLM, model=str(model_folder))
    yield engine
    await engine.close()


def sampled(engine: Engine, **options: Any) -> list[GenerateRequest]:
    values: dict[str, Any] = {"num_completions": 2, "max_tokens": 12, "seed": 5, "temperature": 0.8, "top_p": 0.95}
    texts = ("How do I boil an egg?", "Hi", "Tell me about water.")
    return [
        GenerateRequest(prompt_ids=engine.encode_chat([Message("user", text)]), stream=index, **(values | options))
        for index, text in enumerate(texts)
    ]


def choices_of(engine: Engine) -> ChoiceRequest:
    prefix, suffix = engine.encode_judge_prompt("Compare two replies to a user.", "Better reply, 1 or 2?")
    return ChoiceRequest(prefix, (suffix,), engine.encode_choices(["1", "2", "10"]))


async def scored_by_transformers(folder: Path) -> list[float]:
    engine = await open_engine(HF, model=str(folder))
    [result] = await engine.choice_logprobs([choices_of(engine)])
    await engine.close()
    return list(result.logprobs[0])


async def scored(engine: Engine) -> list[float]:
    [result] = await engine.choice_logprobs([choices_of(engine)])
    return list(result.logprobs[0])


async def test_both_engines_draw_the_same_tokens(engine: Engine, model_folder: Path) -> None:
    other = await open_engine(HF, model=str(model_folder))
    expected = await other.generate(sampled(other))
    await other.close()
    for result, others in zip(await engine.generate(sampled(engine)), expected, strict=True):
        for generation, reference in zip(result, others, strict=True):
            assert dataclasses.replace(generation, logprobs=()) == dataclasses.replace(reference, logprobs=())
            assert generation.logprobs == pytest.approx(reference.logprobs, abs=1e-3)


def playground_pairs(count: int) -> list[ResponsePair]:
    rng = random.Random(7)
    pairs = []
    for prompt in rng.sample(prompts_of("held_out"), count + 10):
        first, second = (compose(rng, prompt, sample_kind(rng, prompt.category)).text for _ in range(2))
        if first != second:
            pairs.append(ResponsePair((Message("user", prompt.text),), first, second))
    return pairs[:count]


async def judged(kind: str) -> tuple[list[Any], list[Any]]:
    """(verdicts, scores) of the playground's judge on that engine."""
    from rlaif.judge.process import make_service
    from rlaif.judge.settings import JudgeSettings

    settings = JudgeSettings.model_validate(
        {
            "model": str(JUDGE_DIR),
            "engine": {"kind": kind, "num_threads": 1},
            "template": "compact",
            "constitutions": ["playground"],
        }
    )
    pairs = playground_pairs(40)
    async with serving(make_service(settings), ListenSettings(metrics_address=None)) as server:

        def ask() -> tuple[list[Any], list[Any]]:
            with JudgeClient(ClientSettings(target=server.address, timeout_seconds=120)) as client:
                verdicts = client.compare_many("constitutions/playground", pairs)
                scores = client.score_many(
                    "constitutions/playground", [(pair.conversation, pair.first) for pair in pairs[:10]]
                )
                return list(verdicts), list(scores)

        return await asyncio.to_thread(ask)


async def test_the_judge_gives_the_same_labels_on_both_engines() -> None:
    verdicts, scores = await judged("vllm")
    expected_verdicts, expected_scores = await judged("hf")
    assert len({verdict.preference for verdict in expected_verdicts}) > 1
    for verdict, expected in zip(verdicts, expected_verdicts, strict=True):
        assert verdict.preference == expected.preference
        assert verdict.probability_first == pytest.approx(expected.probability_first, abs=1e-3)
        assert [vote.principle_id for vote in verdict.votes] == [vote.principle_id for vote in expected.votes]
    for score, expected in zip(scores, expected_scores, strict=True):
        for principle, other in zip(score.scores, expected.scores, strict=True):
            assert principle.probabilities == pytest.approx(other.probabilities, abs=1e-3)


def write_adapter(folder: Path, base: Path, *, rank: int = 4, digest: str | None = None) -> Path:
    """A LoRA adapter of the query projections, as peft writes it."""
    folder.mkdir()
    generator = torch.Generator().manual_seed(11)
    tensors = {}
    for name, weight in load_file(base / "model.safetensors").items():
        if name.endswith("q_proj.weight"):
            module = f"base_model.model.{name.removesuffix('.weight')}"
            tensors[f"{module}.lora_A.weight"] = torch.randn(rank, weight.shape[1], generator=generator) * 0.3
            tensors[f"{module}.lora_B.weight"] = torch.randn(weight.shape[0], rank, generator=generator) * 0.3
    save_file(tensors, folder / "adapter_model.safetensors")
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "r": rank,
        "lora_alpha": 2 * rank,
        "target_modules": ["q_proj"],
        "bias": "none",
    }
    (folder / "adapter_config.json").write_text(json.dumps(config))
    (folder / "base.json").write_text(json.dumps({"digest": digest or folder_digest(base)}))
    return folder


def write_merged(folder: Path, base: Path, adapter: Path) -> Path:
    """The base with the adapter's product added: W + (alpha / r) B A (Hu et al. 2021, §4.1)."""
    write_model(folder, head_dim=32)
    weights, lora = load_file(base / "model.safetensors"), load_file(adapter / "adapter_model.safetensors")
    for name in [name for name in lora if ".lora_A." in name]:
        module = name.removeprefix("base_model.model.").removesuffix(".lora_A.weight")
        weights[f"{module}.weight"] += 2 * lora[name.replace("lora_A", "lora_B")] @ lora[name]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


async def test_an_adapter_answers_as_the_merged_weights_do_and_goes_again(
    engine: Engine, model_folder: Path, other_model_folder: Path, tmp_path: Path
) -> None:
    base, before = engine.identity, await scored(engine)
    adapter = write_adapter(tmp_path / "adapter", model_folder)
    merged = await scored_by_transformers(write_merged(tmp_path / "merged", model_folder, adapter))
    assert before != pytest.approx(merged, abs=0.05)

    await engine.load(ModelIdentity(uri=str(adapter), digest="", version=1))
    assert engine.identity.version == 1
    assert await scored(engine) == pytest.approx(merged, abs=1e-3)
    await engine.load(ModelIdentity(uri=str(other_model_folder), digest="", version=2))
    assert await scored(engine) == pytest.approx(await scored_by_transformers(other_model_folder), abs=1e-3)
    # The adapter is of the first weights, which come back under it.
    await engine.load(ModelIdentity(uri=str(adapter), digest="", version=3))
    assert await scored(engine) == pytest.approx(merged, abs=1e-3)
    await engine.load(base)
    assert await scored(engine) == pytest.approx(before, abs=1e-4)


async def test_an_adapter_that_is_not_of_these_weights_is_refused(
    engine: Engine, model_folder: Path, tmp_path: Path
) -> None:
    wider = write_model(tmp_path / "wider", hidden_size=96, head_dim=32)
    refused = {
        "model with digest 0": write_adapter(tmp_path / "digest", model_folder, digest="0" * 64),
        "has the shape": write_adapter(tmp_path / "shapes", wider, digest=folder_digest(model_folder)),
        "rank 16": write_adapter(tmp_path / "rank", model_folder, rank=16),
        "only as pickle": write_adapter(tmp_path / "pickle", model_folder),
    }
    (refused["only as pickle"] / "adapter_model.safetensors").rename(tmp_path / "pickle/adapter_model.bin")
    before, identity = await scored(engine), engine.identity
    for sentence, folder in refused.items():
        with pytest.raises(InvalidInputError, match=sentence) as caught:
            await engine.load(ModelIdentity(uri=str(folder), digest="", version=9))
        if sentence in ("model with digest 0", "has the shape"):
            assert caught.value.reason == "ADAPTER_BASE_MISMATCH"
    assert engine.identity == identity
    assert await scored(engine) == before


async def test_of_those_that_wait_the_smallest_priority_runs_first(engine: Engine) -> None:
    order: list[int] = []
    first, late, urgent = (
        dataclasses.replace(request, num_completions=1, max_tokens=40, priority=priority)
        for request, priority in zip(sampled(engine), (0, 9, 1), strict=True)
    )
    await engine.generate([first, late, urgent], on_generation=lambda request, *_: order.append(request))
    assert order.index(2) < order.index(1)


async def test_heads_that_vllm_does_not_know_on_cpus_are_refused_at_the_start(tmp_path: Path) -> None:
    with pytest.raises(InvalidInputError, match="attention heads of 16"):
        await open_engine(VLLM, model=str(write_model(tmp_path / "model")))


async def test_weights_that_vllm_cannot_use_are_its_own_sentence(tmp_path: Path) -> None:
    folder = write_model(tmp_path / "model", head_dim=32)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 3}))
    with pytest.raises(InvalidInputError, match="vLLM cannot run this model"):
        await open_engine(VLLM, model=str(folder))


async def test_a_lost_process_makes_calls_fail_as_unavailable(engine: Engine) -> None:
    """The last one: the engine of this file is lost with it."""
    long = [dataclasses.replace(request, max_tokens=200, num_completions=16) for request in sampled(engine)]
    call = asyncio.create_task(engine.generate(long))
    await asyncio.sleep(0)
    cores = [child for child in psutil.Process().children(recursive=True) if "EngineCore" in child.name()]
    assert cores
    for core in cores:
        core.kill()
    with pytest.raises(UnavailableError):
        await call
    with pytest.raises(UnavailableError):
        await engine.check_health()
    with pytest.raises(UnavailableError):
        await engine.generate(sampled(engine))
