"""One thin KFP component a stage: what it reads, what it leaves, and one call.

Every task works on the run folder and artifacts carry its URIs and digests, so a UI shows what came of what. KFP ships
each function to its task as text and reads its annotations at once: components import inside, and this module has no
postponed annotations.
"""

import functools
from typing import Any

from kfp import dsl
from kfp.dsl import HTML, Dataset, Input, Metrics, Model, Output, PipelineTaskFinalStatus

IMAGE = "ghcr.io/kube-rlaif/rlaif-pipelines-python:0.1.0"
"""Image of every task. kfp.local warns about images whose name does not say python."""

_component: Any = functools.partial(dsl.component, base_image=IMAGE, install_kfp_package=False)


@_component
def prepare(run_root: str, settings: dict, services: dict) -> str:  # type: ignore[type-arg]
    """Check the settings, write run.json, identify models and constitution; the branch to take."""
    from rlaif_pipelines.stages.prepare import create_run_from
    from rlaif_pipelines.stages.runner import run

    create_run_from(run_root, settings=settings, services=services)
    return str(run("prepare", run_root=run_root).values["branch"])


@_component
def load_prompts(run_root: str, branch: str, prompts: Output[Dataset]) -> None:
    """Prompts, validated, deduplicated and split."""
    from rlaif_pipelines.stages.runner import describe, run

    describe(prompts, run("prompts", run_root=run_root), file="prompts.jsonl")


@_component
def sample_baseline(run_root: str, prompts: Input[Dataset], completions: Output[Dataset]) -> None:
    """Held-out completions of the base policy."""
    from rlaif_pipelines.stages.runner import describe, run

    describe(completions, run("baseline", run_root=run_root), file="completions.jsonl")


@_component
def revise(run_root: str, prompts: Input[Dataset], revisions: Output[Dataset]) -> None:
    """The base policy's own replies, criticised and revised by the judge."""
    from rlaif_pipelines.stages.runner import describe, run

    describe(revisions, run("revise", run_root=run_root), file="revisions.jsonl")


@_component
def revision_gate(run_root: str, revisions: Input[Dataset], conversations: Output[Dataset]) -> str:
    """Whether the revisions may teach anything: "passed" or "stopped"."""
    from rlaif_pipelines.stages.runner import describe, run

    result = run("revision_gate", run_root=run_root)
    describe(conversations, result, file="conversations.jsonl")
    return "passed" if result.values["passed"] else "stopped"


@_component
def fine_tune(run_root: str, conversations: Input[Dataset], policy: Output[Model]) -> str:
    """Supervised fine-tuning on the revised replies."""
    from rlaif_pipelines.stages.runner import describe, run

    result = run("sft", run_root=run_root)
    describe(policy, result)
    return str(result.values["uri"])


@_component
def sample(run_root: str, round_number: int, prompts: Input[Dataset], completions: Output[Dataset]) -> None:
    """Completions for the judge."""
    from rlaif_pipelines.stages.runner import describe, run

    describe(completions, run("sample", run_root=run_root, round_number=round_number), file="completions.jsonl")


@_component
def sample_again(
    run_root: str, round_number: int, prompts: Input[Dataset], policy: str, completions: Output[Dataset]
) -> None:
    """Completions for the judge, from what the stage before trained."""
    from rlaif_pipelines.stages.runner import describe, run

    describe(completions, run("sample", run_root=run_root, round_number=round_number), file="completions.jsonl")


@_component
def label(run_root: str, round_number: int, completions: Input[Dataset], labels: Output[Dataset]) -> None:
    """Soft labels of pairs, by the judge, under the constitution."""
    from rlaif_pipelines.stages.runner import describe, run

    describe(labels, run("judge", run_root=run_root, round_number=round_number), file="labels.jsonl")


@_component
def quality_gate(run_root: str, round_number: int, labels: Input[Dataset], quality: Output[Metrics]) -> str:
    """Whether the labels may train anything: "passed" or "stopped"."""
    from rlaif_pipelines.stages.runner import describe, run

    result = run("gate", run_root=run_root, round_number=round_number)
    describe(quality, result, file="gate.json")
    return "passed" if result.values["passed"] else "stopped"


@_component
def train_reward_model(run_root: str, round_number: int, labels: Input[Dataset], reward_model: Output[Model]) -> None:
    """Reward model from the soft labels."""
    from rlaif_pipelines.stages.runner import describe, run

    describe(reward_model, run("reward_model", run_root=run_root, round_number=round_number))


@_component
def train_directly(run_root: str, round_number: int, prompts: Input[Dataset], policy: Output[Model]) -> str:
    """GRPO on the judge's expected score."""
    from rlaif_pipelines.stages.runner import describe, run

    result = run("train", run_root=run_root, round_number=round_number)
    describe(policy, result)
    return str(result.values["uri"])


@_component
def train_with_reward_model(
    run_root: str, round_number: int, prompts: Input[Dataset], reward_model: Input[Model], policy: Output[Model]
) -> str:
    """GRPO with the reward model as reward, or watching."""
    from rlaif_pipelines.stages.runner import describe, run

    result = run("train", run_root=run_root, round_number=round_number)
    describe(policy, result)
    return str(result.values["uri"])


@_component
def train_on_preferences(run_root: str, round_number: int, labels: Input[Dataset], policy: Output[Model]) -> str:
    """DPO on the soft labels."""
    from rlaif_pipelines.stages.runner import describe, run

    result = run("train", run_root=run_root, round_number=round_number)
    describe(policy, result)
    return str(result.values["uri"])


@_component
def evaluate(
    run_root: str, round_number: int, policy: str, baseline: Input[Dataset], evaluation: Output[Metrics]
) -> None:
    """Held-out evaluation of the trained policy against the base."""
    from rlaif_pipelines.stages.runner import describe, run

    describe(evaluation, run("evaluate", run_root=run_root, round_number=round_number), file="evaluation.json")


@_component
def report(run_root: str, status: PipelineTaskFinalStatus, page: Output[HTML]) -> None:
    """The report, whatever happened before."""
    from rlaif_pipelines.stages.runner import describe, run

    describe(page, run("report", run_root=run_root), file="report.html")
