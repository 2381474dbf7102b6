"""DeepSpeed around a module: forward, backward over micro-batches, one step. The only importer of DeepSpeed."""

from __future__ import annotations

import logging
import math
import os
import random
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rlaif_pipelines.training.checkpoint import Checkpoint, drop_checkpoints_after, latest_checkpoint
from rlaif_pipelines.training.config.common import EngineSettings, OptimizerSettings
from rlaif_pipelines.training.errors import DivergedError

_TAG = "engine"
_MAX_BUCKET = 50_000_000


def start_processes(settings: EngineSettings) -> None:
    """Joins this process to the others that torchrun started; without torchrun it is the only one."""
    os.environ.setdefault("DS_ACCELERATOR", settings.device)
    if "RANK" not in os.environ:
        # Port 0: the store takes a free one, and nobody else needs to know it.
        alone = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0"}
        os.environ.update(alone)
    if settings.num_threads:
        torch.set_num_threads(settings.num_threads)
    import deepspeed

    logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", category=FutureWarning, module=r"torch\.distributed\..*")
    # Without this line DeepSpeed compiles a C++ extension for a minute at the first use on a CPU.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    deepspeed.init_distributed(dist_backend="nccl" if settings.device == "cuda" else "gloo", verbose=False)


def stop_processes() -> None:
    """Leaves the group of processes, so that the interpreter ends without complaints."""
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def rank() -> int:
    """Number of this process, from 0."""
    return torch.distributed.get_rank() if torch.distributed.is_initialized() else 0


def num_processes() -> int:
    """How many processes train together."""
    return torch.distributed.get_world_size() if torch.distributed.is_initialized() else 1


def broadcast(value: Any) -> Any:
    """Process 0's value, on every process."""
    if num_processes() == 1:
        return value
    values = [value]
    torch.distributed.broadcast_object_list(values, src=0)
    return values[0]


def sum_over_processes(values: Tensor) -> Tensor:
    """The element-wise sum over all processes."""
    if num_processes() > 1:
        torch.distributed.all_reduce(values)
    return values


def barrier() -> None:
    """Waits until every process is here."""
    if num_processes() > 1:
        torch.distributed.barrier()


def learning_rate(step: int, *, settings: OptimizerSettings, num_steps: int) -> float:
    """The rate of a step, counted from 0."""
    if step < settings.warmup_steps:
        return settings.learning_rate * (step + 1) / settings.warmup_steps
    progress = (step - settings.warmup_steps) / max(1, num_steps - settings.warmup_steps)
    match settings.schedule:
        case "constant":
            return settings.learning_rate
        case "linear":
            return settings.learning_rate * (1.0 - progress)
        case "cosine":
            return settings.learning_rate * 0.5 * (1.0 + math.cos(math.pi * progress))


