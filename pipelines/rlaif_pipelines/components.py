"""One thin KFP component a stage: what it reads, what it leaves, and one call.

Every task works on the run folder and artifacts carry its URIs and digests, so a UI shows what came of what. KFP ships
each function to its task as text and reads its annotations at once: components import inside, and this module has no
postponed annotations.
"""

import functools
from typing import Any, List  # noqa: UP035 - KFP reads typing.List

from kfp import dsl
from kfp.dsl import (
    HTML,
    ClassificationMetrics,
    Dataset,
    Input,
    Markdown,
    Metrics,
    Model,
    Output,
    PipelineTaskFinalStatus,
)

_component: Any = functools.partial(dsl.component, base_image="python:3.11", install_kfp_package=False)
"""The image stands for none: every task gets its own when the pipeline is built."""


@_component
def prepare(
    run_root: str,
    pipeline: str,
    rounds: int,
    constitutional: str,
    settings: dict,  # type: ignore[type-arg]
    services: dict,  # type: ignore[type-arg]
    prompts: str = "",
    policy: str = "",
    judge: str = "",
    constitution: str = "",
    evaluator: str = "",
    artifact_root: str = "",
    policy_resource: str = "",
    algorithm: str = "",
    reward: str = "",
    human_labels: str = "",
    promote_to: str = "",
    candidate: str = "",
    pairs: str = "",
    steps: int = 0,
    launcher: str = "",
    trainer_image: str = "",
    num_nodes: int = 0,
    gpu_type: str = "",
    gpu_count: int = 0,
    gpu_node_selector: dict = {},  # type: ignore[type-arg]  # noqa: B006 - KFP keeps the default as text
    gpu_tolerations: list = [],  # type: ignore[type-arg]  # noqa: B006
    num_prompts: int = 0,
    num_completions: int = 0,
    max_tokens: int = 0,
    num_shards: int = 0,
    seed: int = 0,
    sampler_address: str = "",
    judge_address: str = "",
    ledger_address: str = "",
    reward_address: str = "",
    evaluator_address: str = "",
    image: str = "",
    volume_claim: str = "",
    token_secret: str = "",
    tls_secret: str = "",
    storage_secret: str = "",
) -> str:
    """Check the settings, write run.json, identify models, rules and services; the branch to take."""
    given = dict(locals())
    from rlaif_pipelines.stages.runner import begin, run

    begin(given)
    return str(run("prepare", run_root=run_root).values["branch"])


@_component
def load_prompts(run_root: str, branch: str, prompts: Output[Dataset]) -> List[int]:  # noqa: UP006
    """Prompts, validated, deduplicated and split; the numbers of the parts in which they are worked on."""
    from rlaif_pipelines.artifacts import describe_file
    from rlaif_pipelines.stages.runner import parts, run

    describe_file(prompts, run("prompts", run_root=run_root), "prompts.jsonl")
    return parts(run_root)


@_component
def load_pairs(run_root: str, branch: str, pairs: Output[Dataset]) -> List[int]:  # noqa: UP006
    """Pairs that were labelled elsewhere, validated; the numbers of the parts in which they are worked on."""
    from rlaif_pipelines.artifacts import describe_file
    from rlaif_pipelines.stages.runner import parts, run

    describe_file(pairs, run("pairs", run_root=run_root), "pairs.jsonl")
    return parts(run_root)


@_component
def sample_baseline(run_root: str, prompts: Input[Dataset], completions: Output[Dataset]) -> None:
    """Held-out completions of the base policy."""
    from rlaif_pipelines.artifacts import describe_file
    from rlaif_pipelines.stages.runner import run

    describe_file(completions, run("baseline", run_root=run_root), "completions.jsonl")


@_component
def revise(run_root: str, prompts: Input[Dataset], revisions: Output[Dataset]) -> None:
    """The base policy's own replies, criticised and revised by the judge."""
    from rlaif_pipelines.artifacts import describe_file
    from rlaif_pipelines.stages.runner import run

    describe_file(revisions, run("revise", run_root=run_root), "revisions.jsonl")


