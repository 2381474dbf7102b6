"""From what a user names to a planner: settings as `rlaif run` has them, models, lengths of texts, hardware."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean
from typing import Any, Final

from rlaif.core.errors import InvalidInputError
from rlaif.core.template import find_template
from rlaif_pipelines.planning.hardware import load_hardware
from rlaif_pipelines.planning.models import PlannedModel, find_model
from rlaif_pipelines.planning.planner import Planner
from rlaif_pipelines.planning.work import Lengths, Role
from rlaif_pipelines.settings import PLAYGROUND, RunSettings, make_settings
from rlaif_pipelines.stages.constitution import load_constitution
from rlaif_pipelines.stages.prompts_file import PromptSet, read_prompts

CHARACTERS_PER_TOKEN: Final = 4.0
"""Of English text and tokenizers of 100 thousand tokens and more; our assumption."""
_PROMPT_TOKENS: Final = 200.0
_CRITIQUE_TOKENS: Final = 80.0
_UNNAMED_PROMPTS: Final = "prompts.jsonl"
_GPU_ENGINE: Final = {"device": "cuda", "precision": "bfloat16", "zero_stage": 3, "gradient_checkpointing": True}
"""What a training on GPUs is told; the defaults of a run are for CPUs."""
_ADDRESS: Final = re.compile(r"[\w.\-]+:\d{1,5}")


@dataclass(frozen=True)
class PlanOptions:
    """What a plan is told beyond the run's settings."""

    gpu: str = "h100-80gb"
    gpus: Mapping[Role, int] = field(default_factory=dict)
    price: float | None = None
    hardware: Path | None = None
    prompt_tokens: float | None = None
    completion_tokens: float | None = None


def prepare_plan(values: Mapping[str, Any], options: PlanOptions) -> Planner:
    """A planner for the run that these settings, not yet checked, describe; errors say what is wrong in a sentence."""
    remarks: list[str] = []
    values = dict(values)
    if values.get("prompts") is None and values.get("policy") not in (None, PLAYGROUND):
        values["prompts"] = _UNNAMED_PROMPTS  # so that sizes are those for other people's models
    engine, added = values.get("engine") or {}, {}
    if isinstance(engine, Mapping):
        added = {key: value for key, value in _GPU_ENGINE.items() if key not in engine}
        values["engine"] = {**added, **engine}
    settings = make_settings(values)
    if settings.pipeline == "judge-benchmark":
        raise InvalidInputError(
            "a plan knows rlaif, label-only and evaluate-only, not judge-benchmark", field="pipeline"
        )
    if added:
        flags = " ".join(f"--set engine.{key}={str(value).lower()}" for key, value in added.items())
        remarks.append(f"a run like this is submitted with {flags}: those defaults are for CPUs")
    settings, prompts = _with_prompts(settings, remarks)
    lengths = _lengths(settings, prompts, options)
    constitution = load_constitution(settings.constitution)
    given = dict(options.gpus)
    if settings.jobs.pod.gpus:
        given.setdefault("trainer", settings.jobs.num_nodes * settings.jobs.pod.gpus)
    return Planner(
        settings=settings,
        models=_models(settings, remarks),
        lengths=lengths,
        num_principles=len(constitution.principles),
        hardware=load_hardware(options.hardware),
        gpu=options.gpu,
        given_gpus=given,
        price=options.price,
        remarks=tuple(remarks),
    )


def _with_prompts(settings: RunSettings, remarks: list[str]) -> tuple[RunSettings, PromptSet | None]:
    """The settings with no more prompts than the file has, and its prompts where it is here."""
    if settings.prompts is None or not settings.prompts.is_file():
        return settings, None
    prompts = read_prompts(settings.prompts, held_out_share=settings.held_out_share)
    num_train, num_held_out = len(prompts.of("train")), len(prompts.of("held_out"))
    sampling, evaluation = settings.sampling, settings.evaluation
    if num_train < sampling.num_prompts:
        remarks.append(f"{settings.prompts} has {num_train} prompts to train on, fewer than the {sampling.num_prompts}")
        sampling = sampling.model_copy(update={"num_prompts": num_train})
    evaluation = evaluation.model_copy(update={"num_other": min(evaluation.num_other, num_held_out)})
    return settings.model_copy(update={"sampling": sampling, "evaluation": evaluation}), prompts


def _lengths(settings: RunSettings, prompts: PromptSet | None, options: PlanOptions) -> Lengths:
    if options.prompt_tokens is not None:
        prompt = options.prompt_tokens
    elif prompts is not None:
        texts = (sum(len(message.content) for message in row.messages) for row in prompts.prompts)
        prompt = fmean(texts) / CHARACTERS_PER_TOKEN
    else:
        prompt = _PROMPT_TOKENS
    return Lengths.measure(
        load_constitution(settings.constitution),
        template=find_template(settings.judge_template),
        prompt=prompt,
        completion=options.completion_tokens or settings.sampling.max_tokens,
        critique=_CRITIQUE_TOKENS,
        characters_per_token=CHARACTERS_PER_TOKEN,
    )


def _models(settings: RunSettings, remarks: list[str]) -> dict[Role, PlannedModel]:
    models: dict[Role, PlannedModel] = {
        "sampler": find_model(settings.policy_uri, option="--policy"),
        "judge": find_model(settings.judge_uri, option="--judge"),
    }
    evaluator = settings.evaluator_uri
    if evaluator is None:
        remarks.append("no second judge: nothing independent is evaluated, and nothing planned for it")
    elif _ADDRESS.fullmatch(evaluator):
        remarks.append(f"the second judge at {evaluator} is somebody else's to plan")
    else:
        models["evaluator"] = find_model(evaluator, option="--evaluator")
    return models