class TrainingEngine:
    """A module under DeepSpeed. Losses of micro-batches are sums over the whole batch's denominator: they add up."""

    def __init__(
        self, module: torch.nn.Module, *, settings: EngineSettings, optimizer: OptimizerSettings, num_steps: int
    ) -> None:
        import deepspeed

        self._settings = settings
        self._optimizer_settings = optimizer
        self._num_steps = num_steps
        local_rank = os.environ["LOCAL_RANK"]
        self.device = torch.device(f"cuda:{local_rank}" if settings.device == "cuda" else "cpu")
        if settings.gradient_checkpointing:
            module.model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})  # type: ignore[union-attr, operator]
        self._engine, *_ = deepspeed.initialize(
            model=module.to(self.device),
            optimizer=torch.optim.AdamW(
                module.parameters(),
                lr=optimizer.learning_rate,
                betas=optimizer.betas,
                weight_decay=optimizer.weight_decay,
                fused=True,
            ),
            config=_deepspeed_settings(settings, num_parameters=sum(p.numel() for p in module.parameters())),
        )

    @property
    def module(self) -> torch.nn.Module:
        """The module itself, without DeepSpeed."""
        module: torch.nn.Module = self._engine.module
        return module

    def __call__(self, *inputs: Tensor) -> Any:
        """The module's answer, with what the backward pass needs."""
        return self._engine(*(tensor.to(self.device) for tensor in inputs))

    def backward(self, loss: Tensor, *, last: bool) -> None:
        """Adds the gradient of one micro-batch; `last` says that the step follows."""
        self._engine.set_gradient_accumulation_boundary(last)
        # DeepSpeed averages gradients over processes, our losses are shares of a sum.
        self._engine.backward(loss * num_processes(), scale_wrt_gas=False)

    def step(self, step: int, *, rate_factor: float = 1.0) -> float:
        """Updates the weights at the rate of that step, counted from 0, times `rate_factor`.

        Returns the gradient's norm before clipping.
        """
        rate = rate_factor * learning_rate(step, settings=self._optimizer_settings, num_steps=self._num_steps)
        for group in self._engine.optimizer.param_groups:
            group["lr"] = rate
        norm = self._gradient_norm()
        self._engine.step()
        if norm is None:
            norm = float(self._engine.get_global_grad_norm())
        if not math.isfinite(norm):
            raise DivergedError(f"the gradient of step {step + 1} is not finite; lower the learning rate")
        return norm

    def save(self, folder: Path) -> None:
        """Writes weights, optimiser and random state; every process calls it with the same empty folder."""
        state = {"torch_random": torch.get_rng_state(), "python_random": random.getstate()}
        self._engine.save_checkpoint(str(folder), tag=_TAG, client_state=state, save_latest=False)

    def load(self, folder: Path) -> None:
        """Goes back to what `save` wrote."""
        found, state = self._engine.load_checkpoint(str(folder), tag=_TAG)
        assert found is not None, f"{folder} was checked before"
        torch.set_rng_state(state["torch_random"].cpu())
        random.setstate(state["python_random"])

    @contextmanager
    def whole_weights(self) -> Iterator[dict[str, Tensor] | None]:
        """The inner model's weights, put together from all processes; None where the module holds them whole."""
        if self._settings.zero_stage < 3:
            yield None
            return
        import deepspeed

        model = self.module.model
        assert isinstance(model, torch.nn.Module)
        with deepspeed.zero.GatheredParameters(list(model.parameters())):
            yield {name: tensor.detach().cpu().clone() for name, tensor in model.state_dict().items()}

    def _gradient_norm(self) -> float | None:
        """The norm where DeepSpeed does not tell it: without ZeRO, in float32."""
        if self._settings.zero_stage or self._settings.precision == "bfloat16":
            return None
        gradients = [p.grad for p in self._engine.module.parameters() if p.grad is not None]
        return float(torch.nn.utils.get_total_norm(gradients))


def resume(engine: TrainingEngine, root: Path, *, identity: str) -> Checkpoint | None:
    """Goes back to the last checkpoint of that training, on every process; None when there is none to go back to."""
    found: Checkpoint | None = broadcast(latest_checkpoint(root, identity=identity) if rank() == 0 else None)
    if rank() == 0:
        drop_checkpoints_after(root, step=found.step if found else 0)
    if found is not None:
        engine.load(found.folder)
    return found


def _deepspeed_settings(settings: EngineSettings, *, num_parameters: int) -> dict[str, Any]:
    # The default buckets are 2 GB each, allocated at every step; a small model needs no more than its own size.
    bucket = min(_MAX_BUCKET, max(num_parameters, 1))
    return {
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 1,
        "gradient_clipping": settings.gradient_clipping,
        "zero_allow_untested_optimizer": True,
        "zero_optimization": {
            "stage": settings.zero_stage,
            "reduce_bucket_size": bucket,
            "allgather_bucket_size": bucket,
        },
        "bf16": {"enabled": settings.precision == "bfloat16"},
        "steps_per_print": 2**31 - 1,
    }
