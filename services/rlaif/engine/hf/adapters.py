"""LoRA adapters on a loaded model (Hu et al. 2021, arXiv 2106.09685); the only importer of peft.

An adapter is computed beside the weights and never merged into them: any number of swaps leaves them as they were.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from rlaif.core.errors import InvalidInputError

_CONFIG, _WEIGHTS, _PICKLED, _BASE = (
    "adapter_config.json",
    "adapter_model.safetensors",
    "adapter_model.bin",
    "base.json",
)
_PREFIX = "base_model.model."
# What changes more than products of weights, with the value that leaves it out.
_PLAIN: dict[str, Any] = {
    "bias": "none",
    "modules_to_save": None,
    "layer_replication": None,
    "trainable_token_indices": None,
}


@dataclass(frozen=True)
class Adapter:
    """An adapter as it was published."""

    folder: Path
    config: Any
    tensors: dict[str, torch.Tensor]


def is_adapter(folder: Path) -> bool:
    """Whether the folder holds a LoRA adapter."""
    return (folder / _CONFIG).is_file()


def read_adapter(folder: Path, *, base_digest: str) -> Adapter:
    """The folder's adapter; InvalidInputError when it is of another base, pickled or of a kind that is not served."""
    from peft import LoraConfig

    if not (folder / _WEIGHTS).is_file():
        if (folder / _PICKLED).is_file():
            raise InvalidInputError(
                f"{folder} holds the adapter only as pickle ({_PICKLED}), which can run code; save it as safetensors",
                field="model",
            )
        raise InvalidInputError(f"{folder} holds no {_WEIGHTS}", field="model")
    if (folder / _BASE).is_file() and (digest := _read_object(folder / _BASE).get("digest")) != base_digest:
        raise _mismatch(
            f"{folder} is an adapter of the model with digest {digest}, the engine was opened with {base_digest}; "
            "publish one trained on that base, or open the engine with the adapter's"
        )
    values = _read_object(folder / _CONFIG)
    if values.get("peft_type") != "LORA":
        raise InvalidInputError(f"{folder} is an adapter of kind {values.get('peft_type')}, not LORA", field="model")
    for name, plain in _PLAIN.items():
        if values.get(name) not in (plain, None):
            raise InvalidInputError(
                f"{folder}: an adapter with {name}={json.dumps(values[name])} changes more than LoRA's matrices, which "
                "is not served; train it without, or publish full weights",
                field="model",
                reason="ADAPTER_NOT_PLAIN",
            )
    try:
        config = LoraConfig.from_pretrained(str(folder))
        tensors = load_file(folder / _WEIGHTS)
    except (OSError, ValueError, TypeError, KeyError, SafetensorError) as error:
        raise InvalidInputError(f"{folder}: the adapter cannot be read: {_line(error)}", field="model") from error
    # Some ways to start an adapter change the weights below it; this one is not started but loaded.
    config.init_lora_weights, config.inference_mode = False, True
    return Adapter(folder, config, tensors)


class AdaptedModel:
    """A model and the adapter computed beside its weights, if any."""

    def __init__(self, model: Any) -> None:
        self.model = model
        self._peft: Any = None
        self._name = ""
        self._numbers = itertools.count()

    def put(self, adapter: Adapter) -> None:
        """Puts the adapter in the place of the one before; on an error that one stays."""
        from peft import PeftModel, set_peft_model_state_dict

        check_fits(adapter, {name: tuple(tensor.shape) for name, tensor in plain_state(self.model).items()})
        name = f"adapter{next(self._numbers)}"
        try:
            if self._peft is None:
                peft = PeftModel(self.model, adapter.config, adapter_name=name)
            else:
                peft = self._peft
                peft.add_adapter(name, adapter.config)
            _check_complete(adapter, peft, name)
            set_peft_model_state_dict(peft, adapter.tensors, adapter_name=name)
        except BaseException as error:
            self._take_back(name)
            if isinstance(error, ValueError | RuntimeError | KeyError) and not isinstance(error, InvalidInputError):
                raise _mismatch(f"{adapter.folder}: the adapter does not fit: {_line(error)}") from error
            raise
        peft.set_adapter(name, inference_mode=True)
        if self._name:
            peft.delete_adapter(self._name)
        self._peft, self._name = peft, name
        self.model.eval()

    def remove(self) -> None:
        """Takes the adapter away, if there is one."""
        if self._peft is not None:
            _strip(self.model)
        self._peft, self._name = None, ""

    def _take_back(self, name: str) -> None:
        if self._peft is None:
            _strip(self.model)
        elif name in self._peft.peft_config:
            self._peft.delete_adapter(name)


def check_fits(adapter: Adapter, shapes: Mapping[str, tuple[int, ...]]) -> None:
    """InvalidInputError where a tensor of the adapter has no place among a model's tensors, named with their shapes."""
    for name, tensor in adapter.tensors.items():
        module, _, part = name.removeprefix(_PREFIX).partition(".lora_")
        expected = shapes.get(f"{module}.weight")
        if expected is None or not part:
            raise _mismatch(f"{adapter.folder}: the adapter's {name} has no place in the model being served")
        # A is (rank, inputs), B is (outputs, rank); an embedding's are the other way round.
        if part.split(".")[0] in ("A", "B") and tensor.shape[part[0] == "A"] != expected[part[0] == "A"]:
            raise _mismatch(
                f"{adapter.folder}: the adapter's {name} has the shape {tuple(tensor.shape)}, the weights there "
                f"{expected}"
            )


def plain_state(model: Any) -> dict[str, torch.Tensor]:
    """The model's own tensors by the names they have without an adapter."""
    return {
        name.replace(".base_layer.", "."): tensor for name, tensor in model.state_dict().items() if ".lora_" not in name
    }


def _check_complete(adapter: Adapter, peft: Any, name: str) -> None:
    from peft import get_peft_model_state_dict

    expected = get_peft_model_state_dict(peft, adapter_name=name, save_embedding_layers=False)
    different = sorted(
        key
        for key in {*expected, *adapter.tensors}
        if key not in expected or key not in adapter.tensors or expected[key].shape != adapter.tensors[key].shape
    )
    if different:
        raise _mismatch(
            f"{adapter.folder}: {len(different)} tensors of the adapter are missing or do not fit the model being "
            f"served, the first is {different[0]}"
        )


def _strip(model: Any) -> None:
    """Puts back the layers that an adapter was wrapped around."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    for name, layer in list(model.named_modules()):
        if isinstance(layer, BaseTunerLayer):
            parent, _, child = name.rpartition(".")
            setattr(model.get_submodule(parent), child, layer.get_base_layer())
    if hasattr(model, "peft_config"):
        del model.peft_config


def _read_object(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InvalidInputError(f"{path} cannot be read: {_line(error)}", field="model") from error
    if not isinstance(value, dict):
        raise InvalidInputError(f"{path} holds no object", field="model")
    return value


def _mismatch(message: str) -> InvalidInputError:
    return InvalidInputError(message, field="model", reason="ADAPTER_BASE_MISMATCH")


def _line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
