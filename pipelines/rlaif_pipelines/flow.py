"""The pipelines, readable top to bottom; the same graphs run on a laptop (kfp.local) and on a cluster."""

from __future__ import annotations

import inspect
import tempfile
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final

from kfp import compiler, dsl

from rlaif.core.errors import SettingsError
from rlaif_pipelines import components
from rlaif_pipelines.mounts import default_image
from rlaif_pipelines.parameters import Parameter, parameters_of
from rlaif_pipelines.placement import Retries, place_tasks
from rlaif_pipelines.settings import ConstitutionalStage, PipelineName


@dataclass(frozen=True)
class GraphOptions:
    """What is decided when a pipeline is compiled."""

    rounds: int = 1
    """KFP has no sequential loop: rounds are unrolled."""
    constitutional: ConstitutionalStage = "none"
    """A constitutional stage before the first round, or in the place of all rounds."""
    image: str = ""
    """What `image` is where a run does not say; empty for the image of this version."""
    retries: Retries = field(default_factory=Retries)


Given = Mapping[str, Any]
"""The pipeline's parameters by name."""


def build_pipeline(name: PipelineName = "rlaif", options: GraphOptions | None = None) -> Any:
    """The pipeline of that name, with the parameters that `parameters_of` lists; called with their values it runs.

    SettingsError for options that it has no use for.
    """
    options = options or GraphOptions()
    if name != "rlaif" and (options.rounds, options.constitutional) != (1, "none"):
        raise SettingsError(f"pipeline {name!r} has neither rounds nor a constitutional stage", field="rounds")
    if options.constitutional == "only" and options.rounds > 1:
        raise SettingsError("a constitutional stage in place of all rounds leaves none to repeat", field="rounds")
    body, description = _PIPELINES[name]
    parameters = [
        replace(parameter, default=options.image or default_image()) if parameter.name == "image" else parameter
        for parameter in parameters_of(name)
    ]

    def graph(*values: Any) -> None:
        given = dict(zip([parameter.name for parameter in parameters], values, strict=True))
        with dsl.ExitHandler(components.report(run_root=given["run_root"]), name="run"):
            body(given, options)
        place_tasks(given, retries=options.retries)

    _declare(graph, parameters, description=description)
    return dsl.pipeline(name=name if name == "rlaif" else f"rlaif-{name}", description=description)(graph)


def compiled_pipeline(name: PipelineName = "rlaif", options: GraphOptions | None = None) -> str:
    """A pipeline as YAML for Kubeflow Pipelines: the graph, and a second document with what is Kubernetes'."""
    with tempfile.TemporaryDirectory(prefix="rlaif-") as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # kfp's own
        path = Path(folder, "pipeline.yaml")
        compiler.Compiler().compile(build_pipeline(name, options), str(path))
        return path.read_text(encoding="utf-8")


def _rlaif(given: Given, options: GraphOptions) -> None:
    """Prompts; with a constitutional stage the policy's own replies, revised and learnt; then the rounds."""
    run_root, rounds = given["run_root"], options.rounds
    branch = _prepare("rlaif", given, options)
    prompts = components.load_prompts(run_root=run_root, branch=branch)
    baseline = components.sample_baseline(run_root=run_root, prompts=prompts.outputs["prompts"])
    shared = {"run_root": run_root, "branch": branch, "prompts": prompts, "baseline": baseline}
    if options.constitutional == "none":
        _round(1, rounds, **shared, after=baseline)
        return
    # The base answers before training moves the sampler on.
    revisions = components.revise(run_root=run_root, prompts=prompts.outputs["prompts"]).after(baseline)
    gate = components.revision_gate(run_root=run_root, revisions=revisions.output)
    with dsl.If(gate.outputs["Output"] == "passed", name="revisions-passed"):
        tuned = components.fine_tune(run_root=run_root, conversations=gate.outputs["conversations"])
        policy = tuned.outputs["Output"]
        if options.constitutional == "first":
            _round(1, rounds, **shared, after=tuned, policy=policy)
        else:
            _evaluate(run_root, policy=policy, baseline=baseline)


def _label_only(given: Given, options: GraphOptions) -> None:
    """Labels of the policy's completions, and what the gate says of them."""
    run_root = given["run_root"]
    branch = _prepare("label-only", given, options)
    prompts = components.load_prompts(run_root=run_root, branch=branch)
    _labels(1, run_root=run_root, prompts=prompts)


def _evaluate_only(given: Given, options: GraphOptions) -> None:
    """Held-out completions of the policy and of a model made elsewhere, held against each other."""
    run_root = given["run_root"]
    branch = _prepare("evaluate-only", given, options)
    prompts = components.load_prompts(run_root=run_root, branch=branch)
    baseline = components.sample_baseline(run_root=run_root, prompts=prompts.outputs["prompts"])
    adopted = components.adopt(run_root=run_root, baseline=baseline.output)
    _evaluate(run_root, policy=adopted.outputs["Output"], baseline=baseline)


def _judge_benchmark(given: Given, options: GraphOptions) -> None:
    """The judge's labels of pairs that people or rules have labelled, held against theirs, and against its bound."""
    run_root = given["run_root"]
    branch = _prepare("judge-benchmark", given, options)
    pairs = components.load_pairs(run_root=run_root, branch=branch)
    labels = _judged(1, run_root=run_root, parts=pairs.outputs["Output"], completions=pairs.outputs["pairs"])
    measured = components.benchmark(run_root=run_root, labels=labels)
    components.judge_gate(run_root=run_root, quality=measured.outputs["quality"])


