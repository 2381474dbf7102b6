"""From a pipeline's parameters to the settings of a run, and the sentence for what does not fit."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from rlaif.core.errors import SettingsError
from rlaif_pipelines import mounts
from rlaif_pipelines.context import read_json, read_rows
from rlaif_pipelines.parameters import defaults, neutral, parameters_of, settings_from
from rlaif_pipelines.stages import runner
from rlaif_pipelines.stages.prepare import create_run_from


def given(root: Path, **values: Any) -> dict[str, Any]:
    """What `prepare` gets when a run gives these, and nothing of a cluster."""
    defaults = neutral("rlaif")
    compiled = {"pipeline": "rlaif", "rounds": 1, "constitutional": "none"}
    return {**defaults, **compiled, "run_root": str(root), **values}


def test_what_is_not_given_is_left_to_the_settings_defaults(tmp_path: Path) -> None:
    context = create_run_from(given(tmp_path))
    assert settings_from(given(tmp_path)) == {}
    assert context.settings.playground
    assert context.settings.out == tmp_path


def test_parameters_become_settings_beside_those_given_as_such(tmp_path: Path) -> None:
    values = {"algorithm": "dpo", "num_prompts": 8, "seed": 3, "settings": {"sampling": {"temperature": 0.7}}}
    settings = create_run_from(given(tmp_path, **values)).settings
    assert (settings.algorithm, settings.seed) == ("dpo", 3)
    assert (settings.sampling.num_prompts, settings.sampling.temperature) == (8, 0.7)
    assert read_json(tmp_path / "run.json")["settings"]["sampling"]["num_prompts"] == 8


def test_a_parameter_may_repeat_what_settings_say_but_not_contradict_it(tmp_path: Path) -> None:
    create_run_from(given(tmp_path, seed=3, settings={"seed": 3}))
    with pytest.raises(SettingsError, match=r"num_prompts = 8, but settings\.sampling\.num_prompts = 9: give one"):
        create_run_from(given(tmp_path, num_prompts=8, settings={"sampling": {"num_prompts": 9}}))


def test_settings_and_services_go_before_what_a_parameter_says_by_default(tmp_path: Path) -> None:
    told = {
        "settings": {"jobs": {"launcher": "indexed_job", "num_nodes": 2}, "policy_resource": "policies/mine"},
        "services": {"judge": "judge:1"},
    }
    found = create_run_from(given(tmp_path, **{**defaults("rlaif"), **told}))
    assert (found.settings.jobs.launcher, found.settings.jobs.num_nodes) == ("indexed_job", 2)
    assert (found.policy, found.services.judge) == ("policies/mine", "judge:1")
    assert found.services.sampler == "rlaif-sampler:50051"


@pytest.mark.parametrize("settings", [{"jobs": 3}, {"jobs": {"launcher": "trainjob", "pod": 3}}, {"sampling": 3}])
def test_a_value_in_the_place_of_settings_is_named(tmp_path: Path, settings: dict[str, Any]) -> None:
    with pytest.raises(SettingsError, match=r"(jobs|jobs\.pod|sampling) = 3"):
        create_run_from(given(tmp_path, settings=settings, max_tokens=5, num_nodes=2))


def test_a_null_is_not_given(tmp_path: Path) -> None:
    told = {"jobs": None, "sampling": {"max_tokens": None}}
    assert create_run_from(given(tmp_path, settings=told, max_tokens=5)).settings.sampling.max_tokens == 5


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ({"settings": {"rounds": 2}}, "compiled for rounds = 1, and the run's settings say 2"),
        ({"settings": {"pipeline": "label-only"}}, "compiled for pipeline = 'rlaif'"),
        ({"settings": {"constitutional": {"enabled": True}}}, "compiled with --constitutional none, .* want 'first'"),
        ({"settings": {"algorithm": "sft"}}, "compiled with --constitutional none, .* want 'only'"),
        ({"constitutional": "only", "algorithm": "dpo"}, "compiled for algorithm = 'sft', .* say 'dpo'"),
        ({"settings": {"rl": {"stepz": 1}}}, r"there is no setting 'rl\.stepz'"),
    ],
)
def test_settings_that_want_another_pipeline_are_refused(tmp_path: Path, values: dict[str, Any], sentence: str) -> None:
    with pytest.raises(SettingsError, match=sentence):
        create_run_from(given(tmp_path, **values))


def test_a_pipeline_gives_the_settings_that_it_was_compiled_for(tmp_path: Path) -> None:
    first = create_run_from(given(tmp_path / "a", constitutional="first", rounds=2)).settings
    assert (first.constitutional_stage, first.rounds) == ("first", 2)
    assert create_run_from(given(tmp_path / "b", constitutional="only")).settings.constitutional_stage == "only"


def test_wrong_parameters_are_told_in_the_report_of_a_run_that_never_began(tmp_path: Path) -> None:
    with pytest.raises(SettingsError):
        runner.begin(given(tmp_path / "run", settings={"rl": {"stepz": "<b>"}}))
    [event] = read_rows(tmp_path / "run" / "events.jsonl")
    assert (event["stage"], event["state"], event["exit_code"]) == ("prepare", "failed", 2)
    result = runner.report(run_root=tmp_path / "run")
    assert "there is no setting 'rl.stepz'" in (tmp_path / "run" / "summary.md").read_text()
    assert "there is no setting &#x27;rl.stepz&#x27;" in result.path("report.html").read_text()


def test_trainings_in_pods_get_what_the_tasks_have(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RLAIF_TOKEN", "shown to services")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "shown to storage")
    monkeypatch.delenv("AWS_SESSION_TOKEN", raising=False)
    monkeypatch.setattr(mounts, "TLS_PATH", str(tmp_path))
    (tmp_path / "ca.crt").touch()
    on_cluster = defaults("rlaif")
    on_cluster |= {"image": "registry.example/rlaif-pipelines:1.2", "gpu_count": 2, "gpu_type": "amd.com/gpu"}
    context = create_run_from(given(tmp_path / "run", **{**on_cluster, "run_root": str(tmp_path / "run")}))
    jobs = context.settings.jobs
    assert (jobs.launcher, jobs.pod.gpus, jobs.pod.gpu_resource) == ("trainjob", 2, "amd.com/gpu")
    assert (jobs.pod.image, jobs.pod.volume_claim) == ("registry.example/rlaif-trainer:1.2-gpu", "rlaif-runs")
    assert jobs.pod.secret_environment == {
        "RLAIF_TOKEN": "rlaif-token/token",
        "AWS_ACCESS_KEY_ID": "rlaif-storage/AWS_ACCESS_KEY_ID",
    }
    assert jobs.pod.secret_files == {str(tmp_path): "rlaif-tls"}
    assert context.services.tls_ca_path == tmp_path / "ca.crt"
    assert (context.services.judge, context.services.evaluator) == ("rlaif-judge:50051", None)
    assert (context.policy, context.artifact_root) == ("policies/served", "/rlaif/artifacts")
    assert "shown to" not in (tmp_path / "run" / "run.json").read_text()


def test_an_image_that_says_nothing_of_the_trainer_needs_it_named(tmp_path: Path) -> None:
    values = {"launcher": "indexed_job", "image": "mine:1", "volume_claim": "runs"}
    with pytest.raises(SettingsError, match="does not follow from the tasks' 'mine:1': give trainer_image"):
        create_run_from(given(tmp_path, **values))
    settings = create_run_from(given(tmp_path, **values, trainer_image="mine-trainer:1")).settings
    assert settings.jobs.pod.image == "mine-trainer:1"


def test_the_defaults_are_what_kfp_can_hold() -> None:
    for parameter in parameters_of("rlaif"):
        if not parameter.required:
            assert type(parameter.default) is parameter.kind
            json.dumps(parameter.default)
