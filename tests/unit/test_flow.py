"""The compiled pipeline: strictly a PipelineSpec, the same every time, with every stage and branch in it."""

from __future__ import annotations

import functools
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, get_args

import pytest
import yaml
from google.protobuf import json_format
from kfp.pipeline_spec import pipeline_spec_pb2

from rlaif.core.errors import SettingsError
from rlaif_pipelines import components
from rlaif_pipelines.flow import GraphOptions, compiled_pipeline
from rlaif_pipelines.mounts import default_image
from rlaif_pipelines.parameters import PLACEMENT, Parameter, parameters_of
from rlaif_pipelines.placement import Retries
from rlaif_pipelines.settings import ConstitutionalStage, PipelineName

Spec = Any
GOLDEN = Path(__file__).parents[1] / "golden"
NAMES: tuple[PipelineName, ...] = get_args(PipelineName)


@functools.cache
def text(*, name: PipelineName = "rlaif", **options: Any) -> str:
    """The compiled pipeline; each is compiled once."""
    return compiled_pipeline(name, GraphOptions(**options))


def documents(*, name: PipelineName = "rlaif", **options: Any) -> tuple[Spec, Spec]:
    """The compiled graph, and what is Kubernetes' in it, both read strictly."""
    graph, platform = yaml.safe_load_all(text(name=name, **options))
    return (
        json_format.ParseDict(graph, pipeline_spec_pb2.PipelineSpec()),
        json_format.ParseDict(platform, pipeline_spec_pb2.PlatformSpec()),
    )


def compiled(*, rounds: int = 1, constitutional: ConstitutionalStage = "none") -> Spec:
    return documents(rounds=rounds, constitutional=constitutional)[0]


def tasks(spec: Spec) -> Iterator[tuple[str, Spec]]:
    """Every task that runs something, and its component."""
    for group in [spec.root.dag.tasks, *(component.dag.tasks for component in spec.components.values())]:
        for name, task in group.items():
            if not spec.components[task.component_ref.name].HasField("dag"):
                yield name, task


def task_names(spec: Spec) -> set[str]:
    return {name for name, _ in tasks(spec)}


def group_of(spec: Spec, task: str) -> Spec:
    """The tasks among which this one stands; of a loop's the loop's."""
    groups = [spec.root.dag.tasks, *(component.dag.tasks for component in spec.components.values())]
    return next(tasks for tasks in groups if task in tasks)


def loop(spec: Spec, name: str) -> Spec:
    """The loop of that display name, among its neighbours."""
    groups = [spec.root.dag.tasks, *(component.dag.tasks for component in spec.components.values())]
    return next(task for tasks in groups for task in tasks.values() if task.task_info.name == name)


@pytest.mark.parametrize("name", NAMES)
def test_the_compiled_pipeline_is_the_one_that_is_kept(name: PipelineName) -> None:
    assert text(name=name) == (GOLDEN / f"{name}.yaml").read_text(), "it changed: look at why, then `make golden`"


@pytest.mark.parametrize("name", NAMES)
def test_parameters_are_typed_explained_and_those_of_the_table(name: PipelineName) -> None:
    spec, _ = documents(name=name)
    found = spec.root.input_definitions.parameters
    assert set(found) == {parameter.name for parameter in parameters_of(name)}
    assert all(parameter.description for parameter in found.values())
    needed = {each for each, parameter in found.items() if not parameter.HasField("default_value")}
    assert needed - {"run_root"} == {"evaluate-only": {"candidate"}, "judge-benchmark": {"pairs"}}.get(name, set())
    assert found["image"].default_value.string_value == default_image()


def test_every_parameter_is_documented_in_the_same_words() -> None:
    page = (Path(__file__).parents[2] / "docs" / "pipelines.md").read_text()
    for parameter in {each for name in NAMES for each in map(_named, parameters_of(name))}:
        assert all(part in page for part in parameter), parameter


def _named(parameter: Parameter) -> tuple[str, str]:
    return f"| `{parameter.name}` |", f"| {parameter.meaning} |"


def test_what_prepare_takes_is_what_the_pipelines_ask_for() -> None:
    taken = set(components.prepare.component_spec.inputs) - {"pipeline", "rounds", "constitutional"}
    asked = {parameter.name for name in NAMES for parameter in parameters_of(name)}
    of_tasks_alone = {"hub_secret", "node_selector", "tolerations"}
    assert of_tasks_alone < {parameter.name for parameter in PLACEMENT}
    assert taken == asked - of_tasks_alone


def test_every_stage_is_a_task() -> None:
    names = task_names(compiled())
    assert names == {
        "prepare",
        "load-prompts",
        "sample-baseline",
        "sample",
        "gather-completions",
        "label",
        "gather-labels",
        "quality-gate",
        "train-on-preferences",
        "train-directly",
        "train-reward-model",
        "train-with-reward-model",
        "evaluate",
        "promote",
        "report",
    }


def test_the_smaller_pipelines_are_made_of_the_same_stages() -> None:
    names = {name: task_names(documents(name=name)[0]) - {"prepare", "report"} for name in NAMES}
    labelling = {"load-prompts", "sample", "gather-completions", "label", "gather-labels", "quality-gate"}
    assert names["label-only"] == labelling
    assert names["evaluate-only"] == {"load-prompts", "sample-baseline", "adopt", "evaluate", "promote"}
    assert names["judge-benchmark"] == {"load-pairs", "label", "gather-labels", "benchmark", "judge-gate"}


def test_training_stands_behind_the_gate_and_the_report_behind_nothing() -> None:
    spec = compiled()
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


def test_the_base_answers_before_anything_is_trained() -> None:
    spec = compiled()
    assert "sample-baseline" in loop(spec, "sample-parts-1").dependent_tasks