@_component
def revision_gate(run_root: str, revisions: Input[Dataset], conversations: Output[Dataset]) -> str:
    """Whether the revisions may teach anything: "passed" or "stopped"."""
    from rlaif_pipelines.artifacts import describe_file
    from rlaif_pipelines.stages.runner import run

    result = run("revision_gate", run_root=run_root)
    describe_file(conversations, result, "conversations.jsonl")
    return "passed" if result.values["passed"] else "stopped"


@_component
def fine_tune(run_root: str, conversations: Input[Dataset], policy: Output[Model], figures: Output[Metrics]) -> str:
    """Supervised fine-tuning on the revised replies."""
    from rlaif_pipelines.artifacts import describe_model, log_figures
    from rlaif_pipelines.stages.runner import run

    result = run("sft", run_root=run_root)
    describe_model(policy, result)
    log_figures(figures, result.values["results"])
    return str(result.values["uri"])


@_component
def sample(run_root: str, round_number: int, part: int, prompts: Input[Dataset], completions: Output[Dataset]) -> None:
    """One part of the completions for the judge."""
    from rlaif_pipelines.artifacts import describe_file
    from rlaif_pipelines.stages.runner import run

    result = run("sample", run_root=run_root, round_number=round_number, part=part)
    describe_file(completions, result, "completions.jsonl")


@_component
def sample_again(
    run_root: str, round_number: int, part: int, prompts: Input[Dataset], policy: str, completions: Output[Dataset]
) -> None:
    """One part of the completions for the judge, from what the stage before trained."""
    from rlaif_pipelines.artifacts import describe_file
    from rlaif_pipelines.stages.runner import run

    result = run("sample", run_root=run_root, round_number=round_number, part=part)
    describe_file(completions, result, "completions.jsonl")


@_component
def gather_completions(
    run_root: str,
    round_number: int,
    parts: Input[List[Dataset]],  # noqa: UP006
    completions: Output[Dataset],
) -> None:
    """All completions of the round."""
    from rlaif_pipelines.artifacts import describe_file
    from rlaif_pipelines.stages.runner import gather

    result = gather("sample", run_root=run_root, round_number=round_number)
    describe_file(completions, result, "completions.jsonl")


@_component
def label(run_root: str, round_number: int, part: int, completions: Input[Dataset], labels: Output[Dataset]) -> None:
    """One part of the soft labels of pairs, by the judge, under the constitution."""
    from rlaif_pipelines.artifacts import describe_file
    from rlaif_pipelines.stages.runner import run

    result = run("judge", run_root=run_root, round_number=round_number, part=part)
    describe_file(labels, result, "labels.jsonl")


@_component
def gather_labels(
    run_root: str,
    round_number: int,
    parts: Input[List[Dataset]],  # noqa: UP006
    labels: Output[Dataset],
) -> None:
    """All labels of the round."""
    from rlaif_pipelines.artifacts import describe_file
    from rlaif_pipelines.stages.runner import gather

    describe_file(labels, gather("judge", run_root=run_root, round_number=round_number), "labels.jsonl")


@_component
def quality_gate(
    run_root: str,
    round_number: int,
    labels: Input[Dataset],
    quality: Output[Metrics],
    against_reference: Output[ClassificationMetrics],
) -> str:
    """Whether the labels may train anything: "passed" or "stopped"; the labels against gold or people's."""
    from rlaif_pipelines.artifacts import log_classification, log_figures
    from rlaif_pipelines.context import read_json
    from rlaif_pipelines.stages.runner import run

    result = run("gate", run_root=run_root, round_number=round_number)
    found = read_json(result.path("gate.json"))
    log_figures(quality, {key: found[key] for key in ("passed", "quality", "label_accuracy", "judge_accuracy")})
    log_classification(against_reference, found["classification"])
    return "passed" if result.values["passed"] else "stopped"


@_component
def train_reward_model(
    run_root: str,
    round_number: int,
    labels: Input[Dataset],
    reward_model: Output[Model],
    figures: Output[Metrics],
    held_out: Output[ClassificationMetrics],
) -> None:
    """Reward model from the soft labels; how well it tells held-out labels apart."""
    from rlaif_pipelines.artifacts import describe_model, log_classification, log_figures
    from rlaif_pipelines.context import read_json
    from rlaif_pipelines.stages.runner import run

    result = run("reward_model", run_root=run_root, round_number=round_number)
    describe_model(reward_model, result)
    log_figures(figures, result.values["results"])
    log_classification(held_out, read_json(result.path("classification.json")))


