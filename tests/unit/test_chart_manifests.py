"""What the chart installs is what a cluster accepts, with no more rights than it needs."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from helm_python.chart import lint

from chart_fixtures import (
    CHART,
    SERVICES,
    Manifest,
    containers,
    of_kind,
    pod_specs,
    read_profile,
    render,
    rendered,
    values_of,
)
from chart_variations import VARIATIONS
from kubernetes_schemas import KUBERNETES_VERSIONS, is_custom, problems

_LABEL = re.compile(r"[a-z]([-a-z0-9]{0,61}[a-z0-9])?")
_SEEN: set[tuple[str, str]] = set()
every_variation = pytest.mark.parametrize("variation", VARIATIONS)


@every_variation
def test_strict_lint_finds_nothing(variation: str) -> None:
    report = lint(CHART, values_of(variation), strict=True, namespace="rlaif")
    assert report["errors"] == []
    assert [each for each in report["messages"] if each["severity"] > 1] == []


@every_variation
def test_every_supported_kubernetes_takes_every_manifest(variation: str) -> None:
    for manifest in rendered(variation):
        for version in KUBERNETES_VERSIONS[-1:] if is_custom(manifest) else KUBERNETES_VERSIONS:
            key = (version, json.dumps(manifest, sort_keys=True))
            if key not in _SEEN:
                assert problems(manifest, version=version) == [], (version, manifest["kind"], manifest["metadata"])
                _SEEN.add(key)


def test_an_unknown_field_would_be_found() -> None:
    manifests = [*render(read_profile("production")), *render(read_profile("trial-cpu"))]
    for manifest in {each["kind"]: each for each in manifests}.values():
        assert problems({**manifest, "sepc": {}}, version="1.36") != [], manifest["kind"]
        if "spec" in manifest:
            wrong = {**manifest, "spec": {**manifest["spec"], "replicsa": 1}}
            assert problems(wrong, version="1.36") != [], manifest["kind"]


@every_variation
def test_names_are_unique_and_short_enough_and_in_the_release(variation: str) -> None:
    manifests = rendered(variation)
    names = [(each["kind"], each["metadata"]["name"]) for each in manifests]
    assert len(set(names)) == len(names)
    for each in manifests:
        metadata = each["metadata"]
        assert metadata["namespace"] == "rlaif"
        assert _LABEL.fullmatch(metadata["name"]), metadata["name"]
        assert metadata["labels"]["app.kubernetes.io/instance"] == "rlaif"
        assert all(len(str(value)) <= 63 for value in metadata["labels"].values())


@pytest.mark.parametrize("name", ["x" * 53, "demo", "my-rlaif", "a" * 39 + "-b"])
def test_a_long_release_name_is_shortened_where_the_longest_name_needs_it(name: str) -> None:
    for profile in ("trial-cpu", "production"):
        for each in render(read_profile(profile), name=name):
            # A controller adds a hash of up to 10 characters to the labels of its pods, and 17 to their names.
            assert len(each["metadata"]["name"]) <= 63 - 11, each["metadata"]["name"]
            assert _LABEL.fullmatch(each["metadata"]["name"]), each["metadata"]["name"]
            assert each["kind"] != "CronJob" or len(each["metadata"]["name"]) <= 52


@every_variation
def test_no_pod_is_root_or_may_become_it_or_writes_to_its_image(variation: str) -> None:
    for name, pod in pod_specs(rendered(variation)).items():
        spec = pod["spec"]
        # The loop starts trainings as jobs; nothing else has business with the cluster's API.
        assert spec["automountServiceAccountToken"] is (name == "CronJob/rlaif-loop"), name
        assert not {"hostNetwork", "hostPID", "hostIPC"} & set(spec), name
        security = spec["securityContext"]
        assert security["runAsNonRoot"] is True, name
        assert security["runAsUser"] >= 999, name
        assert security["seccompProfile"] == {"type": "RuntimeDefault"}, name
        assert not any("hostPath" in volume for volume in spec["volumes"]), name
        for container in containers(pod):
            assert container["securityContext"] == {
                "allowPrivilegeEscalation": False,
                "readOnlyRootFilesystem": True,
                "runAsNonRoot": True,
                "capabilities": {"drop": ["ALL"]},
            }, name


@every_variation
def test_every_container_has_requests_and_limits_and_an_image_that_stays_the_same(variation: str) -> None:
    for name, pod in pod_specs(rendered(variation)).items():
        for container in containers(pod):
            # What a training gets is said by its TrainJob.
            resources = container.get("resources", {"requests": {}, "limits": {}})
            assert name.startswith("TrainingRuntime/") or {"cpu", "memory"} <= set(resources["requests"]) & set(
                resources["limits"]
            ), name
            for resource, amount in resources["requests"].items():
                assert _amount(amount) <= _amount(resources["limits"][resource]), (name, resource)
            image = container["image"]
            assert re.search(r"@sha256:[0-9a-f]{64}$|:[A-Za-z0-9_][A-Za-z0-9_.-]*$", image), image
            assert not image.endswith(":latest"), image


@every_variation
def test_every_service_is_probed_by_the_health_that_its_code_serves(variation: str) -> None:
    for name, pod in _service_pods(variation).items():
        (container,) = pod["spec"]["containers"]
        ports = {port["name"]: port["containerPort"] for port in container["ports"]}
        assert ports == {"grpc": 50051, "health": 50052, "metrics": 9090}, name
        ready = {"port": 50052, "service": HEALTH[name]}
        assert container["startupProbe"]["grpc"] == container["readinessProbe"]["grpc"] == ready
        assert container["livenessProbe"]["grpc"] == {"port": 50052, "service": "liveness"}


HEALTH = {
    "sampler": "rlaif.v1.SamplerService",
    "judge": "rlaif.v1.JudgeService",
    "evaluator": "rlaif.v1.JudgeService",
    "reward": "rlaif.v1.RewardService",
    "oversight": "rlaif.v1.LedgerService",
}


@every_variation
def test_what_a_pod_refers_to_is_there_or_is_a_secret_that_values_name(variation: str) -> None:
    manifests = rendered(variation)
    known = {(each["kind"], each["metadata"]["name"]) for each in manifests}
    text = json.dumps(values_of(variation))
    for name, pod in pod_specs(manifests).items():
        for kind, wanted in _references(pod["spec"]):
            named = kind in ("Secret", "PersistentVolumeClaim") and f'"{wanted}"' in text
            assert (kind, wanted) in known or named, (name, kind, wanted)
        for container in containers(pod):
            mounts = [mount["mountPath"] for mount in container["volumeMounts"]]
            assert len(set(mounts)) == len(mounts), name
            volumes = [volume["name"] for volume in pod["spec"]["volumes"]]
            assert len(set(volumes)) == len(volumes), name
            extra = {each["name"] for each in pod["spec"].get("volumes", [])}
            assert {mount["name"] for mount in container["volumeMounts"]} <= extra | _claimed(manifests), name
            variables = [each["name"] for each in container.get("env", [])]
            assert len(set(variables)) == len(variables), name


@every_variation
def test_selectors_select_just_the_pods_they_are_meant_for(variation: str) -> None:
    manifests = rendered(variation)
    pods = {name: pod["metadata"]["labels"] for name, pod in pod_specs(manifests).items()}
    for each in manifests:
        selector = _selector(each)
        if selector is None:
            continue
        component = each["metadata"]["labels"]["app.kubernetes.io/component"]
        selected = [name for name, labels in pods.items() if selector.items() <= labels.items()]
        assert len(selected) == 1, (each["kind"], each["metadata"]["name"], selected)
        assert selected[0].endswith(f"-{component}")


@every_variation
def test_every_service_has_a_network_policy_that_names_who_may_call(variation: str) -> None:
    values, manifests = values_of(variation), rendered(variation)
    policies = of_kind(manifests, "NetworkPolicy")
    if values.get("networkPolicy", {}).get("enabled") is False:
        assert policies == {}
        return
    assert set(policies) == set(of_kind(manifests, "Service"))
    for name, policy in policies.items():
        spec = policy["spec"]
        assert spec["policyTypes"] == ["Ingress", "Egress"], name
        assert all(rule["from"] and rule["ports"] for rule in spec["ingress"]), name
        assert all(rule["ports"] for rule in spec["egress"]), name


@every_variation
def test_a_network_policy_lets_in_whoever_the_chart_has_call_the_service(variation: str) -> None:
    manifests = rendered(variation)
    pods, policies = pod_specs(manifests), of_kind(manifests, "NetworkPolicy")
    services = of_kind(manifests, "Service")
    for name, policy in policies.items():
        rules = policy["spec"]["ingress"]
        for caller, labels in _callers_of(name, manifests).items():
            labels = labels or pods[caller]["metadata"]["labels"]
            port = services[name]["spec"]["ports"][0]["port"]
            selectors = [
                peer["podSelector"].get("matchLabels", {})
                for rule in rules
                for peer in rule["from"]
                if "podSelector" in peer and any(each["port"] == port for each in rule["ports"])
            ]
            assert any(selector.items() <= labels.items() for selector in selectors), (name, caller)


def _callers_of(service: str, manifests: tuple[Manifest, ...]) -> dict[str, dict[str, str]]:
    """Pods that call the service, as their settings say; labels of those that the chart does not make."""
    if service == "rlaif-postgresql":
        return {"Deployment/rlaif-oversight": {}}
    found = {"training": _training_labels()} if service in ("rlaif-sampler", "rlaif-reward") else {}
    settings = of_kind(manifests, "ConfigMap")
    for name in pod_specs(manifests):
        kind, _, own = name.partition("/")
        told = json.dumps(settings[own]["data"]) if own in settings and kind in ("Deployment", "CronJob") else ""
        if f"dns:///{service}:" in told or (name == "Pod/rlaif-test" and service == "rlaif-judge"):
            found[name] = {}
    return found


@every_variation
def test_config_maps_and_arguments_hold_no_secret(variation: str) -> None:
    told = json.dumps([each for each in rendered(variation) if each["kind"] != "Secret"])
    # The only credentials in a manifest are references to Secrets, and the name of one in a URL.
    assert not re.search(r"://[^/\s\"]*:(?!\$\(POSTGRES_PASSWORD\))[^/@\s\"]+@", told)
    for pod in pod_specs(rendered(variation)).values():
        for container in containers(pod):
            for variable in container.get("env", []):
                if re.search(r"SECRET|PASSWORD|TOKEN|KEY", variable["name"]):
                    assert "secretKeyRef" in variable.get("valueFrom", {}) or variable["value"] == "false", variable


@every_variation
def test_pods_get_longer_to_stop_than_the_service_takes_to_drain(variation: str) -> None:
    import yaml

    manifests = rendered(variation)
    settings = of_kind(manifests, "ConfigMap")
    for name, pod in _service_pods(variation).items():
        listen = yaml.safe_load(settings[f"rlaif-{name}"]["data"][f"{name}.yaml"])["listen"]
        assert pod["spec"]["terminationGracePeriodSeconds"] >= listen["drain_seconds"] + 10, name


def test_a_changed_setting_restarts_its_service_and_no_other() -> None:
    def checksums(values: dict[str, Any]) -> dict[str, str]:
        pods = pod_specs(render(values))
        return {
            name: pod["metadata"]["annotations"]["checksum/settings"]
            for name, pod in pods.items()
            if name.startswith("Deployment/")
        }

    values = values_of("trial-cpu")
    before = checksums(values)
    values["judge"]["settings"] = {"mix_requests": True}
    after = checksums(values)
    assert {name for name in before if before[name] != after[name]} == {"Deployment/rlaif-judge"}


def test_an_upgrade_changes_nothing_that_a_cluster_would_refuse_to_change() -> None:
    def immutable(manifests: list[Manifest]) -> dict[str, Any]:
        return {
            f"{each['kind']}/{each['metadata']['name']}": (
                each["spec"]["selector"],
                each["spec"].get("serviceName"),
                each["spec"].get("volumeClaimTemplates"),
                each["spec"]["template"]["metadata"]["labels"],
            )
            for each in manifests
            if each["kind"] in ("Deployment", "StatefulSet")
        }

    values = values_of("trial-cpu")
    before = immutable(render(values))
    values["image"] = {"tag": "0.2.0"}
    values["judge"]["settings"] = {"mix_requests": True}
    values["monitoring"] = {"serviceMonitor": {"enabled": True}}
    assert immutable(render(values)) == before


def test_services_that_speak_tls_do_not_call_it_cleartext() -> None:
    def protocols(variation: str) -> set[str | None]:
        found = of_kind(rendered(variation), "Service").values()
        return {port.get("appProtocol") for each in found for port in each["spec"]["ports"] if port["name"] == "grpc"}

    assert protocols("trial-cpu") == {"kubernetes.io/h2c"}
    assert protocols("TLS") == {None}


def test_workload_identity_reaches_every_pod_that_reads_or_writes_storage() -> None:
    accounts = of_kind(rendered("placed by hand"), "ServiceAccount")
    for name in ("sampler", "judge", "reward", "pipelines", "training"):
        assert "eks.amazonaws.com/role-arn" in accounts[f"rlaif-{name}"]["metadata"]["annotations"], name


def test_uninstalling_leaves_what_cannot_be_made_again() -> None:
    kept = [
        f"{each['kind']}/{each['metadata']['name']}"
        for each in render(read_profile("single-gpu"))
        if each["metadata"].get("annotations", {}).get("helm.sh/resource-policy") == "keep"
    ]
    assert sorted(kept) == [
        "PersistentVolumeClaim/rlaif-model-cache",
        "PersistentVolumeClaim/rlaif-runs",
        "Secret/rlaif-postgresql",
    ]


def test_a_scaled_deployment_leaves_its_replicas_to_what_scales_it() -> None:
    manifests = rendered("production")
    deployments, scaled = of_kind(manifests, "Deployment"), of_kind(manifests, "ScaledObject")
    assert set(scaled) == {"rlaif-sampler", "rlaif-judge"}
    for name, deployment in deployments.items():
        assert ("replicas" in deployment["spec"]) == (name not in scaled), name


def test_queue_depths_that_scale_are_metrics_of_the_code() -> None:
    from rlaif.judge.metrics import judge_metrics
    from rlaif.reward.metrics import reward_metrics
    from rlaif.runtime.telemetry import REGISTRY
    from rlaif.sampler.metrics import sampler_metrics

    judge_metrics(), reward_metrics(), sampler_metrics()
    known = {metric.name for metric in REGISTRY.collect() if metric.type == "gauge"}
    values = values_of("trial-cpu")
    for name in ("sampler", "judge", "reward"):
        values[name]["autoscaling"] = {"kind": "hpa"}
    asked = [
        each["spec"]["metrics"][0]["pods"]["metric"]["name"]
        for each in of_kind(render(values), "HorizontalPodAutoscaler").values()
    ]
    assert len(asked) == 3
    assert set(asked) <= known


def test_the_pods_of_trainings_are_those_that_are_scraped() -> None:
    from rlaif_pipelines.jobs.pods import FIXED_CONTAINER

    spec = of_kind(rendered("monitored"), "PodMonitor")["rlaif-training"]["spec"]
    assert spec["selector"]["matchLabels"].items() <= _training_labels().items()
    (endpoint,) = spec["podMetricsEndpoints"]
    assert endpoint["port"] in [port["name"] for port in FIXED_CONTAINER["ports"]]


def test_nothing_of_an_operator_is_installed_unless_its_switch_is_on() -> None:
    assert [each["kind"] for each in rendered("trial-cpu") if is_custom(each)] == []
    assert {each["kind"] for each in rendered("production") if is_custom(each)} >= {
        "PodMonitor",
        "ScaledObject",
        "ServiceMonitor",
    }


def test_the_schema_of_an_external_database_is_migrated_before_anything_else_is_there() -> None:
    job = of_kind(rendered("external database"), "Job")["rlaif-migrations"]
    assert job["metadata"]["annotations"]["helm.sh/hook"] == "pre-install,pre-upgrade"
    # Objects of the chart do not exist yet.
    assert "serviceAccountName" not in job["spec"]["template"]["spec"]
    assert {kind for kind, _ in _references(job["spec"]["template"]["spec"])} == {"Secret"}
    # The chart's own database cannot be there before the chart: pods wait for it, and migrate it.
    trial = rendered("trial-cpu")
    assert of_kind(trial, "Job") == {}
    assert [each["name"] for each in pod_specs(trial)["Deployment/rlaif-oversight"]["spec"]["initContainers"]] == [
        "migrate"
    ]


def _training_labels() -> dict[str, str]:
    """Of a training's pods."""
    from rlaif_pipelines.jobs.names import labels
    from rlaif_pipelines.jobs.settings import JobSettings
    from rlaif_pipelines.jobs.spec import JobSpec

    job = JobSpec("rl", Path("/rlaif/runs/first/stages/train/config.json"), Path("/rlaif/log"))
    return labels(job, JobSettings(), attempt=1)


