"""Reads and checks model folders for vLLM without loading their weights."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import transformers
from safetensors import SafetensorError, safe_open

from rlaif.core.errors import InvalidInputError
from rlaif.engine.codec import ChatCodec
from rlaif.engine.hf.loading import (
    check_vocabulary,
    find_context_length,
    find_model_folder,
    load_tokenizer,
    read_config,
    stop_ids,
)
from rlaif.engine.vllm.errors import first_line
from rlaif.runtime.artifacts import folder_digest

Shapes = dict[str, tuple[int, ...]]

_ADAPTER_CONFIG, _ADAPTER_WEIGHTS, _ADAPTER_BASE = "adapter_config.json", "adapter_model.safetensors", "base.json"
_ADAPTER_PREFIX = "base_model.model."
_TIED = "lm_head.weight"


@dataclass(frozen=True)
class DescribedModel:
    """A model folder, everything but its weights read."""

    folder: Path
    digest: str
    config: Any
    codec: ChatCodec
    stop_ids: frozenset[int]
    context_length: int
    shapes: Shapes


def describe_model(uri: str, *, context_length: int | None) -> DescribedModel:
    """The model of that folder or hub id; InvalidInputError says what is wrong with it."""
    folder = find_model_folder(uri)
    tokenizer = load_tokenizer(folder)
    config = read_config(folder)
    codec = ChatCodec(tokenizer)
    check_vocabulary(folder, codec, embedded=config.get_text_config().vocab_size)
    return DescribedModel(
        folder=folder,
        digest=folder_digest(folder),
        config=config,
        codec=codec,
        stop_ids=stop_ids(_generation_config(folder, config), codec, tokenizer),
        context_length=find_context_length(config, tokenizer, limit=context_length),
        shapes=weight_shapes(folder),
    )


def weight_shapes(folder: Path) -> Shapes:
    """Names and shapes of the folder's tensors."""
    shapes: Shapes = {}
    try:
        for path in sorted(folder.glob("*.safetensors")):
            with safe_open(path, framework="pt") as file:
                shapes |= {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise InvalidInputError(f"{folder}: the weights cannot be read: {first_line(error)}", field="model") from error
    return shapes


def check_same_architecture(folder: Path, served: DescribedModel) -> None:
    """InvalidInputError where the folder's tensors are not those of the model being served."""
    found, expected = weight_shapes(folder), dict(served.shapes)
    if getattr(served.config.get_text_config(), "tie_word_embeddings", False):
        # Some write the tied head a second time.
        found.pop(_TIED, None)
        expected.pop(_TIED, None)
    if found != expected:
        raise InvalidInputError(f"{folder} has another architecture than the model being served", field="model")


def is_adapter(folder: Path) -> bool:
    """Whether the folder holds a LoRA adapter."""
    return (folder / _ADAPTER_CONFIG).is_file()


def check_adapter(folder: Path, served: DescribedModel, *, max_rank: int) -> None:
    """InvalidInputError where the adapter is of another base, does not fit it, is too large or no safetensors file."""
    if not (folder / _ADAPTER_WEIGHTS).is_file():
        raise InvalidInputError(f"{folder} holds no {_ADAPTER_WEIGHTS}", field="model")
    config = _read_json(folder / _ADAPTER_CONFIG)
    rank = config.get("r")
    if not isinstance(rank, int) or not 1 <= rank <= max_rank:
        raise InvalidInputError(
            f"{folder} is an adapter of rank {rank}; the engine takes up to {max_rank} (engine.vllm.adapters.max_rank)",
            field="model",
            reason="ADAPTER_RANK",
        )
    if (folder / _ADAPTER_BASE).is_file():
        digest = _read_json(folder / _ADAPTER_BASE).get("digest")
        if digest != served.digest:
            raise _mismatch(f"{folder} is an adapter of the model {digest}, the engine serves {served.digest}")
    for name, shape in weight_shapes(folder).items():
        _check_fits(folder, name, shape, served.shapes)


def _check_fits(folder: Path, name: str, shape: tuple[int, ...], base: Shapes) -> None:
    module, _, part = name.removeprefix(_ADAPTER_PREFIX).partition(".lora_")
    expected = base.get(f"{module}.weight")
    if expected is None or not part:
        raise _mismatch(f"{folder}: the adapter's tensor {name} has no place in the model being served")
    # A is (rank, inputs), B is (outputs, rank).
    fits = shape[-1] == expected[-1] if part.startswith("A") else shape[0] == expected[0]
    if not fits:
        raise _mismatch(f"{folder}: the adapter's tensor {name} has the shape {shape}, its weight {expected}")


def _mismatch(message: str) -> InvalidInputError:
    return InvalidInputError(message, field="model", reason="ADAPTER_BASE_MISMATCH")


def _read_json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InvalidInputError(f"{path} cannot be read: {first_line(error)}", field="model") from error
    if not isinstance(value, dict):
        raise InvalidInputError(f"{path} holds no object", field="model")
    return value


def _generation_config(folder: Path, config: Any) -> Any:
    try:
        return transformers.GenerationConfig.from_pretrained(folder, local_files_only=True)
    except OSError:
        return transformers.GenerationConfig.from_model_config(config)
