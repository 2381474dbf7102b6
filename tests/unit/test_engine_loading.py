"""Model folders that cannot be served: one clear sentence each. And engines that are closed, cancelled or narrow."""

from __future__ import annotations

import asyncio
import importlib.util
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from model_fixtures import make_tokenizer, write_model
from model_fixtures import model_folder as model_folder
from model_fixtures import other_model_folder as other_model_folder
from rlaif.core.conversation import Message
from rlaif.core.errors import InvalidInputError, SettingsError, UnavailableError
from rlaif.engine.factory import open_engine
from rlaif.engine.hf import HfEngine
from rlaif.engine.protocol import ChoiceRequest, GenerateRequest, Generation, ModelIdentity
from rlaif.engine.settings import EngineKind, EngineSettings

Spoil = Callable[[Path], object]


def without(*names: str) -> Spoil:
    return lambda folder: [(folder / name).unlink() for name in names]


def pickled(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    torch.save({}, folder / "pytorch_model.bin")


def changed_config(**values: object) -> Spoil:
    def change(folder: Path) -> None:
        path = folder / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | values))

    return change


def larger_tokenizer(folder: Path) -> None:
    tokenizer = make_tokenizer()
    tokenizer.add_tokens([f"word{index}" for index in range(500)])
    tokenizer.save_pretrained(folder)


def custom_code(folder: Path) -> None:
    changed_config(model_type="mine", auto_map={"AutoConfig": "code.C", "AutoModelForCausalLM": "code.M"})(folder)
    (folder / "code.py").write_text("raise SystemExit('code of a model folder ran')\n")


SPOILED: dict[str, tuple[Spoil, str]] = {
    "no config": (without("config.json"), "holds no config.json"),
    "no tokenizer": (without("tokenizer.json", "tokenizer_config.json"), "holds no tokenizer"),
    "no chat template": (without("chat_template.jinja"), "no chat template"),
    "no weights": (without("model.safetensors"), r"holds no weights \(\*.safetensors\)"),
    "pickle only": (pickled, "only as pickle"),
    "cut weights": (lambda folder: (folder / "model.safetensors").write_bytes(b"x" * 100), "cannot be (loaded|read)"),
    "config not JSON": (lambda folder: (folder / "config.json").write_text("{"), "cannot be loaded"),
    "tokenizer not JSON": (lambda folder: (folder / "tokenizer.json").write_text("{"), "tokenizer cannot be loaded"),
    "unknown architecture": (changed_config(model_type="mine"), "cannot be loaded"),
    "weights of another size": (changed_config(hidden_size=32, head_dim=8), "cannot be loaded|lack"),
    "weights of fewer layers": (changed_config(num_hidden_layers=3), "the weights lack"),
    "a reward model": (changed_config(architectures=["LlamaForSequenceClassification"]), "not a causal language model"),
    "tokenizer too large": (larger_tokenizer, "the tokenizer has"),
    "own code": (custom_code, "cannot be loaded"),
}


# What only shows when the weights are loaded, vLLM says in its own process and its own words.
FOUND_BY_LOADING = {"weights of another size", "weights of fewer layers"}
KINDS: list[EngineKind] = ["hf", "vllm"] if importlib.util.find_spec("vllm") else ["hf"]


@pytest.mark.parametrize(
    ("kind", "name"),
    [(kind, name) for kind in KINDS for name in sorted(SPOILED) if kind == "hf" or name not in FOUND_BY_LOADING],
)
def test_a_spoiled_model_folder_is_refused_in_one_sentence(
    kind: EngineKind, name: str, model_folder: Path, tmp_path: Path
) -> None:
    spoil, sentence = SPOILED[name]
    folder = tmp_path / "model"
    shutil.copytree(model_folder, folder)
    spoil(folder)
    with pytest.raises(InvalidInputError, match=sentence) as caught:
        asyncio.run(open_engine(EngineSettings(kind=kind), model=str(folder)))
    assert caught.value.field == "model"
    assert "\n" not in caught.value.message


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("uri", ["/does/not/exist", "./nor/this", "one/two/three"])
def test_a_folder_that_does_not_exist_is_not_looked_for_on_the_hub(kind: EngineKind, uri: str) -> None:
    with pytest.raises(InvalidInputError, match="does not exist"):
        asyncio.run(open_engine(EngineSettings(kind=kind), model=uri))


