"""The pipeline, readable top to bottom; the same graph runs on a laptop (kfp.local) and on a cluster."""

from __future__ import annotations

import contextlib
import os
import sys
import tempfile
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from kfp import compiler, dsl

from rlaif_pipelines import components
from rlaif_pipelines.context import RUN_FILE, read_json
from rlaif_pipelines.outcome import PipelineFailedError, RunOutcome, events_size, read_outcome
from rlaif_pipelines.settings import ConstitutionalStage, RunSettings


def build_pipeline(*, rounds: int = 1, constitutional: ConstitutionalStage = "none") -> Any:
    """The pipeline `rlaif` with that many rounds: KFP has no sequential loop, so they are unrolled here.

    `constitutional` puts the constitutional stage before the first round, or in the place of all rounds.
    Parameters: `run_root`, the run's folder; `settings`, what differs from RunSettings; `services`, ServiceAddresses.
    """

    def rlaif(run_root: str, settings: dict, services: dict) -> None:  # type: ignore[type-arg]
        with dsl.ExitHandler(components.report(run_root=run_root), name="run"):
            branch = components.prepare(run_root=run_root, settings=settings, services=services).output
            prompts = components.load_prompts(run_root=run_root, branch=branch).outputs["prompts"]
            baseline = components.sample_baseline(run_root=run_root, prompts=prompts)
            given = {"run_root": run_root, "branch": branch, "prompts": prompts, "baseline": baseline.output}
            if constitutional != "none":
                # The base answers before training moves the sampler on.
                revisions = components.revise(run_root=run_root, prompts=prompts).after(baseline)
                _constitutional(rounds if constitutional == "first" else 0, **given, revisions=revisions.output)
                return
            samples = components.sample(run_root=run_root, round_number=1, prompts=prompts)
            samples.after(baseline)
            _round(1, rounds, **given, samples=samples)

    # KFP reads annotations at once and does not resolve postponed ones.
    rlaif.__annotations__ = {"run_root": str, "settings": dict, "services": dict}
    return dsl.pipeline(name="rlaif", description="Better policy from AI feedback, or a reason why not.")(rlaif)


def compile_pipeline(path: Path, *, rounds: int = 1, constitutional: ConstitutionalStage = "none") -> None:
    """Write the pipeline as YAML for Kubeflow Pipelines."""
    path.parent.mkdir(parents=True, exist_ok=True)
    compiler.Compiler().compile(build_pipeline(rounds=rounds, constitutional=constitutional), str(path))


def run_local(run_root: Path) -> RunOutcome:
    """Run the pipeline that a run folder's run.json describes, in this process; PipelineFailedError when a stage fails.

    kfp.local prints what it does and what tasks print; each task is a child process in this process's group.
    """
    # kfp.local tries `import docker` and survives its absence, but not a folder of that name in the working directory.
    sys.modules.setdefault("docker", None)  # type: ignore[arg-type]
    from kfp import local

    record = read_json(run_root / RUN_FILE)
    since_bytes = events_size(run_root)
    with _scratch(run_root / "kfp"), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # kfp's own
        # Process-wide. use_venv=False runs every task with this interpreter, as it is installed.
        local.init(local.SubprocessRunner(use_venv=False), pipeline_root=str(run_root / "kfp"), raise_on_error=False)
        settings = RunSettings.model_validate(record["settings"])
        build_pipeline(rounds=settings.rounds, constitutional=settings.constitutional_stage)(
            run_root=str(run_root), settings=_given(record["settings"]), services=_given(record["services"])
        )
    outcome = read_outcome(run_root, since_bytes=since_bytes)
    if outcome.state == "failed":
        raise PipelineFailedError(outcome)
    return outcome


@contextlib.contextmanager
def _scratch(folder: Path) -> Iterator[None]:
    """Temporary files of the tasks go under that folder for as long as the block runs: kfp.local leaves one a task."""
    folder.mkdir(exist_ok=True)
    before = os.environ.get("TMPDIR")
    with tempfile.TemporaryDirectory(dir=folder, prefix="scratch-") as scratch:
        os.environ["TMPDIR"] = scratch
        try:
            yield
        finally:
            os.environ.pop("TMPDIR")
            if before is not None:
                os.environ["TMPDIR"] = before


def _given(values: Mapping[str, Any]) -> dict[str, Any]:
    """The values without nulls, at any depth: parameters of KFP have no null."""
    return {
        key: _given(value) if isinstance(value, Mapping) else value
        for key, value in values.items()
        if value is not None
    }


def _constitutional(rounds: int, *, run_root: Any, branch: Any, prompts: Any, baseline: Any, revisions: Any) -> None:
    """Gate the revisions and learn them; then the rounds, or without any the evaluation."""
    gate = components.revision_gate(run_root=run_root, revisions=revisions)
    with dsl.If(gate.outputs["Output"] == "passed", name="revisions-passed"):
        tuned = components.fine_tune(run_root=run_root, conversations=gate.outputs["conversations"])
        policy = tuned.outputs["Output"]
        if not rounds:
            components.evaluate(run_root=run_root, round_number=1, policy=policy, baseline=baseline)
            return
        samples = components.sample_again(run_root=run_root, round_number=1, prompts=prompts, policy=policy)
        _round(1, rounds, run_root=run_root, branch=branch, prompts=prompts, baseline=baseline, samples=samples)


def _round(number: int, rounds: int, *, run_root: Any, branch: Any, prompts: Any, baseline: Any, samples: Any) -> None:
    """Judge, gate, train, evaluate; then the next round, from the policy this one left."""
    labels = components.label(run_root=run_root, round_number=number, completions=samples.output).output
    gate = components.quality_gate(run_root=run_root, round_number=number, labels=labels)
    with dsl.If(gate.outputs["Output"] == "passed", name=f"gate-passed-{number}"):
        policy = _train(number, run_root=run_root, branch=branch, prompts=prompts, labels=labels)
        evaluation = components.evaluate(run_root=run_root, round_number=number, policy=policy, baseline=baseline)
        if number == rounds:
            return
        again = components.sample_again(run_root=run_root, round_number=number + 1, prompts=prompts, policy=policy)
        again.after(evaluation)
        _round(number + 1, rounds, run_root=run_root, branch=branch, prompts=prompts, baseline=baseline, samples=again)


def _train(number: int, *, run_root: Any, branch: Any, prompts: Any, labels: Any) -> Any:
    """The three branches from labels to a policy."""
    with dsl.If(branch == "dpo", name=f"dpo-{number}"):
        preferred = components.train_on_preferences(run_root=run_root, round_number=number, labels=labels)
    with dsl.Elif(branch == "direct", name=f"direct-{number}"):
        direct = components.train_directly(run_root=run_root, round_number=number, prompts=prompts)
    with dsl.Else(name=f"with-reward-model-{number}"):
        reward_model = components.train_reward_model(run_root=run_root, round_number=number, labels=labels)
        watched = components.train_with_reward_model(
            run_root=run_root, round_number=number, prompts=prompts, reward_model=reward_model.output
        )
    # The policy's folder, a parameter: kfp.local cannot choose between artifacts.
    return dsl.OneOf(preferred.outputs["Output"], direct.outputs["Output"], watched.outputs["Output"])