def _service_pods(variation: str) -> dict[str, dict[str, Any]]:
    pods = pod_specs(rendered(variation))
    return {name: pods[f"Deployment/rlaif-{name}"] for name in SERVICES if f"Deployment/rlaif-{name}" in pods}


def _selector(manifest: Manifest) -> dict[str, str] | None:
    spec = manifest.get("spec", {})
    if manifest["kind"] == "Service":
        found: dict[str, str] | None = spec["selector"]
    elif manifest["kind"] in ("Deployment", "StatefulSet", "PodDisruptionBudget"):
        found = spec["selector"]["matchLabels"]
    elif manifest["kind"] == "NetworkPolicy":
        found = spec["podSelector"]["matchLabels"]
    else:
        found = None
    return found


def _claimed(manifests: tuple[Manifest, ...]) -> set[str]:
    sets = of_kind(manifests, "StatefulSet").values()
    return {claim["metadata"]["name"] for each in sets for claim in each["spec"].get("volumeClaimTemplates", [])}


def _references(spec: dict[str, Any]) -> list[tuple[str, str]]:
    found = []
    if "serviceAccountName" in spec:
        found.append(("ServiceAccount", spec["serviceAccountName"]))
    for volume in spec["volumes"]:
        if "configMap" in volume:
            found.append(("ConfigMap", volume["configMap"]["name"]))
        if "secret" in volume:
            found.append(("Secret", volume["secret"]["secretName"]))
        if "persistentVolumeClaim" in volume:
            found.append(("PersistentVolumeClaim", volume["persistentVolumeClaim"]["claimName"]))
    for container in [*spec.get("initContainers", []), *spec["containers"]]:
        for variable in container.get("env", []):
            if "secretKeyRef" in variable.get("valueFrom", {}):
                found.append(("Secret", variable["valueFrom"]["secretKeyRef"]["name"]))
    return found


def _amount(quantity: Any) -> float:
    number, unit = re.fullmatch(r"([0-9.]+)(m|[KMGTPE]i|[kMGTPE])?", str(quantity)).groups()  # type: ignore[union-attr]
    powers = {"m": 0.001, "k": 1e3, "M": 1e6, "G": 1e9, "T": 1e12, "Ki": 2**10, "Mi": 2**20, "Gi": 2**30, "Ti": 2**40}
    return float(number) * powers.get(unit or "", 1.0)
