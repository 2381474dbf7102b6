"""How long the work of a stage takes a role, from peaks and shares, or from measured rates where there are any."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from rlaif_pipelines.planning.architecture import Architecture
from rlaif_pipelines.planning.hardware import Gpu, Hardware, Work
from rlaif_pipelines.planning.memory import num_served_sequences
from rlaif_pipelines.planning.work import Load

_WEIGHT_BYTES: Final = 2
MAX_SEQUENCES: Final = 256
"""Sequences that vLLM decodes side by side, by its setting `max_sequences`."""


@dataclass(frozen=True)
class Group:
    """GPUs that work alike: `replicas` copies of a model over `gpus_each` GPUs; of a training one copy over all."""

    gpu_name: str
    gpu: Gpu
    model: str
    architecture: Architecture
    gpus_each: int
    replicas: int = 1

    @property
    def gpus(self) -> int:
        """All of them."""
        return self.gpus_each * self.replicas


@dataclass(frozen=True)
class Training:
    """How a model is trained, as far as it changes the FLOPs."""

    checkpointing: bool = False
    adapter: bool = False


def seconds(load: Load, group: Group, hardware: Hardware, *, training: Training | None = None) -> float:
    """Time of a stage's load on a group of GPUs."""
    training = training or Training()
    # A training reads without vLLM.
    work: Work = "training" if load.role == "trainer" else "prefill"
    found = prefill_seconds(load.prefill, group, hardware, context=load.sequence / 2, work=work)
    if load.decode:
        found += load.decode / decode_rate(load, group, hardware)
    if load.training:
        found += training_seconds(load.training, group, hardware, context=load.sequence / 2, training=training)
    return found


def prefill_seconds(
    tokens: float, group: Group, hardware: Hardware, *, context: float, work: Work = "prefill"
) -> float:
    """Tokens · FLOPs forward / (GPUs · peak FLOPs · share)."""
    rate = hardware.rate(gpu=group.gpu_name, model=group.model, work="prefill")
    if rate is not None and work == "prefill":
        return tokens / (group.gpus * rate.tokens_per_second)
    share = hardware.efficiencies[work].share
    return tokens * group.architecture.forward_flops(context) / (group.gpus * group.gpu.flops * share)


def training_seconds(tokens: float, group: Group, hardware: Hardware, *, context: float, training: Training) -> float:
    """Tokens · FLOPs forward and backward / (GPUs · peak FLOPs · share); the share is the model FLOPs utilisation."""
    rate = hardware.rate(gpu=group.gpu_name, model=group.model, work="training")
    if rate is not None:
        return tokens / (group.gpus * rate.tokens_per_second)
    flops = group.architecture.training_flops(context, checkpointing=training.checkpointing, adapter=training.adapter)
    return tokens * flops / (group.gpus * group.gpu.flops * hardware.efficiencies["training"].share)


def decode_rate(load: Load, group: Group, hardware: Hardware) -> float:
    """Tokens a second that all replicas write together.

    A step writes one token of each of b sequences. It takes as long as reading all weights and the keys and values of
    those sequences from memory, or as computing b tokens, whichever is longer (Pope et al. 2022, 2211.05102 §2). b is
    what fits beside the weights, at most 256 and at most the sequences there are.
    """
    rate = hardware.rate(gpu=group.gpu_name, model=group.model, work="decode")
    if rate is not None:
        return group.gpus * rate.tokens_per_second
    shape, gpu = group.architecture, group.gpu
    batch = decode_batch(load, group)
    context = load.sequence - load.written / 2
    read = _WEIGHT_BYTES * shape.num_parameters + batch * context * shape.cache_bytes_per_token(_WEIGHT_BYTES)
    reading = read / (group.gpus_each * gpu.bandwidth * hardware.efficiencies["decode"].share)
    computed = batch * shape.forward_flops(context)
    computing = computed / (group.gpus_each * gpu.flops * hardware.efficiencies["prefill"].share)
    return group.replicas * batch / max(reading, computing)


def decode_batch(load: Load, group: Group) -> float:
    """Sequences that one replica decodes side by side."""
    fitting = num_served_sequences(
        group.architecture, group.gpu, gpus=group.gpus_each, sequence=max(1.0, load.sequence)
    )
    return max(1.0, min(MAX_SEQUENCES, fitting, load.num_sequences / group.replicas))
