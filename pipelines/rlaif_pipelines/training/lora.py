"""Low-rank adapters: weights W stay, and W + (α/r)·B·A speaks (Hu et al. 2021, arXiv 2106.09685, eq. 3).

The only importer of peft in training. The layers are put into the model itself, so that it stays the transformers
model that it was.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from rlaif.core.errors import SettingsError
from rlaif_pipelines.training.config.common import LoraSettings

_NAME = "default"
_WEIGHTS = "adapter_model.safetensors"
_MARK = ".lora_"
_PREFIX = "base_model.model."  # names of tensors in an adapter's file begin with it


def add_adapter(model: Any, settings: LoraSettings, *, seed: int, classifies: bool = False) -> None:
    """Puts an adapter that changes nothing yet into the model: it alone is trained, and a classifier's head."""
    from peft import LoraConfig, inject_adapter_in_model

    targets = settings.target_modules
    config = LoraConfig(
        r=settings.rank,
        lora_alpha=settings.alpha,
        lora_dropout=settings.dropout,
        target_modules=targets if isinstance(targets, str) else list(targets),
        task_type="SEQ_CLS" if classifies else "CAUSAL_LM",
    )
    torch.manual_seed(seed)
    try:
        inject_adapter_in_model(config, model, _NAME)
    except ValueError as error:
        linear = sorted({name.rpartition(".")[2] for name, layer in model.named_modules() if _is_linear(layer)})
        raise SettingsError(
            f"engine.lora.target_modules: {targets} are not layers that an adapter can be put on in this "
            f"{type(model).__name__} ({str(error).splitlines()[0]}); its linear layers are {', '.join(linear)}",
            field="engine.lora.target_modules",
        ) from error
    if classifies:
        model.score.requires_grad_(True)


def load_adapter(model: Any, folder: Path) -> None:
    """Puts an adapter that `write_adapter` wrote onto the model."""
    from peft import LoraConfig, inject_adapter_in_model

    inject_adapter_in_model(LoraConfig.from_pretrained(str(folder)), model, _NAME)
    tensors = load_file(folder / _WEIGHTS)
    own = {name.replace(f".{_NAME}.", "."): tensor for name, tensor in adapter_parameters(model).items()}
    with torch.no_grad():
        for name, tensor in tensors.items():
            own[name.removeprefix(_PREFIX)].copy_(tensor)


def has_adapter(model: Any) -> bool:
    """Whether `add_adapter` was called on the model."""
    return hasattr(model, "peft_config")


@contextmanager
def adapter_off(model: torch.nn.Module) -> Iterator[None]:
    """The model as it was before its adapter was trained: the reference, without a second copy of the weights."""
    layers = _layers(model)
    # peft's own switch also changes requires_grad, which DeepSpeed does not expect.
    for _, layer in layers:
        layer._disable_adapters = True
    try:
        yield
    finally:
        for _, layer in layers:
            layer._disable_adapters = False


def write_adapter(model: Any, folder: Path, state: Mapping[str, Tensor]) -> None:
    """Writes adapter_config.json and adapter_model.safetensors as peft does."""
    tensors = {
        _PREFIX + name.replace(f".{_NAME}.", "."): tensor.detach().cpu().contiguous()
        for name, tensor in state.items()
        if _MARK in name
    }
    save_file(tensors, folder / _WEIGHTS, metadata={"format": "pt"})
    model.peft_config[_NAME].save_pretrained(folder)


def merged_state(model: Any, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The model's tensors with the adapter added to the weights, by the names they have without one."""
    merged = {name.replace(".base_layer.", "."): tensor for name, tensor in state.items() if _MARK not in name}
    for name, layer in _layers(model):
        a, b = (state[f"{name}.lora_{part}.{_NAME}.weight"].float() for part in "AB")
        delta = (b @ a) * layer.scaling[_NAME]
        weight = merged[f"{name}.weight"]
        merged[f"{name}.weight"] = (weight.float() + (delta.T if layer.fan_in_fan_out else delta)).to(weight.dtype)
    return merged


@contextmanager
def without_adapter(model: Any) -> Iterator[None]:
    """The model with its own layers in place, so that it can be saved as the plain model that it is an adapter of."""
    layers = _layers(model)
    for name, layer in layers:
        _replace(model, name, layer.get_base_layer())
    try:
        yield
    finally:
        for name, layer in layers:
            _replace(model, name, layer)


def adapter_parameters(model: torch.nn.Module) -> dict[str, torch.nn.Parameter]:
    """The adapter's own matrices."""
    return {name: parameter for name, parameter in model.named_parameters() if _MARK in name}


def _layers(model: torch.nn.Module) -> list[tuple[str, Any]]:
    from peft.tuners.tuners_utils import BaseTunerLayer

    return [(name, layer) for name, layer in model.named_modules() if isinstance(layer, BaseTunerLayer)]


def _replace(model: torch.nn.Module, name: str, layer: torch.nn.Module) -> None:
    parent, _, child = name.rpartition(".")
    setattr(model.get_submodule(parent), child, layer)


def _is_linear(layer: torch.nn.Module) -> bool:
    return isinstance(layer, torch.nn.Linear) or type(layer).__name__ == "Conv1D"
