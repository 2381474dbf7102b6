"""Reads and checks model folders for vLLM without loading their weights."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import transformers
from safetensors import SafetensorError, safe_open

from rlaif.core.errors import InvalidInputError
from rlaif.engine.codec import ChatCodec
from rlaif.engine.hf.adapters import check_fits, read_adapter
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


def check_adapter(folder: Path, served: DescribedModel, *, max_rank: int) -> None:
    """InvalidInputError where the adapter is of another base, does not fit it, is too large or no safetensors file."""
    adapter = read_adapter(folder, base_digest=served.digest)
    if adapter.config.r > max_rank:
        raise InvalidInputError(
            f"{folder} is an adapter of rank {adapter.config.r}, the engine takes up to {max_rank}; set "
            "engine.vllm.adapters.max_rank",
            field="model",
            reason="ADAPTER_RANK",
        )
    check_fits(adapter, served.shapes)


def _generation_config(folder: Path, config: Any) -> Any:
    try:
        return transformers.GenerationConfig.from_pretrained(folder, local_files_only=True)
    except OSError:
        return transformers.GenerationConfig.from_model_config(config)