@pytest.mark.parametrize("rounds", [1, 2, 3])
def test_rounds_are_unrolled_and_each_evaluated_before_the_next_samples(rounds: int) -> None:
    spec = compiled(rounds=rounds)
    names = task_names(spec)
    assert sum(name.startswith("quality-gate") for name in names) == rounds
    assert sum(name.startswith("sample-again") for name in names) == rounds - 1
    for number in range(2, rounds + 1):
        dependent = loop(spec, f"sample-parts-{number}").dependent_tasks
        assert any(task.startswith("evaluate") for task in dependent)


def test_the_constitutional_stage_stands_between_the_baseline_and_the_first_round() -> None:
    spec = compiled(rounds=2, constitutional="first")
    assert "sample-baseline" in group_of(spec, "revise")["revise"].dependent_tasks
    assert "revise" in group_of(spec, "revision-gate")["revision-gate"].dependent_tasks
    learning = group_of(spec, "fine-tune")
    assert "revise" not in learning, "what is learnt stands behind the gate"
    assert "fine-tune" in loop(spec, "sample-parts-1").dependent_tasks
    assert {"label", "label-2"} <= task_names(spec)
    assert not {"revise", "fine-tune"} & task_names(compiled())


def test_the_constitutional_stage_alone_is_evaluated_at_once() -> None:
    spec = compiled(constitutional="only")
    assert "fine-tune" in group_of(spec, "evaluate")["evaluate"].dependent_tasks
    assert not {"sample", "label", "quality-gate", "train-directly"} & task_names(spec)


def test_every_task_installs_nothing_and_runs_in_the_image_of_the_run() -> None:
    spec, _ = documents(image="registry.example/mine:1")
    executors = spec.deployment_spec["executors"]
    assert len(executors) == 15
    for executor in executors.values():
        assert executor["container"]["image"] == "{{$.inputs.parameters['pipelinechannel--image']}}"
        assert "pip install" not in " ".join(executor["container"]["command"])
    assert spec.root.input_definitions.parameters["image"].default_value.string_value == "registry.example/mine:1"


def test_every_task_has_the_volume_secrets_user_and_nodes_of_the_run() -> None:
    spec, platform = documents()
    kubernetes = json_format.MessageToDict(platform.platforms["kubernetes"].deployment_spec)["executors"]
    assert set(kubernetes) == set(spec.deployment_spec["executors"])
    for executor in kubernetes.values():
        [volume] = executor["pvcMount"]
        assert (volume["mountPath"], parameter_of(volume["pvcNameParameter"])) == ("/rlaif", "volume_claim")
        secrets = {parameter_of(each["secretNameParameter"]): each for each in executor["secretAsEnv"]}
        assert set(secrets) == {"token_secret", "hub_secret", "storage_secret"}
        assert secrets["token_secret"]["keyToEnv"] == [{"secretKey": "token", "envVar": "RLAIF_TOKEN"}]
        [certificates] = executor["secretAsVolume"]
        assert (certificates["mountPath"], certificates["optional"]) == ("/etc/rlaif/tls", True)
        assert all(each["optional"] for each in secrets.values())
        assert executor["securityContext"] == {"runAsUser": "65532", "runAsGroup": "65532", "runAsNonRoot": True}
        assert parameter_of(executor["nodeSelector"]["nodeSelectorJson"]) == "node_selector"
        assert parameter_of(executor["tolerations"][0]["tolerationJson"]) == "tolerations"


def parameter_of(value: Mapping[str, str]) -> str:
    return value["componentInputParameter"].removeprefix("pipelinechannel--")


def test_every_task_is_tried_again_and_none_answered_by_kfp_s_own_cache() -> None:
    spec, _ = documents(retries=Retries(count=3, pause_seconds=5))
    for name, task in tasks(spec):
        assert not task.caching_options.enable_cache, name
        assert (task.retry_policy.max_retry_count, task.retry_policy.backoff_duration.seconds) == (3, 5), name
    spec, _ = documents(retries=Retries(count=0))
    assert not any(task.HasField("retry_policy") for _, task in tasks(spec))


def test_artifacts_have_the_types_that_the_kfp_ui_draws() -> None:
    spec, _ = documents()
    found = {
        (name.removeprefix("comp-"), output): artifact.artifact_type.schema_title.removeprefix("system.")
        for name, component in spec.components.items()
        for output, artifact in component.output_definitions.artifacts.items()
        if component.HasField("executor_label")
    }
    assert set(found.values()) == {"Dataset", "Model", "Metrics", "ClassificationMetrics", "HTML", "Markdown"}
    assert found["train-reward-model", "held_out"] == found["quality-gate", "against_reference"]
    assert found["report", "page"] == "HTML"


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("label-only", {"rounds": 2}),
        ("label-only", {"constitutional": "first"}),
        ("rlaif", {"rounds": 2, "constitutional": "only"}),
    ],
)
def test_options_that_mean_nothing_to_a_pipeline_are_refused(name: PipelineName, options: dict[str, Any]) -> None:
    with pytest.raises(SettingsError, match="round"):
        documents(name=name, **options)


def test_light_stages_load_neither_torch_nor_kfp() -> None:
    program = (
        "import sys, rlaif_pipelines.stages.runner\n"
        "from rlaif_pipelines.stages import prepare, prompts, baseline, sample, judge, gate, evaluate, train, report\n"
        "from rlaif_pipelines.stages import revise, revision_gate, sft\n"
        "assert not {'torch', 'transformers', 'deepspeed', 'kfp', 'grpc', 'numpy'} & sys.modules.keys(), sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True)
