"""What a plan rests on, in sentences."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from rlaif_pipelines.planning.memory import SERVED_SHARE
from rlaif_pipelines.planning.models import PlannedModel
from rlaif_pipelines.planning.work import num_held_out

if TYPE_CHECKING:
    from rlaif_pipelines.planning.planner import Planner


def sentences(planner: Planner, *, price: float) -> Iterator[str]:
    """Everything that the numbers of the plan follow from."""
    yield from planner.remarks
    yield from map(_model, {model.name: model for model in planner.models.values()}.values())
    yield from _texts(planner)
    yield from _software(planner)
    yield from _hardware(planner, price=price)
    yield "not counted: loading models, pulling images, waiting for GPUs, retries, people"


def _model(model: PlannedModel) -> str:
    shape = model.architecture
    active = f", {shape.num_active_parameters / 1e9:.2f}e9 of them for each token" if shape.num_experts else ""
    about = "" if shape.exact else "; about, for the formulas do not count this kind of model exactly"
    return f"{model.name}: {shape.num_parameters / 1e9:.2f}e9 parameters{active} (from {model.source}{about})"


def _texts(planner: Planner) -> Iterator[str]:
    lengths = planner.lengths
    yield (
        f"a prompt has {lengths.prompt:.0f} tokens, and every completion all of its {lengths.completion:.0f}: real "
        "ones are shorter, and so are their times"
    )
    yield (
        f"{planner.num_principles} principles; a label costs two prompts, each of {lengths.comparison:.0f} tokens "
        f"around its texts and {lengths.comparison_question:.0f} a principle"
    )
    yield f"{num_held_out(planner.settings)} held-out prompts in the evaluation"


def _software(planner: Planner) -> Iterator[str]:
    engine, settings = planner.settings.engine, planner.settings
    yield f"services: vLLM, bfloat16 weights, {SERVED_SHARE:.0%} of a GPU's memory, what prompts share read once"
    yield (
        f"training: {engine.precision}, ZeRO stage {engine.zero_stage}, micro-batches of {engine.micro_batch_tokens} "
        f"tokens, {'with' if engine.gradient_checkpointing else 'without'} gradient checkpointing"
    )
    if settings.algorithm == "grpo" and settings.pipeline == "rlaif":
        speed = planner.assumed.storage_bytes_per_second / 1e9
        yield f"each step's weights are written and read once, through storage of {speed:g} GB/s"
    if settings.pipeline != "label-only":
        parameters = planner.model("sampler").architecture.num_parameters
        yield (
            "the evaluation computes its KL in float32 in the pod of the task, without a GPU, at "
            f"{planner.assumed.pipeline_flops / 1e12:g} TFLOP/s: that pod needs {4 * parameters / 1e9:.1f} GB of memory"
        )


def _hardware(planner: Planner, *, price: float) -> Iterator[str]:
    hardware, names = planner.hardware, {model.name for model in planner.models.values()}
    gpu = hardware.gpu(planner.gpu)
    yield (
        f"{planner.gpu}: {gpu.memory_gb:g} GB, {gpu.tflops:g} TFLOP/s, {gpu.bandwidth_gb_per_second:g} GB/s "
        f"({gpu.source})"
    )
    for name, each in hardware.efficiencies.items():
        yield f"{name} at {each.share:.0%} {each.source}; {_measured(each.measured)}"
    for rate in hardware.rates:
        if rate.gpu == planner.gpu and rate.model in names:
            speed = f"{rate.tokens_per_second:g} tokens/s a GPU"
            yield f"{rate.work} of {rate.model} at {speed}: {rate.source}; {_measured(rate.measured)}"
    yield f"{price:g} USD a GPU hour" + ("" if planner.price is not None else ": a round figure, --price sets yours")


def _measured(by_us: bool) -> str:
    return "measured by us" if by_us else "not measured by us"
