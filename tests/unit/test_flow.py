"""The compiled pipeline: strictly a PipelineSpec, the same every time, with every stage and branch in it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from google.protobuf import json_format
from kfp.pipeline_spec import pipeline_spec_pb2

from rlaif_pipelines import components
from rlaif_pipelines.flow import compile_pipeline
from rlaif_pipelines.settings import ConstitutionalStage

Spec = Any


def compiled(path: Path, *, rounds: int = 1, constitutional: ConstitutionalStage = "none") -> Spec:
    compile_pipeline(path, rounds=rounds, constitutional=constitutional)
    documents = list(yaml.safe_load_all(path.read_text()))
    return json_format.ParseDict(documents[0], pipeline_spec_pb2.PipelineSpec())


def task_names(spec: Spec) -> set[str]:
    names = set(spec.root.dag.tasks)
    for component in spec.components.values():
        names |= set(component.dag.tasks)
    return names


def group_of(spec: Spec, task: str) -> Spec:
    """The tasks among which this one stands."""
    groups = [spec.root.dag.tasks, *(component.dag.tasks for component in spec.components.values())]
    return next(tasks for tasks in groups if task in tasks)


def test_the_yaml_is_strictly_a_pipeline_spec_and_stable(tmp_path: Path) -> None:
    spec = compiled(tmp_path / "a" / "rlaif.yaml")
    compile_pipeline(tmp_path / "again.yaml")
    assert (tmp_path / "again.yaml").read_bytes() == (tmp_path / "a" / "rlaif.yaml").read_bytes()
    assert spec.pipeline_info.name == "rlaif"
    assert set(spec.root.input_definitions.parameters) == {"run_root", "settings", "services"}


def test_every_stage_is_a_task(tmp_path: Path) -> None:
    names = task_names(compiled(tmp_path / "rlaif.yaml"))
    assert names >= {
        "prepare",
        "load-prompts",
        "sample-baseline",
        "sample",
        "label",
        "quality-gate",
        "train-on-preferences",
        "train-directly",
        "train-reward-model",
        "train-with-reward-model",
        "evaluate",
        "report",
    }


def test_training_stands_behind_the_gate_and_the_report_behind_nothing(tmp_path: Path) -> None:
    spec = compiled(tmp_path / "rlaif.yaml")
    conditions = [
        task.trigger_policy.condition
        for component in spec.components.values()
        for task in component.dag.tasks.values()
        if task.trigger_policy.condition
    ]
    assert any("quality-gate-Output'] == 'passed'" in condition for condition in conditions)
    assert "evaluate" not in group_of(spec, "quality-gate")
    report = spec.root.dag.tasks["report"]
    assert report.trigger_policy.strategy == (
        pipeline_spec_pb2.PipelineTaskSpec.TriggerPolicy.TriggerStrategy.ALL_UPSTREAM_TASKS_COMPLETED
    )


def test_the_base_answers_before_anything_is_trained(tmp_path: Path) -> None:
    spec = compiled(tmp_path / "rlaif.yaml")
    assert "sample-baseline" in group_of(spec, "sample")["sample"].dependent_tasks


@pytest.mark.parametrize("rounds", [1, 2, 3])
def test_rounds_are_unrolled_and_each_evaluated_before_the_next_samples(tmp_path: Path, rounds: int) -> None:
    spec = compiled(tmp_path / "rlaif.yaml", rounds=rounds)
    names = task_names(spec)
    assert sum(name.startswith("quality-gate") for name in names) == rounds
    again = {name for name in names if name.startswith("sample-again")}
    assert len(again) == rounds - 1
    for name in again:
        assert any(task.startswith("evaluate") for task in group_of(spec, name)[name].dependent_tasks)


def test_the_constitutional_stage_stands_between_the_baseline_and_the_first_round(tmp_path: Path) -> None:
    spec = compiled(tmp_path / "rlaif.yaml", rounds=2, constitutional="first")
    assert "sample-baseline" in group_of(spec, "revise")["revise"].dependent_tasks
    assert "revise" in group_of(spec, "revision-gate")["revision-gate"].dependent_tasks
    learning = group_of(spec, "fine-tune")
    assert "revise" not in learning, "what is learnt stands behind the gate"
    assert "fine-tune" in learning["sample-again"].dependent_tasks
    assert {"label", "label-2"} <= task_names(spec)
    assert not {"revise", "fine-tune"} & task_names(compiled(tmp_path / "plain.yaml"))


def test_the_constitutional_stage_alone_is_evaluated_at_once(tmp_path: Path) -> None:
    spec = compiled(tmp_path / "rlaif.yaml", constitutional="only")
    assert "fine-tune" in group_of(spec, "evaluate")["evaluate"].dependent_tasks
    assert not {"sample", "label", "quality-gate", "train-directly"} & task_names(spec)


def test_every_task_runs_in_our_image_and_installs_nothing(tmp_path: Path) -> None:
    spec = compiled(tmp_path / "rlaif.yaml")
    executors = spec.deployment_spec["executors"]
    assert executors
    for executor in executors.values():
        assert executor["container"]["image"] == components.IMAGE
        assert "pip install" not in " ".join(executor["container"]["command"])


def test_light_stages_load_neither_torch_nor_kfp() -> None:
    program = (
        "import sys, rlaif_pipelines.stages.runner\n"
        "from rlaif_pipelines.stages import prepare, prompts, baseline, sample, judge, gate, evaluate, train, report\n"
        "from rlaif_pipelines.stages import revise, revision_gate, sft\n"
        "assert not {'torch', 'transformers', 'deepspeed', 'kfp', 'grpc', 'numpy'} & sys.modules.keys(), sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True)
