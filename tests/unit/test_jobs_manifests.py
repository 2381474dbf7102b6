"""What we ask a cluster for: Kubernetes takes it, its names are short enough, both kinds of job make the same pods."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from chart_fixtures import of_kind, read_profile, render
from kubernetes_controllers import job_set_of
from kubernetes_schemas import KUBERNETES_VERSIONS, problems
from rlaif.core.errors import InvalidInputError
from rlaif_pipelines.jobs import pods
from rlaif_pipelines.jobs.manifests import Attempt, headless_service, indexed_job, train_job
from rlaif_pipelines.jobs.names import TRAINING_LABEL, attempt_name, labels
from rlaif_pipelines.jobs.settings import JobSettings
from rlaif_pipelines.jobs.spec import JobSpec

Object = dict[str, Any]

POD: Object = {"image": "registry.example/trainer:1", "volume_claim": "runs"}
RICH: Object = POD | {
    "gpus": 8,
    "gpu_resource": "amd.com/gpu",
    "cpu": "16",
    "memory": "128Gi",
    "shared_memory": "16Gi",
    "image_pull_secrets": ["registry"],
    "node_selector": {"pool": "gpu"},
    "tolerations": [{"key": "amd.com/gpu", "operator": "Exists", "effect": "NoSchedule"}],
    "environment": {"NCCL_DEBUG": "WARN"},
    "secret_environment": {"RLAIF_TOKEN": "rlaif-token/token"},
    "secret_files": {"/etc/rlaif/tls": "rlaif-tls"},
}
CONFIG = Path("/rlaif/runs/first/stages/reward_model-2/config.json")


def attempt(*, launcher: str = "indexed_job", pod: Object | None = None, **settings: Any) -> Attempt:
    spec = JobSpec("reward", CONFIG, Path("/rlaif/runs/first/logs/reward_model-2.log"), name="reward_model-2")
    given = JobSettings.model_validate({"launcher": launcher, "num_nodes": 2, "pod": pod or POD} | settings)
    return Attempt(spec, given, name=attempt_name(spec, given), labels=labels(spec, given, attempt=1))


def container_of(job: Object) -> Object:
    container: Object
    (container,) = job["spec"]["template"]["spec"]["containers"]
    return container


def values_of(container: Object) -> dict[str, Any]:
    return {variable["name"]: variable.get("value") for variable in container["env"]}


@pytest.fixture(scope="module")
def runtime() -> Object:
    """The TrainingRuntime that the chart installs."""
    values = read_profile("production") | {"training": {"runtime": {"enabled": True}}}
    return of_kind(render(values), "TrainingRuntime")["rlaif-training"]


@pytest.mark.parametrize("version", KUBERNETES_VERSIONS)
@pytest.mark.parametrize(("pod", "more"), [(POD, {}), (RICH | {"priority_class": "high"}, {"queue": "team-a"})])
def test_every_supported_kubernetes_takes_the_job_and_its_service(version: str, pod: Object, more: Object) -> None:
    made = attempt(pod=pod, **more)
    assert problems(indexed_job(made), version=version) == []
    assert problems(headless_service(made, job_uid="1-2-3"), version=version) == []


@pytest.mark.parametrize(("pod", "more"), [(POD, {}), (RICH, {"queue": "team-a"})])
def test_kubeflow_trainer_takes_the_train_job_and_makes_a_job_set_of_it(
    pod: Object, more: Object, runtime: Object
) -> None:
    train = train_job(attempt(launcher="trainjob", pod=pod, **more))
    assert problems(train, version="1.36") == []
    train["metadata"]["uid"] = "1-2-3"
    assert problems(job_set_of(train, runtime), version="1.36") == []


def test_an_unknown_field_would_be_found() -> None:
    job, train = indexed_job(attempt()), train_job(attempt(launcher="trainjob"))
    container_of(job)["volumeMount"] = []
    train["spec"]["runtimePatches"][0]["trainingRuntimeSpec"]["template"]["spec"]["replicatedJobs"][0]["job"] = {}
    assert problems(job, version="1.36") != []
    assert problems(train, version="1.36") != []


@pytest.mark.parametrize("pod", [POD, RICH])
def test_pods_of_both_kinds_are_alike(pod: Object, runtime: Object) -> None:
    train = train_job(attempt(launcher="trainjob", pod=pod))
    train["metadata"]["uid"] = "1-2-3"
    (replicated,) = job_set_of(train, runtime)["spec"]["replicatedJobs"]
    theirs, ours = replicated["template"], indexed_job(attempt(pod=pod))["spec"]["template"]
    for key in ("labels", "annotations"):
        assert theirs["spec"]["template"]["metadata"][key] == ours["metadata"][key]
    assert theirs["spec"]["backoffLimit"] == 0
    spec, own = theirs["spec"]["template"]["spec"], ours["spec"]
    assert _without(spec, "containers", "volumes", "imagePullSecrets") == _without(
        own, "containers", "volumes", "imagePullSecrets", "subdomain"
    )
    assert _named(spec["volumes"]) == _named(own["volumes"])
    (container,), (own_container,) = spec["containers"], own["containers"]
    differing = ("env", "imagePullPolicy", "volumeMounts")
    assert _without(container, *differing) == _without(own_container, *differing)
    assert _named(container["volumeMounts"]) == _named(own_container["volumeMounts"])
    variables, own_variables = _named(container["env"]), _named(own_container["env"])
    assert _without(variables, "PET_MASTER_ADDR") == _without(own_variables, "PET_MASTER_ADDR")


def _without(made: Object, *keys: str) -> Object:
    return {key: value for key, value in made.items() if key not in keys}


def _named(things: list[Object]) -> Object:
    return {thing["name"]: thing for thing in things}


def test_torchrun_learns_its_place_from_the_index_and_the_first_pods_name() -> None:
    made = attempt(pod=RICH)
    job = indexed_job(made)
    values = values_of(container_of(job))
    assert (values["PET_NNODES"], values["PET_NPROC_PER_NODE"]) == ("2", "8")
    assert values["PET_MASTER_ADDR"] == f"{made.name}-0.{made.name}"
    assert job["spec"]["template"]["spec"]["subdomain"] == made.name
    service = headless_service(made, job_uid="1-2-3")
    assert service["metadata"]["name"] == made.name
    assert service["spec"]["publishNotReadyAddresses"] is True
    assert service["spec"]["selector"] == {"batch.kubernetes.io/job-name": made.name}
    assert "PET" not in json.dumps(train_job(attempt(launcher="trainjob", pod=RICH)))


def test_processes_share_the_pods_processors_not_the_nodes() -> None:
    for cpu, processes, threads in [("16", 8, "2"), ("2", 4, "1"), ("3500m", 1, "3"), ("0.5", 1, "1")]:
        made = attempt(pod=POD | {"cpu": cpu}, processes_per_node=processes)
        assert values_of(container_of(indexed_job(made)))["OMP_NUM_THREADS"] == threads


@pytest.mark.parametrize("stage", ["train", "reward_model-16", "x" * 80, "-0-", "Ünïcode stage"])
def test_the_longest_name_of_a_pod_stays_within_what_dns_and_job_sets_allow(stage: str) -> None:
    spec = JobSpec("reward", CONFIG, Path("/rlaif/runs/first/log"), name=stage)
    settings = attempt().settings
    name = attempt_name(spec, settings)
    assert re.fullmatch(r"[a-z]([-a-z0-9]*[a-z0-9])?", name)
    assert len(f"{name}-node-0-999-abcde") <= 63
    assert attempt_name(spec, settings) != name
    for value in labels(spec, settings, attempt=1).values():
        assert re.fullmatch(r"([A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?)?", value)


def test_labels_say_which_run_and_stage_a_pod_belongs_to() -> None:
    found = indexed_job(attempt())["spec"]["template"]["metadata"]["labels"]
    assert (found["rlaif/run"], found["rlaif/stage"], found["rlaif/attempt"]) == ("first", "reward_model-2", "1")
    assert (found["app.kubernetes.io/part-of"], found["app.kubernetes.io/component"]) == ("rlaif", "training")


def test_trainings_at_the_same_path_of_different_volumes_are_not_taken_for_each_other() -> None:
    ours, theirs = attempt(), attempt(pod=POD | {"volume_claim": "theirs"})
    assert ours.spec.config_path == theirs.spec.config_path
    assert ours.labels[TRAINING_LABEL] == attempt(num_nodes=1).labels[TRAINING_LABEL] != theirs.labels[TRAINING_LABEL]


def test_a_run_folder_beside_the_volume_is_refused() -> None:
    spec = JobSpec("reward", Path("/home/me/run/config.json"), Path("/home/me/run/log"))
    with pytest.raises(InvalidInputError, match="must lie on the shared volume, under /rlaif"):
        pods.command(spec, attempt().settings)


def test_the_cluster_ends_a_job_later_than_we_do() -> None:
    made = attempt(timeout_seconds=1000, pending_seconds=100)
    assert indexed_job(made)["spec"]["activeDeadlineSeconds"] > 1100