_PIPELINES: Final[Mapping[PipelineName, tuple[Callable[[Given, GraphOptions], None], str]]] = {
    "rlaif": (_rlaif, "A better policy from AI feedback, or a reason why not."),
    "label-only": (_label_only, "Labels by AI feedback, and whether they may train anything."),
    "evaluate-only": (_evaluate_only, "Is a model better than the policy? By evidence independent of the judge."),
    "judge-benchmark": (
        _judge_benchmark,
        "How often is the judge right about pairs that others have labelled?",
    ),
}


def _prepare(name: PipelineName, given: Given, options: GraphOptions) -> Any:
    taken = components.prepare.component_spec.inputs
    return components.prepare(
        pipeline=name,
        rounds=options.rounds,
        constitutional=options.constitutional,
        **{key: value for key, value in given.items() if key in taken},
    ).output


def _round(
    number: int,
    rounds: int,
    *,
    run_root: Any,
    branch: Any,
    prompts: Any,
    baseline: Any,
    after: Any,
    policy: Any = None,
) -> None:
    """Sample, judge, gate, train, evaluate; then the next round, from the policy this one left."""
    labels, gate = _labels(number, run_root=run_root, prompts=prompts, policy=policy, after=after)
    with dsl.If(gate.outputs["Output"] == "passed", name=f"gate-passed-{number}"):
        trained = _train(number, run_root=run_root, branch=branch, prompts=prompts.outputs["prompts"], labels=labels)
        evaluation = components.evaluate(
            run_root=run_root, round_number=number, policy=trained, baseline=baseline.output
        )
        if number == rounds:
            components.promote(run_root=run_root, evaluation=evaluation.output)
            return
        shared = {"run_root": run_root, "branch": branch, "prompts": prompts, "baseline": baseline}
        _round(number + 1, rounds, **shared, after=evaluation, policy=trained)


def _labels(number: int, *, run_root: Any, prompts: Any, policy: Any = None, after: Any = None) -> tuple[Any, Any]:
    """Completions and their labels, each made in parts; the labels, and the gate's word on them."""
    step = {"run_root": run_root, "round_number": number}
    parts = prompts.outputs["Output"]
    with dsl.ParallelFor(parts, name=f"sample-parts-{number}") as part:
        given = {**step, "part": part, "prompts": prompts.outputs["prompts"]}
        sampled = components.sample(**given) if policy is None else components.sample_again(**given, policy=policy)
        if after is not None:
            sampled.after(after)
    completions = components.gather_completions(**step, parts=dsl.Collected(sampled.output))
    labels = _judged(number, run_root=run_root, parts=parts, completions=completions.output)
    return labels, components.quality_gate(**step, labels=labels)


def _judged(number: int, *, run_root: Any, parts: Any, completions: Any) -> Any:
    """The judge's labels, made in parts."""
    step = {"run_root": run_root, "round_number": number}
    with dsl.ParallelFor(parts, name=f"label-parts-{number}") as part:
        labelled = components.label(**step, part=part, completions=completions)
    return components.gather_labels(**step, parts=dsl.Collected(labelled.output)).output


def _evaluate(run_root: Any, *, policy: Any, baseline: Any) -> None:
    """Evaluation of a policy that no round has trained, and what follows from it."""
    evaluation = components.evaluate(run_root=run_root, round_number=1, policy=policy, baseline=baseline.output)
    components.promote(run_root=run_root, evaluation=evaluation.output)


def _train(number: int, *, run_root: Any, branch: Any, prompts: Any, labels: Any) -> Any:
    """The three branches from labels to a policy."""
    step = {"run_root": run_root, "round_number": number}
    with dsl.If(branch == "dpo", name=f"dpo-{number}"):
        preferred = components.train_on_preferences(**step, labels=labels)
    with dsl.Elif(branch == "direct", name=f"direct-{number}"):
        direct = components.train_directly(**step, prompts=prompts)
    with dsl.Else(name=f"with-reward-model-{number}"):
        reward_model = components.train_reward_model(**step, labels=labels)
        watched = components.train_with_reward_model(
            **step, prompts=prompts, reward_model=reward_model.outputs["reward_model"]
        )
    # The policy's folder, a parameter: kfp.local cannot choose between artifacts.
    return dsl.OneOf(preferred.outputs["Output"], direct.outputs["Output"], watched.outputs["Output"])


def _declare(graph: Callable[..., None], parameters: list[Parameter], *, description: str) -> None:
    """Have KFP see the parameters as if they had been written into the function."""
    # Those without a default first, as Python has it.
    graph.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
        [
            inspect.Parameter(
                parameter.name,
                inspect.Parameter.POSITIONAL_OR_KEYWORD,
                default=inspect.Parameter.empty if parameter.required else parameter.default,
                annotation=parameter.kind,
            )
            for parameter in parameters
        ]
    )
    meanings = "".join(f"    {parameter.name}: {parameter.meaning}\n" for parameter in parameters)
    graph.__doc__ = f"{description}\n\nArgs:\n{meanings}"
