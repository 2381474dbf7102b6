"""How much memory a model takes to answer or to be trained, and on how many GPUs it therefore fits."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Final

from rlaif.core.errors import InvalidInputError
from rlaif_pipelines.planning.architecture import Architecture
from rlaif_pipelines.planning.hardware import Gpu
from rlaif_pipelines.training.config.common import EngineSettings

SERVED_SHARE: Final = 0.9
"""Of a GPU's memory that vLLM takes, by its setting `gpu_memory_utilization`."""
TRAINED_SHARE: Final = 0.95
"""Of a GPU's memory that a training can use; the rest is the driver's and lost between blocks."""
MIN_SEQUENCES: Final = 8
"""Sequences whose keys and values must fit beside the weights for a service to be worth starting."""
MAX_GPUS: Final = 1024

_SERVED_BYTES: Final = 2  # bfloat16
_STATE_BYTES: Final = {"float32": (4, 4, 8), "bfloat16_autocast": (4, 4, 8), "bfloat16": (2, 2, 12)}
"""Weights, gradients, optimiser: AdamW's two moments and, under bfloat16, the float32 master copy; 16 in all."""
_ACTIVATION_BYTES: Final = 34
_GATHERED_PARAMETERS: Final = 1_000_000_000
_BUCKET_BYTES: Final = 2 * 50_000_000 * 4
_LOGITS_BYTES: Final = 3 * 64 * 2**20
"""Logits, their gradient and a copy; training keeps 64 MiB of them at a time."""


@dataclass(frozen=True)
class Memory:
    """Bytes on each of `gpus` GPUs, part by part."""

    gpus: int
    weights: float = 0.0
    cache: float = 0.0
    """Keys and values."""
    gradients: float = 0.0
    optimizer: float = 0.0
    reference: float = 0.0
    activations: float = 0.0
    buffers: float = 0.0
    """What DeepSpeed gathers and reduces through."""

    @property
    def total(self) -> float:
        """All of it."""
        return sum(getattr(self, part.name) for part in fields(self) if part.name != "gpus")


