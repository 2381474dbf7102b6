"""DeepSpeed around a module: forward, backward over micro-batches, one step. The only importer of DeepSpeed."""

from __future__ import annotations

import logging
import math
import os
import shutil
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rlaif.core.errors import SettingsError
from rlaif_pipelines.training.checkpoint import Checkpoint, drop_checkpoints_after, latest_checkpoint
from rlaif_pipelines.training.config.common import EngineSettings, OptimizerSettings
from rlaif_pipelines.training.errors import DivergedError
from rlaif_pipelines.training.lora import adapter_parameters
from rlaif_pipelines.training.state import load_state, save_state

_MAX_BUCKET = 50_000_000


def start_processes(settings: EngineSettings) -> None:
    """Joins this process to the others that torchrun started; without torchrun it is the only one.

    SettingsError when the machine lacks what the settings ask for.
    """
    _check_machine(settings)
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


def check_batch(size: int, *, field: str) -> None:
    """SettingsError when a step's batch, of that size by that setting, leaves a process with nothing."""
    if size < num_processes():
        raise SettingsError(
            f"{field}: a step of {size} is too small for {num_processes()} processes, which need one each at least; "
            "raise it, or start fewer",
            field=field,
        )


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
        if settings.compile:
            # In place, so that names of weights stay as they are. Lengths of batches vary.
            module.model.base_model.compile(dynamic=True)  # type: ignore[union-attr]
        trained = [parameter for parameter in module.parameters() if parameter.requires_grad]
        self._engine, *_ = deepspeed.initialize(
            model=module.to(self.device),
            optimizer=torch.optim.AdamW(
                trained,
                lr=optimizer.learning_rate,
                betas=optimizer.betas,
                weight_decay=optimizer.weight_decay,
                fused=True,
            ),
            config=_deepspeed_settings(settings, num_parameters=sum(p.numel() for p in trained)),
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
        save_state(self._engine, folder, is_first_process=rank() == 0)

    def load(self, folder: Path) -> None:
        """Goes back to what `save` wrote, also with another number of processes or at another ZeRO stage."""
        load_state(self._engine, folder)

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

    @contextmanager
    def adapter_weights(self) -> Iterator[dict[str, Tensor]]:
        """The adapter's matrices alone, put together from all processes."""
        adapter = adapter_parameters(self.module.model)  # type: ignore[arg-type]
        if self._settings.zero_stage < 3:
            yield {name: parameter.detach() for name, parameter in adapter.items()}
            return
        import deepspeed

        with deepspeed.zero.GatheredParameters(list(adapter.values())):
            yield {name: parameter.detach().cpu().clone() for name, parameter in adapter.items()}

    def _gradient_norm(self) -> float | None:
        """The norm where DeepSpeed does not tell it: without ZeRO, in float32."""
        if self._engine.zero_optimization_stage():
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


def _check_machine(settings: EngineSettings) -> None:
    if settings.attention == "flash_attention_2" and find_spec("flash_attn") is None:
        raise SettingsError(
            "engine.attention is flash_attention_2, but flash-attn is not installed; install it, or set it to sdpa",
            field="engine.attention",
        )
    if settings.device == "cuda" and not torch.cuda.is_available():
        raise SettingsError("engine.device is cuda, but torch sees no GPU here; set it to cpu", field="engine.device")
    if settings.compile and settings.device == "cpu" and shutil.which(os.environ.get("CXX", "g++")) is None:
        raise SettingsError(
            "engine.compile needs a C++ compiler on a CPU; install g++, or set it to false", field="engine.compile"
        )


def _deepspeed_settings(settings: EngineSettings, *, num_parameters: int) -> dict[str, Any]:
    # The default buckets are 2 GB each, allocated at every step; a small model needs no more than its own size.
    bucket = min(_MAX_BUCKET, max(num_parameters, 1))
    has_master = settings.precision == "bfloat16"
    zero: dict[str, Any] = {
        # Without ZeRO, DeepSpeed keeps its float32 masters of bfloat16 weights where no checkpoint can reach them.
        "stage": max(settings.zero_stage, 1) if has_master else settings.zero_stage,
        "reduce_bucket_size": bucket,
        "allgather_bucket_size": bucket,
    }
    if settings.offload != "none":
        zero["offload_optimizer"] = {"device": "cpu"}
    if settings.offload == "optimizer_and_weights":
        zero["offload_param"] = {"device": "cpu"}
    return {
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 1,
        "gradient_clipping": settings.gradient_clipping,
        "zero_allow_untested_optimizer": True,
        # DeepSpeed's own AdamW for offloaded state is compiled at the first use.
        "zero_force_ds_cpu_optimizer": False,
        "zero_optimization": zero,
        "bf16": {"enabled": has_master},
        "steps_per_print": 2**31 - 1,
    }
