"""What a DeepSpeed engine has learnt, as whole tensors on disk: the same whichever way ZeRO split it over processes.

DeepSpeed's own checkpoints hold one file a process, so another number of processes cannot read them without a
conversion, and another ZeRO stage not at all. Here process 0 writes every trained tensor whole: its float32 master copy
and AdamW's two moments. Nothing is a pickle.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

_WEIGHT, _MOMENTS = "weight", ("exp_avg", "exp_avg_sq")
_INDEX = "state.json"
_SHARD_BYTES = 1 << 30


def save_state(engine: Any, folder: Path, *, is_first_process: bool) -> None:
    """Fills the folder with the weights, moments and random states of all processes; each of them calls it."""
    shards = _Shards(folder) if is_first_process else None
    updates = _num_updates(engine)
    parts = (_WEIGHT, *_MOMENTS) if updates else (_WEIGHT,)
    for name, parameter in _trained(engine):
        for part in parts:
            tensor = _whole(engine, parameter, part)
            if shards is not None:
                shards.add(f"{part}:{name}", tensor)
    randomness = _gathered(_random_state())
    if shards is not None:
        shards.close()
        index = {"updates": updates, "files": shards.files, "random": randomness}
        (folder / _INDEX).write_text(json.dumps(index), encoding="utf-8")


def load_state(engine: Any, folder: Path) -> None:
    """Goes back to what `save_state` wrote, with as many processes and at the ZeRO stage that there are now."""
    index = json.loads((folder / _INDEX).read_text(encoding="utf-8"))
    files: dict[str, str] = index["files"]
    if index["updates"]:
        _make_moments(engine, index["updates"])
    parts = (_WEIGHT, *_MOMENTS) if index["updates"] else (_WEIGHT,)
    opened: dict[str, Any] = {}
    for name, parameter in _trained(engine):
        for part in parts:
            file = files[f"{part}:{name}"]
            if file not in opened:
                opened = {file: safe_open(folder / file, framework="pt")}
            _put(engine, parameter, part, opened[file].get_tensor(f"{part}:{name}"))
    number = _rank()
    # Processes that were not there before keep the random state they started with.
    if number < len(index["random"]):
        _set_random_state(index["random"][number])


class _Shards:
    """Files of about a gigabyte each, so that process 0 never holds more than that beside the model."""

    def __init__(self, folder: Path) -> None:
        self.files: dict[str, str] = {}
        self._folder = folder
        self._tensors: dict[str, Tensor] = {}
        self._size = 0

    def add(self, name: str, tensor: Tensor) -> None:
        self._tensors[name] = tensor.detach().cpu().contiguous()
        self._size += tensor.numel() * tensor.element_size()
        if self._size >= _SHARD_BYTES:
            self.close()

    def close(self) -> None:
        if not self._tensors:
            return
        file = f"state-{len(set(self.files.values())):05d}.safetensors"
        save_file(self._tensors, self._folder / file)
        self.files.update(dict.fromkeys(self._tensors, file))
        self._tensors, self._size = {}, 0


def _trained(engine: Any) -> Iterator[tuple[str, torch.nn.Parameter]]:
    return ((name, parameter) for name, parameter in engine.module.named_parameters() if parameter.requires_grad)


def _flat_masters(engine: Any) -> list[Tensor]:
    """This process's float32 parts, as ZeRO keeps them; at stage 0 the parameters themselves."""
    match engine.zero_optimization_stage():
        case 0:
            return [parameter for _, parameter in _trained(engine)]
        case 3:
            return list(engine.optimizer.fp32_partitioned_groups_flat)
        case _:
            return list(engine.optimizer.single_partition_of_fp32_groups)


def _adam(engine: Any) -> torch.optim.Optimizer:
    optimizer: torch.optim.Optimizer = engine.basic_optimizer
    return optimizer


def _num_updates(engine: Any) -> int:
    state = _adam(engine).state.get(_flat_masters(engine)[0], {})
    return int(state["step"]) if "step" in state else 0


def _make_moments(engine: Any, updates: int) -> None:
    """AdamW and ZeRO make their state in the first step; here it is made without one."""
    for master in _flat_masters(engine):
        _adam(engine).state[master] = {
            "step": torch.tensor(float(updates), device=master.device),
            **{moment: torch.zeros_like(master, memory_format=torch.preserve_format) for moment in _MOMENTS},
        }
    if engine.zero_optimization_stage() in (1, 2):
        engine.optimizer._lazy_init_hp_params_optimizer_state()


def _whole(engine: Any, parameter: torch.nn.Parameter, part: str) -> Tensor:
    """A parameter's master copy or moment, put together from all processes."""
    from deepspeed.utils import safe_get_full_fp32_param, safe_get_full_optimizer_state

    if engine.zero_optimization_stage() == 0:
        tensor: Tensor = parameter if part == _WEIGHT else _adam(engine).state[parameter][part]
    elif part == _WEIGHT:
        tensor = safe_get_full_fp32_param(parameter)
    else:
        tensor = safe_get_full_optimizer_state(parameter, part)
    return tensor


@torch.no_grad()
def _put(engine: Any, parameter: Any, part: str, value: Tensor) -> None:
    """Takes back a parameter's master copy or moment, and with the former the copy that it is trained by."""
    import deepspeed
    from deepspeed.utils import (
        safe_set_full_fp32_param,
        safe_set_full_optimizer_state,
        safe_set_local_fp32_param,
        safe_set_local_optimizer_state,
    )

    stage = engine.zero_optimization_stage()
    if stage == 0:
        (parameter if part == _WEIGHT else _adam(engine).state[parameter][part]).copy_(value)
    elif stage == 3:
        # DeepSpeed's setter of whole values does not pad a last part that is shorter.
        size, number = parameter.ds_tensor.numel(), _rank()
        mine = torch.zeros(size)
        given = value.flatten()[size * number : size * (number + 1)]
        mine[: given.numel()] = given
        if part == _WEIGHT:
            safe_set_local_fp32_param(parameter, mine)
            with deepspeed.zero.GatheredParameters([parameter], modifier_rank=0):
                parameter.data.copy_(value)
        else:
            safe_set_local_optimizer_state(parameter, mine, part)
    elif part == _WEIGHT:
        safe_set_full_fp32_param(parameter, value)
        parameter.copy_(value)
    else:
        safe_set_full_optimizer_state(parameter, value, part)


def _random_state() -> dict[str, Any]:
    version, numbers, pending = random.getstate()
    state: dict[str, Any] = {"torch": torch.get_rng_state().tolist(), "python": [version, list(numbers), pending]}
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state().tolist()
    return state


def _set_random_state(state: dict[str, Any]) -> None:
    torch.set_rng_state(torch.tensor(state["torch"], dtype=torch.uint8))
    version, numbers, pending = state["python"]
    random.setstate((version, tuple(numbers), pending))
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state(torch.tensor(state["cuda"], dtype=torch.uint8))


def _rank() -> int:
    return torch.distributed.get_rank() if torch.distributed.is_initialized() else 0


def _gathered(value: Any) -> list[Any]:
    """The values of all processes, in order."""
    if not torch.distributed.is_initialized() or torch.distributed.get_world_size() == 1:
        return [value]
    values: list[Any] = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(values, value)
    return values