def served(architecture: Architecture, gpu: Gpu, *, gpus: int, sequence: float) -> Memory:
    """A model that answers, split over `gpus` by tensor parallelism: weights, and a cache that fills what is left.

    Keys and values of one head are whole on some GPU: more GPUs than kv_heads hold copies.
    """
    weights = _SERVED_BYTES * architecture.num_parameters / gpus
    most = max(0.0, SERVED_SHARE * gpu.memory_bytes - weights)
    per_sequence = sequence * cache_bytes(architecture, gpus=gpus)
    return Memory(gpus=gpus, weights=weights, cache=min(most, max(1.0, most // per_sequence) * per_sequence))


def cache_bytes(architecture: Architecture, *, gpus: int) -> float:
    """Keys and values of one token on each GPU."""
    return architecture.cache_bytes_per_token(_SERVED_BYTES) / min(gpus, architecture.num_kv_heads)


def num_served_sequences(architecture: Architecture, gpu: Gpu, *, gpus: int, sequence: float) -> int:
    """How many sequences of that length fit beside the weights; 0 where the weights do not."""
    free = SERVED_SHARE * gpu.memory_bytes - _SERVED_BYTES * architecture.num_parameters / gpus
    return max(0, int(free // (sequence * cache_bytes(architecture, gpus=gpus))))


def fewest_serving(architecture: Architecture, gpu: Gpu, *, sequence: float) -> int:
    """The fewest GPUs of one replica; InvalidInputError where even one for each head is not enough.

    Tensor parallelism splits heads evenly, so the number divides them.
    """
    for gpus in range(1, architecture.num_heads + 1):
        if architecture.num_heads % gpus:
            continue
        if num_served_sequences(architecture, gpu, gpus=gpus, sequence=sequence) >= MIN_SEQUENCES:
            return gpus
    raise InvalidInputError(
        f"weights of {_SERVED_BYTES * architecture.num_parameters / 1e9:.1f} GB do not fit on "
        f"{architecture.num_heads} GPUs of {gpu.memory_gb:g} GB, one for each head"
    )


def trained(
    architecture: Architecture, engine: EngineSettings, *, gpus: int, has_reference: bool, longest: float
) -> Memory:
    """A model in training on `gpus` processes.

    Weights, gradients and optimiser are 16 bytes a parameter with AdamW in mixed precision, split over the processes
    from `zero_stage` 1 (optimiser), 2 (gradients) or 3 (weights) on: Rajbhandari et al. 2019 (1910.02054) §3.1, §5. The
    reference is a whole copy on each GPU. Activations are 34 · tokens · width bytes a layer, without attention's
    matrices that fused kernels never write; with checkpointing 2 · tokens · width a layer and one layer whole:
    Korthikanti et al. 2022 (2205.05198) eq. 1 and table 2.
    """
    weight, gradient, optimizer = _STATE_BYTES[engine.precision]
    # DeepSpeed keeps the master copies of bfloat16 weights split even where nothing else is.
    stage = max(engine.zero_stage, 1) if engine.precision == "bfloat16" else engine.zero_stage
    parameters = architecture.num_parameters
    learning = architecture.adapter_parameters(engine.lora.rank) if engine.lora else parameters
    everything = parameters + (learning if engine.lora else 0)
    weights_split = gpus if stage == 3 else 1
    tokens = max(engine.micro_batch_tokens, longest)
    layer = _ACTIVATION_BYTES * tokens * architecture.hidden_size
    kept = 2 * tokens * architecture.hidden_size * architecture.num_layers
    gathered = min(parameters, _GATHERED_PARAMETERS) * weight if stage == 3 and gpus > 1 else 0
    return Memory(
        gpus=gpus,
        weights=0.0 if engine.offload == "optimizer_and_weights" else weight * everything / weights_split,
        gradients=gradient * learning / (gpus if stage >= 2 else 1),
        optimizer=0.0 if engine.offload != "none" else optimizer * learning / (gpus if stage >= 1 else 1),
        reference=weight * parameters if has_reference and engine.lora is None else 0.0,
        activations=(kept + layer if engine.gradient_checkpointing else layer * architecture.num_layers)
        + _LOGITS_BYTES,
        buffers=gathered + _BUCKET_BYTES,
    )


def loading_bytes(architecture: Architecture, engine: EngineSettings, *, has_reference: bool) -> float:
    """What each GPU holds while a training starts, before weights are split: the policy whole, and the reference."""
    copies = 2 if has_reference and engine.lora is None else 1
    return copies * _STATE_BYTES[engine.precision][0] * architecture.num_parameters


def fewest_training(
    architecture: Architecture, gpu: Gpu, engine: EngineSettings, *, has_reference: bool, longest: float
) -> int:
    """The fewest GPUs that a training fits on; InvalidInputError says what stands in the way where there are none."""
    room = TRAINED_SHARE * gpu.memory_bytes
    whole = loading_bytes(architecture, engine, has_reference=has_reference)
    if whole > room:
        copies = "policy and reference are" if has_reference and engine.lora is None else "the model is"
        raise InvalidInputError(
            f"{copies} whole on each GPU when a training starts, {whole / 1e9:.0f} GB, and a GPU has {gpu.memory_gb:g} "
            "GB; take a larger GPU, a smaller policy, or an adapter (engine.lora)"
        )
    for gpus in (1, 2, 4, *range(8, MAX_GPUS + 1, 8)):
        needed = trained(architecture, engine, gpus=gpus, has_reference=has_reference, longest=longest)
        if needed.total <= room:
            return gpus
    least = trained(architecture, engine, gpus=MAX_GPUS, has_reference=has_reference, longest=longest)
    raise InvalidInputError(
        f"a training takes {least.total / 1e9:.0f} GB on each GPU however many there are, and a GPU has "
        f"{gpu.memory_gb:g} GB: set engine.zero_stage to 3, engine.gradient_checkpointing to true, or a smaller "
        "engine.micro_batch_tokens"
    )