@pytest.mark.skipif("vllm" in KINDS, reason="vLLM is installed")
def test_an_engine_that_is_not_installed_is_named_with_the_fix() -> None:
    with pytest.raises(SettingsError, match="make install-vllm") as caught:
        asyncio.run(open_engine(EngineSettings(kind="vllm"), model="/any"))
    assert caught.value.field == "engine.kind"


def test_a_file_is_not_a_model_folder(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InvalidInputError, match="is a file"):
        HfEngine.load_model(str(tmp_path / "file"))


async def test_settings_open_an_engine(model_folder: Path) -> None:
    settings = EngineSettings(num_threads=1, dtype="bfloat16", attention="eager", context_length=100)
    engine = await open_engine(settings, model=str(model_folder), version=3)
    assert engine.identity.version == 3
    assert len(engine.identity.digest) == 64
    assert engine.context_length == 100
    await engine.close()
    with pytest.raises(UnavailableError):
        await engine.generate([])


@pytest.mark.parametrize("dtype", ["bfloat16", "bfloat16_autocast", "auto"])
async def test_narrow_types_stay_close_to_float32(model_folder: Path, dtype: str) -> None:
    request = ChoiceRequest((9, 10, 11, 12), ((13, 14), (15, 16, 17)), ((20,), (21,)))
    results = []
    for each in ("float32", dtype):
        engine = HfEngine.load_model(str(model_folder), num_threads=1, dtype=each, attention="eager")  # type: ignore[arg-type]
        assert engine.packs_suffixes
        [result] = await engine.choice_logprobs([request])
        results.append(torch.tensor(result.logprobs))
        await engine.generate([GenerateRequest((9, 10), num_completions=2, max_tokens=3)])
        await engine.close()
    assert (results[0] - results[1]).abs().max() < 0.2


async def test_completions_are_told_as_they_finish_and_a_cancelled_call_stops(model_folder: Path) -> None:
    engine = HfEngine.load_model(str(model_folder), num_threads=1)
    prompt = engine.encode_chat([Message("user", "Hi")])
    told: list[tuple[int, int, Generation]] = []
    requests = [GenerateRequest(prompt, 4, 30, stream=index) for index in range(2)]
    results = await engine.generate(requests, on_generation=lambda *each: told.append(each))
    assert sorted((request, completion) for request, completion, _ in told) == [
        (r, c) for r in range(2) for c in range(4)
    ]
    assert all(results[request][completion] == generation for request, completion, generation in told)

    endless = asyncio.create_task(engine.generate([GenerateRequest(prompt, 64, 200, temperature=10.0)]))
    await asyncio.sleep(0.05)
    endless.cancel()
    with pytest.raises(asyncio.CancelledError):
        await endless
    assert await engine.generate(requests) == results
    await engine.close()


async def test_weights_with_other_names_or_types_are_still_swapped(model_folder: Path, tmp_path: Path) -> None:
    engine = HfEngine.load_model(str(model_folder), num_threads=1)
    requests = [GenerateRequest((9, 10), 4, 8)]
    first = await engine.generate(requests)
    # An untied copy stores one tensor more than the tied model holds.
    untied = write_model(tmp_path / "untied", seed=5, tie_word_embeddings=False)
    with pytest.raises(InvalidInputError, match="another architecture"):
        await engine.load(ModelIdentity(str(write_model(tmp_path / "deep", num_hidden_layers=1)), "", 2))
    assert await engine.generate(requests) == first
    await engine.load(ModelIdentity(str(untied), "", 1))
    fresh = HfEngine.load_model(str(untied), num_threads=1)
    assert await engine.generate(requests) == await fresh.generate(requests) != first
    await fresh.close()
    await engine.close()