@_component
def train_directly(
    run_root: str, round_number: int, prompts: Input[Dataset], policy: Output[Model], figures: Output[Metrics]
) -> str:
    """GRPO on the judge's expected score."""
    from rlaif_pipelines.artifacts import describe_model, log_figures
    from rlaif_pipelines.stages.runner import run

    result = run("train", run_root=run_root, round_number=round_number)
    describe_model(policy, result)
    log_figures(figures, result.values["results"])
    return str(result.values["uri"])


@_component
def train_with_reward_model(
    run_root: str,
    round_number: int,
    prompts: Input[Dataset],
    reward_model: Input[Model],
    policy: Output[Model],
    figures: Output[Metrics],
) -> str:
    """GRPO with the reward model as reward, or watching."""
    from rlaif_pipelines.artifacts import describe_model, log_figures
    from rlaif_pipelines.stages.runner import run

    result = run("train", run_root=run_root, round_number=round_number)
    describe_model(policy, result)
    log_figures(figures, result.values["results"])
    return str(result.values["uri"])


@_component
def train_on_preferences(
    run_root: str, round_number: int, labels: Input[Dataset], policy: Output[Model], figures: Output[Metrics]
) -> str:
    """DPO on the soft labels."""
    from rlaif_pipelines.artifacts import describe_model, log_figures
    from rlaif_pipelines.stages.runner import run

    result = run("train", run_root=run_root, round_number=round_number)
    describe_model(policy, result)
    log_figures(figures, result.values["results"])
    return str(result.values["uri"])


@_component
def adopt(run_root: str, baseline: Input[Dataset], policy: Output[Model]) -> str:
    """A model that was made elsewhere, published for the sampler."""
    from rlaif_pipelines.artifacts import describe_model
    from rlaif_pipelines.stages.runner import run

    result = run("adopt", run_root=run_root)
    describe_model(policy, result)
    return str(result.values["uri"])


@_component
def evaluate(
    run_root: str, round_number: int, policy: str, baseline: Input[Dataset], evaluation: Output[Metrics]
) -> None:
    """Held-out evaluation of the trained policy against the base."""
    from rlaif_pipelines.artifacts import log_figures
    from rlaif_pipelines.context import read_json
    from rlaif_pipelines.stages.runner import run

    result = run("evaluate", run_root=run_root, round_number=round_number)
    found = read_json(result.path("evaluation.json"))
    log_figures(evaluation, {key: value for key, value in found.items() if key not in ("round", "judge_accuracy")})


@_component
def promote(run_root: str, evaluation: Input[Metrics], policy: Output[Model]) -> None:
    """The policy that is used gets the weights, where they are an improvement."""
    from rlaif_pipelines.artifacts import describe_model
    from rlaif_pipelines.stages.runner import run

    describe_model(policy, run("promote", run_root=run_root))


@_component
def benchmark(
    run_root: str,
    labels: Input[Dataset],
    quality: Output[Metrics],
    by_slice: Output[Metrics],
    against_reference: Output[ClassificationMetrics],
) -> None:
    """The judge's labels against those that were given."""
    from rlaif_pipelines.artifacts import log_classification, log_figures
    from rlaif_pipelines.context import read_json
    from rlaif_pipelines.stages.runner import run

    found = read_json(run("benchmark", run_root=run_root).path("benchmark.json"))
    log_figures(quality, found["statistics"].pop(""))
    log_figures(by_slice, found["statistics"])
    log_classification(against_reference, found["classification"])


@_component
def judge_gate(run_root: str, quality: Input[Metrics]) -> None:
    """Fails where the judge is worse than the settings ask of it."""
    from rlaif_pipelines.stages.runner import run

    run("judge_gate", run_root=run_root)


@_component
def report(run_root: str, status: PipelineTaskFinalStatus, page: Output[HTML], summary: Output[Markdown]) -> None:
    """The report, whatever happened before."""
    from rlaif_pipelines.artifacts import write_page
    from rlaif_pipelines.stages import runner

    result = runner.report(run_root=run_root)
    write_page(page, result.path("report.html"))
    write_page(summary, result.path("summary.md"))
