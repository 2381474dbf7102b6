"""LoRA adapters on transformers: what they change, what is refused, and that swaps leave the weights as they were."""

from __future__ import annotations

import json
import shutil
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from adapter_fixtures import adapted_model, write_adapter
from model_fixtures import model_folder as model_folder
from model_fixtures import other_model_folder as other_model_folder
from model_fixtures import write_model
from rlaif.core.errors import InvalidInputError
from rlaif.engine.hf import HfEngine
from rlaif.engine.protocol import ChoiceRequest, GenerateRequest, ModelIdentity
from rlaif.runtime.artifacts import folder_digest

REQUESTS = [GenerateRequest((9, 10, 11, 12), 2, 12, seed=3), GenerateRequest((20, 21), 2, 12, seed=3, stream=1)]
CHOICES = ChoiceRequest((9, 10, 11), ((12, 13), (14,)), ((20,), (21,)))


def identity(folder: Path, version: int) -> ModelIdentity:
    return ModelIdentity(str(folder), folder_digest(folder), version)


@asynccontextmanager
async def opened(folder: Path, **options: Any) -> AsyncIterator[HfEngine]:
    engine = HfEngine.load_model(str(folder), num_threads=1, **options)
    try:
        yield engine
    finally:
        await engine.close()


@pytest.fixture(scope="module")
def adapters(model_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    root = tmp_path_factory.mktemp("adapters")
    return [
        write_adapter(root / "a", base=model_folder, seed=1),
        write_adapter(root / "b", base=model_folder, seed=2, targets=["q_proj", "k_proj"], r=2),
        write_adapter(root / "c", base=model_folder, seed=3, targets=["embed_tokens", "o_proj"], use_rslora=True),
    ]


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
async def test_an_adapter_says_what_peft_says(model_folder: Path, adapters: list[Path], attention: str) -> None:
    async with opened(model_folder, attention=attention) as engine:
        assert engine.capabilities.loads_adapters
        for version, folder in enumerate(adapters, start=1):
            await engine.load(identity(folder, version))
            assert engine.identity == identity(folder, version)
            reference = adapted_model(model_folder, folder)
            for request, generations in zip(REQUESTS, await engine.generate(REQUESTS), strict=True):
                for generation in generations:
                    with torch.inference_mode():
                        logits = reference(torch.tensor([request.prompt_ids + generation.token_ids])).logits[0]
                    following = torch.log_softmax(logits.float(), dim=-1)
                    start = len(request.prompt_ids) - 1
                    expected = [
                        following[start + step, token].item() for step, token in enumerate(generation.token_ids)
                    ]
                    assert generation.logprobs == pytest.approx(expected, abs=1e-3)
            [scored] = await engine.choice_logprobs([CHOICES])
            with torch.inference_mode():
                logits = reference(torch.tensor([CHOICES.prefix_ids + CHOICES.suffixes[0]])).logits[0, -1]
            expected = torch.log_softmax(logits.float(), dim=-1)[[20, 21]].tolist()
            assert scored.logprobs[0] == pytest.approx(expected, abs=1e-3)


async def test_any_number_of_swaps_leaves_the_weights_as_they_were(
    model_folder: Path, other_model_folder: Path, adapters: list[Path]
) -> None:
    async with opened(model_folder) as engine:
        base = engine.identity
        before = await engine.generate(REQUESTS)
        said: dict[Path, Any] = {}
        for turn in range(12):
            folder = adapters[turn % 3]
            await engine.load(identity(folder, turn))
            results = await engine.generate(REQUESTS)
            assert results != before
            assert said.setdefault(folder, results) == results
        await engine.load(base)
        assert await engine.generate(REQUESTS) == before

        # From other full weights, an adapter brings its base with it.
        await engine.load(identity(other_model_folder, 20))
        others = await engine.generate(REQUESTS)
        await engine.load(identity(adapters[0], 21))
        assert await engine.generate(REQUESTS) == said[adapters[0]]
        await engine.load(identity(other_model_folder, 22))
        assert await engine.generate(REQUESTS) == others
        await engine.load(base)
        assert await engine.generate(REQUESTS) == before


async def test_rows_in_flight_finish_without_the_adapter(model_folder: Path, adapters: list[Path]) -> None:
    import asyncio

    async with opened(model_folder, continuous_batching=True) as engine:
        before = await engine.generate(REQUESTS)
        running = asyncio.create_task(engine.generate(REQUESTS))
        await asyncio.sleep(0)
        await engine.load(identity(adapters[0], 1))
        assert [[g.token_ids for g in result] for result in await running] == [
            [g.token_ids for g in result] for result in before
        ]


def pickled(folder: Path) -> None:
    from safetensors.torch import load_file

    torch.save(load_file(folder / "adapter_model.safetensors"), folder / "adapter_model.bin")
    (folder / "adapter_model.safetensors").unlink()


def changed(name: str, **values: Any) -> Callable[[Path], object]:
    def change(folder: Path) -> None:
        path = folder / name
        path.write_text(json.dumps(json.loads(path.read_text()) | values))

    return change


def without_a_tensor(folder: Path) -> None:
    from safetensors.torch import load_file, save_file

    tensors = load_file(folder / "adapter_model.safetensors")
    tensors.pop(sorted(tensors)[0])
    save_file(tensors, folder / "adapter_model.safetensors")


BAD: dict[str, tuple[Callable[[Path], object], str, str]] = {
    "another base": (changed("base.json", digest="0" * 64), "the engine was opened with", "ADAPTER_BASE_MISMATCH"),
    "pickle": (pickled, "only as pickle", "INVALID_INPUT"),
    "no weights": (
        lambda folder: (folder / "adapter_model.safetensors").unlink(),
        "holds no adapter_model",
        "INVALID_INPUT",
    ),
    "cut weights": (
        lambda folder: (folder / "adapter_model.safetensors").write_bytes(b"x" * 50),
        "cannot be read",
        "INVALID_INPUT",
    ),
    "config not JSON": (
        lambda folder: (folder / "adapter_config.json").write_text("{"),
        "cannot be read",
        "INVALID_INPUT",
    ),
    "another kind": (changed("adapter_config.json", peft_type="IA3"), "not LORA", "INVALID_INPUT"),
    "biases": (changed("adapter_config.json", bias="all"), "bias=", "ADAPTER_NOT_PLAIN"),
    "whole modules": (changed("adapter_config.json", modules_to_save=["lm_head"]), "modules", "ADAPTER_NOT_PLAIN"),
    "another rank than its tensors": (changed("adapter_config.json", r=8), "do not fit", "ADAPTER_BASE_MISMATCH"),
    "a tensor missing": (without_a_tensor, "missing or do not fit", "ADAPTER_BASE_MISMATCH"),
    "modules the model lacks": (
        changed("adapter_config.json", target_modules=["nowhere"]),
        "does not fit",
        "ADAPTER_BASE_MISMATCH",
    ),
}


@pytest.mark.parametrize("over", ["the base", "an adapter"])
async def test_bad_adapters_are_refused_and_leave_what_was_served(
    model_folder: Path, adapters: list[Path], tmp_path: Path, over: str
) -> None:
    async with opened(model_folder) as engine:
        if over == "an adapter":
            await engine.load(identity(adapters[1], 1))
        served, before = engine.identity, await engine.generate(REQUESTS)
        for name, (spoil, sentence, reason) in BAD.items():
            folder = tmp_path / name
            shutil.copytree(adapters[0], folder)
            spoil(folder)
            with pytest.raises(InvalidInputError, match=sentence) as caught:
                await engine.load(ModelIdentity(str(folder), "", 9))
            assert (caught.value.reason, caught.value.field) == (reason, "model"), name
            assert engine.identity == served
            assert await engine.generate(REQUESTS) == before, name


async def test_an_adapter_of_a_larger_model_does_not_fit(model_folder: Path, tmp_path: Path) -> None:
    larger = write_model(tmp_path / "larger", hidden_size=128)
    folder = write_adapter(tmp_path / "adapter", base=larger)
    (folder / "base.json").unlink()
    async with opened(model_folder) as engine:
        before = await engine.generate(REQUESTS)
        with pytest.raises(InvalidInputError, match="shape") as caught:
            await engine.load(identity(folder, 1))
        assert caught.value.reason == "ADAPTER_BASE_MISMATCH"
        assert await engine.generate(REQUESTS) == before
