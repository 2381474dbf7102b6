"""Values that cannot work are refused in a sentence; the others become settings that the services take."""

from __future__ import annotations

import importlib.util
import json
import re
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
import yaml
from helm_python.errors import HelmError
from pydantic import BaseModel

from chart_fixtures import CHART, changed, containers, of_kind, pod_specs, read_profile, render, render_text, rendered
from chart_variations import VARIATIONS, Values
from rlaif.constitutions import __path__ as constitutions_path
from rlaif.judge.settings import JudgeSettings
from rlaif.oversight.settings import OversightSettings
from rlaif.reward.settings import RewardSettings
from rlaif.runtime.settings import ClientSettings, load_settings
from rlaif.sampler.settings import SamplerSettings

_MODELS: dict[str, type[BaseModel]] = {
    "sampler": SamplerSettings,
    "judge": JudgeSettings,
    "evaluator": JudgeSettings,
    "reward": RewardSettings,
    "oversight": OversightSettings,
}

_DOCS = CHART.parents[2] / "docs"

# (values at dotted keys on top of the trial's, what is said)
_WRONG: list[tuple[Values, str]] = [
    ({"judge.modle": "x"}, "at '/judge': additional properties 'modle' not allowed"),
    ({"jugde": {}}, "additional properties 'jugde' not allowed"),
    ({"judge.settings": {"listen": {"adress": "x"}}}, "at '/judge/settings/listen': additional properties 'adress'"),
    ({"judge.settings": {"model": "x"}}, "at '/judge/settings': additional properties 'model' not allowed"),
    (
        {"judge.settings": {"queue": {"max_queue_items": 0}}},
        "at '/judge/settings/queue/max_queue_items': minimum: got 0",
    ),
    ({"sampler.settings": {"engine": {"knd": "hf"}}}, "at '/sampler/settings/engine': additional properties 'knd'"),
    ({"sampler.policy": "served"}, "at '/sampler/policy': 'served' does not match pattern"),
    ({"judge.replicas": 0}, "at '/judge/replicas': minimum: got 0, want 1"),
    ({"image.tag": "latest"}, "image.tag latest is another image tomorrow: name a version"),
    (
        {"postgresql.image": "postgres:latest"},
        "postgresql.image postgres:latest is another image tomorrow: name a version",
    ),
    (
        {"judge.pod": {"extraEnv": [{"name": "HOME", "value": "/"}]}},
        "judge.pod.extraEnv: HOME is set by the chart, from",
    ),
    ({"postgresql.image": "postgres"}, "at '/postgresql/image': 'postgres' does not match pattern"),
    ({"runs.size": "5 GB"}, "at '/runs/size': '5 GB' does not match pattern"),
    ({"tokens.token": "hunter2"}, "at '/tokens': additional properties 'token' not allowed"),
    (
        {"pod.extraEnv": [{"name": "RLAIF_TOKEN", "value": "x"}]},
        "pod.extraEnv: RLAIF_TOKEN is set by the chart, from tokens.",
    ),
    (
        {"judge.model": ""},
        "judge.model is required: a folder below /rlaif, a URI such as s3://bucket/model, a Hugging Face",
    ),
    (
        {"judge.engine": "vllm"},
        "judge.engine vllm needs judge.gpus of 1 or more: the image for CPUs has transformers only, so set",
    ),
    (
        {"sampler.gpus": 2},
        "sampler.engine hf runs a model on one GPU, and sampler.gpus is 2: set it to 1, or the engine",
    ),
    ({"judge.engine": "openai", "judge.gpus": 1}, "judge.engine openai asks a server elsewhere and needs no GPU here"),
    (
        {"judge.model": "/models/judge"},
        "judge.model /models/judge is a folder that no pod has: put it below /rlaif, or",
    ),
    (
        {"judge.model": "/rlaif/judge", "runs.enabled": False, "artifacts.root": "s3://bucket/artifacts"},
        "judge.model /rlaif/judge lies on the volume of runs, which runs.enabled=false leaves out",
    ),
    ({"judge.constitutions": ["mine.yaml"]}, "judge.constitutions: mine.yaml is neither a key of constitutions nor"),
    ({"evaluator.enabled": True, "evaluator.gpus": 0, "evaluator.engine": "hf"}, "evaluator.model is required"),
    (
        {"evaluator": {"enabled": True, "model": "playground", "engine": "hf", "gpus": 0}},
        "evaluator.model is the judge's: an evaluation by the judge whose labels trained the policy is no evidence",
    ),
    (
        {"postgresql.enabled": False},
        "the ledger needs a database: set database.existingSecret to a Secret with postgres",
    ),
    (
        {"database.existingSecret": "x"},
        "database.existingSecret names your PostgreSQL and postgresql.enabled starts one",
    ),
    (
        {"artifacts.root": "/data"},
        "artifacts.root /data: a folder must lie on the volume of runs, for example /rlaif/art",
    ),
    ({"artifacts.root": "s3://key@bucket/x"}, "at '/artifacts/root': 's3://key@bucket/x' does not match pattern"),
    ({"runs.enabled": False}, "artifacts.root /rlaif/artifacts lies on the volume of runs, which runs.enabled=false"),
    ({"tls.enabled": True}, "tls.enabled needs tls.existingSecret: a Secret with tls.crt, tls.key and ca.crt"),
    ({"tls.existingSecret": "x"}, "tls.existingSecret is set and tls.enabled is false: the services would speak plain"),
    ({"tls.clientCertificates": True}, "tls.clientCertificates needs tls.enabled"),
    ({"monitoring.metricsTls": True}, "monitoring.metricsTls needs tls.enabled: metrics are shown with the services'"),
    (
        {"monitoring.metricsTokenSecret": "x"},
        "monitoring.metricsTokenSecret needs tokens.existingSecret: services know no token",
    ),
    ({"tokens.existingSecret": "x"}, "tokens.existingSecret makes every service ask for a token, and judge and reward"),
    ({"tokens.clientSecret": "x"}, "tokens.clientSecret is a token that no service would ask for: set tokens.existing"),
    (
        {"judge.autoscaling": {"kind": "both"}},
        "at '/judge/autoscaling/kind': value must be one of 'none', 'hpa', 'keda'",
    ),
    (
        {"judge.autoscaling": {"kind": "keda"}},
        "judge.autoscaling.kind keda needs monitoring.prometheusUrl: queue depths",
    ),
    ({"judge.autoscaling": {"minReplicas": 9}}, "judge.autoscaling: minReplicas 9 is above maxReplicas 4"),
    (
        {"judge.rollout": {"maxSurge": 0}},
        "judge.rollout: maxSurge and maxUnavailable are both 0, so no pod could ever be",
    ),
    (
        {"sampler.settings": {"engine": {"kind": "vllm"}}},
        "sampler.settings.engine.kind vllm: set sampler.engine, which chooses the image too",
    ),
    (
        {"judge.engine": "openai", "judge.model": "big-judge"},
        "judge.engine openai needs judge.settings.engine.openai.base_url: the address of the server, such as",
    ),
    (
        {
            "judge.engine": "openai",
            "judge.model": "big-judge",
            "judge.settings": {"engine": {"openai": {"base_url": "http://vllm.models.svc:8000/v1"}}},
        },
        "judge.settings.engine.openai.base_url http://vllm.models.svc:8000/v1 is at port 8000, which networkPolicy.",
    ),
    (
        {"artifacts": {"root": "s3://models/rlaif", "endpoint": "http://minio.storage.svc:9000"}},
        "artifacts.endpoint http://minio.storage.svc:9000 is at port 9000, which networkPolicy.storePorts leaves out",
    ),
    (
        {"artifacts": {"root": "s3://models/rlaif", "endpoint": "http://minio.storage.svc"}},
        "artifacts.endpoint http://minio.storage.svc is at port 80, which networkPolicy.storePorts leaves out",
    ),
    (
        {"loop.schedule": "@daily"},
        "loop.schedule: the second run would find the policy that the first has trained; schedule runs that train",
    ),
    (
        {"constitutions": {"judge.yaml": "x"}},
        "constitutions: judge.yaml is the name of a service's own file; call the const",
    ),
    (
        {"monitoring.prometheusUrl": "prometheus:9090"},
        "at '/monitoring/prometheusUrl': 'prometheus:9090' does not match",
    ),
]


@pytest.mark.parametrize(("changes", "sentence"), _WRONG, ids=[" ".join(changes) for changes, _ in _WRONG])
def test_wrong_values_are_refused_in_a_sentence(changes: Values, sentence: str) -> None:
    with pytest.raises(HelmError) as refused:
        render(changed(read_profile("trial-cpu"), changes))
    assert sentence in str(refused.value)


def test_several_faults_are_told_at_once() -> None:
    with pytest.raises(HelmError) as refused:
        render({})
    told = str(refused.value)
    for part in ("sampler.model is required", "judge.model is required", "the ledger needs a database"):
        assert part in told


@pytest.mark.parametrize("variation", VARIATIONS)
def test_the_services_take_the_settings_that_the_chart_writes(
    variation: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RLAIF_DATABASE_URL", "postgresql+psycopg://rlaif@database/rlaif")
    found = of_kind(rendered(variation), "ConfigMap")
    read = set()
    for name, model in _MODELS.items():
        if f"rlaif-{name}" in found:
            path = tmp_path / f"{name}.yaml"
            path.write_text(found[f"rlaif-{name}"]["data"][f"{name}.yaml"])
            load_settings(model, path)
            read.add(name)
    assert read >= {"sampler", "judge", "reward", "oversight"}


@pytest.mark.parametrize(
    "variation",
    [
        "trial-cpu",
        "a constitution of one's own",
        "a loop on GPUs",
        "labels every night",
        "a trial on one node of several",
    ],
)
def test_a_run_takes_the_settings_that_the_chart_writes(variation: str, tmp_path: Path) -> None:
    from rlaif_pipelines.__main__ import LoopSettings
    from rlaif_pipelines.settings import make_settings

    path = tmp_path / "loop.yaml"
    path.write_text(of_kind(rendered(variation), "ConfigMap")["rlaif-loop"]["data"]["loop.yaml"])
    loop = load_settings(LoopSettings, path, ["run_root=/rlaif/runs/first"])
    settings = make_settings({**loop.settings, "out": loop.run_root})
    assert (
        settings.policy_name
        == yaml.safe_load(of_kind(rendered(variation), "ConfigMap")["rlaif-sampler"]["data"]["sampler.yaml"])["policy"]
    )
    accounts = of_kind(rendered(variation), "ServiceAccount")
    claims = of_kind(rendered(variation), "PersistentVolumeClaim")
    assert settings.jobs.pod.service_account in accounts
    assert settings.jobs.pod.volume_claim in claims


def test_a_loop_shows_its_trainings_what_it_was_given_itself() -> None:
    text = of_kind(rendered("a loop on GPUs"), "ConfigMap")["rlaif-loop"]["data"]["loop.yaml"]
    loop = yaml.safe_load(text)
    pod = loop["settings"]["jobs"]["pod"]
    assert (pod["image"], pod["gpus"]) == ("ghcr.io/kube-rlaif/rlaif-trainer:0.1.0-gpu", 8)
    assert pod["tolerations"] == [{"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}]
    assert pod["environment"] == {"AWS_DEFAULT_REGION": "eu-central-1"}
    assert pod["secret_environment"]["RLAIF_TOKEN"] == "rlaif-token/token"
    assert pod["secret_files"] == {"/etc/rlaif/tls": "rlaif-tls"}
    assert loop["services"]["tls_ca_path"] == "/etc/rlaif/tls/ca.crt"
    (container,) = pod_specs(rendered("a loop on GPUs"))["CronJob/rlaif-loop"]["spec"]["containers"]
    assert {"name": "tls", "mountPath": "/etc/rlaif/tls", "readOnly": True} in container["volumeMounts"]
    assert "RLAIF_TOKEN" in [variable["name"] for variable in container["env"]]


def test_numbers_and_nulls_reach_the_services_as_they_are() -> None:
    found = of_kind(rendered("every setting"), "ConfigMap")
    sampler = yaml.safe_load(found["rlaif-sampler"]["data"]["sampler.yaml"])
    assert sampler["engine"] == {"kind": "hf", "num_threads": 2, "max_cache_tokens": 1_048_576}
    assert (sampler["sync_poll_seconds"], sampler["listen"]["max_message_bytes"]) == (2.5, 67_108_864)
    assert sampler["listen"]["log_level"] == "DEBUG"
    judge = yaml.safe_load(found["rlaif-judge"]["data"]["judge.yaml"])
    assert judge["reasoning"] is None


def test_the_schema_of_settings_is_that_of_the_code() -> None:
    spec = importlib.util.spec_from_file_location("settings_schema", CHART.parent / "settings_schema.py")
    assert spec is not None
    assert spec.loader is not None
    generator = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(generator)
    written = json.loads((CHART / "values.schema.json").read_text(encoding="utf-8"))["$defs"]
    assert written == generator.definitions(), "run `make chart-schema`"


def test_values_and_schema_know_the_same_keys() -> None:
    schema = json.loads((CHART / "values.schema.json").read_text(encoding="utf-8"))
    values = yaml.safe_load((CHART / "values.yaml").read_text(encoding="utf-8"))

    def compare(place: str, given: Mapping[str, Any], described: Mapping[str, Any]) -> None:
        if "$ref" in described:
            kind, name = described["$ref"].removeprefix("#/").split("/")
            if kind == "$defs":
                return
            described = schema[kind][name]
        if place.endswith("pod") and not given:
            return
        if "properties" in described and described.get("additionalProperties") is False:
            assert set(given) == set(described["properties"]) - {"global"}, place
            for key, value in given.items():
                if isinstance(value, Mapping):
                    compare(f"{place}.{key}", value, described["properties"][key])

    compare("values", values, schema)


def test_the_constitutions_that_values_may_name_are_those_shipped() -> None:
    text = (CHART / "templates" / "_validate.tpl").read_text(encoding="utf-8")
    (line,) = re.findall(r"\$shipped := list (.*) }}", text)
    shipped = {path.stem for folder in constitutions_path for path in Path(folder).glob("*.yaml")}
    assert set(json.loads(f"[{line.replace(' ', ',')}]")) == shipped


def test_chart_images_and_package_have_one_version() -> None:
    chart = yaml.safe_load((CHART / "Chart.yaml").read_text(encoding="utf-8"))
    assert chart["appVersion"] == chart["version"] == metadata.version("kube-rlaif")


def test_gpus_take_the_image_built_for_them_and_a_digest_decides() -> None:
    def image(variation: str, name: str) -> str:
        pod = pod_specs(rendered(variation))[f"Deployment/rlaif-{name}"]
        return str(pod["spec"]["containers"][0]["image"])

    assert image("trial-cpu", "judge") == "ghcr.io/kube-rlaif/rlaif-engine:0.1.0"
    assert image("production", "judge") == "ghcr.io/kube-rlaif/rlaif-engine:0.1.0-gpu"
    assert image("production", "oversight") == "ghcr.io/kube-rlaif/rlaif-oversight:0.1.0"
    mirror = "registry.example:5000/mirror"
    assert image("a registry of one's own", "judge") == f"{mirror}/rlaif-engine@sha256:{'a' * 64}"
    assert image("a registry of one's own", "oversight") == f"{mirror}/rlaif-oversight:0.1.0-internal"


def test_graphics_cards_are_asked_for_by_the_name_that_the_cluster_has() -> None:
    pod = pod_specs(rendered("four GPUs of another maker"))["Deployment/rlaif-judge"]["spec"]
    (container,) = pod["containers"]
    assert container["resources"]["limits"]["amd.com/gpu"] == container["resources"]["requests"]["amd.com/gpu"] == 4
    assert pod["runtimeClassName"] == "rocm"
    assert {"name": "shm", "mountPath": "/dev/shm"} in container["volumeMounts"]


def test_prometheus_is_told_how_metrics_are_guarded() -> None:
    (endpoint,) = of_kind(rendered("production"), "ServiceMonitor")["rlaif-judge"]["spec"]["endpoints"]
    judge = yaml.safe_load(of_kind(rendered("production"), "ConfigMap")["rlaif-judge"]["data"]["judge.yaml"])
    assert (judge["listen"]["metrics_tls"], judge["listen"]["metrics_token"]) == (True, True)
    assert endpoint["scheme"] == "https"
    assert endpoint["tlsConfig"]["serverName"] == "rlaif-judge"
    assert endpoint["authorization"] == {"credentials": {"name": "rlaif-metrics-token", "key": "token"}}
    (plain,) = of_kind(rendered("monitored"), "ServiceMonitor")["rlaif-judge"]["spec"]["endpoints"]
    assert plain.pop("relabelings") == [{"targetLabel": "job", "replacement": "rlaif-judge"}]
    assert plain == {"port": "metrics", "path": "/metrics", "interval": "10s"}


def test_the_hub_is_asked_only_where_a_model_is_one_of_its_ids() -> None:
    def offline(variation: str, name: str) -> bool:
        (container,) = pod_specs(rendered(variation))[f"Deployment/rlaif-{name}"]["spec"]["containers"]
        return any(variable["name"] == "HF_HUB_OFFLINE" for variable in container["env"])

    assert [offline("trial-cpu", name) for name in ("sampler", "judge", "reward")] == [True, True, True]
    assert [offline("models of the hub", name) for name in ("sampler", "judge", "reward")] == [False, False, True]
    assert not offline("reward models of every replica", "reward")
    assert offline("models on the volume", "judge")
    assert offline("production", "judge")


def test_replicas_of_the_reward_service_tell_each_other_what_is_loaded() -> None:
    def told(variation: str) -> tuple[str, bool, list[str]]:
        manifests = rendered(variation)
        settings = yaml.safe_load(of_kind(manifests, "ConfigMap")["rlaif-reward"]["data"]["reward.yaml"])
        writes = [
            name
            for name, pod in pod_specs(manifests).items()
            for container in pod["spec"]["containers"]
            for mount in container.get("volumeMounts", [])
            if name.startswith("Deployment/") and mount["mountPath"] == "/rlaif" and not mount.get("readOnly")
        ]
        return settings["artifact_root"], settings["remember_loads"], writes

    assert told("trial-cpu") == ("/rlaif/artifacts", True, ["Deployment/rlaif-reward"])
    assert told("production") == ("s3://rlaif/artifacts", True, [])


def test_storage_is_asked_in_the_region_that_values_name() -> None:
    for name in ("Deployment/rlaif-sampler", "Deployment/rlaif-reward", "CronJob/rlaif-loop"):
        (container,) = pod_specs(rendered("MinIO"))[name]["spec"]["containers"]
        told = {variable["name"]: variable.get("value") for variable in container["env"]}
        # The only variable that boto reads a region from.
        assert (told["AWS_DEFAULT_REGION"], told["AWS_ENDPOINT_URL"]) == ("main", "https://minio.storage.svc:9000")


def test_names_in_the_documentation_are_those_of_the_chart() -> None:
    kinds = {"deploy": "Deployment", "cronjob": "CronJob", "job": "Job", "svc": "Service"}
    manifests = [each for variation in VARIATIONS for each in rendered(variation)]
    known = {(each["kind"], each["metadata"]["name"]) for each in manifests}
    for document in (_DOCS / "install.md", _DOCS / "operations.md", _DOCS.parent / "README.md"):
        for kind, name in re.findall(r"\b(deploy|cronjob|job|svc)/(rlaif-[a-z-]+)", document.read_text()):
            assert (kinds[kind], name) in known, (document.name, kind, name)


def test_the_secrets_that_have_to_be_there_are_those_of_the_documentation() -> None:
    wanted: dict[str, set[str]] = {}
    for pod in pod_specs(rendered("production")).values():
        for volume in pod["spec"].get("volumes", []):
            if "secret" in volume:
                wanted.setdefault(volume["secret"]["secretName"], set())
        for container in containers(pod):
            for variable in container.get("env", []):
                if reference := variable.get("valueFrom", {}).get("secretKeyRef"):
                    wanted.setdefault(reference["name"], set()).add(reference["key"])
        for each in pod["spec"].get("imagePullSecrets", []):
            wanted.setdefault(each["name"], set())
    for monitor in of_kind(rendered("production"), "ServiceMonitor").values():
        credentials = monitor["spec"]["endpoints"][0]["authorization"]["credentials"]
        wanted.setdefault(credentials["name"], set()).add(credentials["key"])
    told = {
        name: set(re.findall(r"`([^`]+)`", keys))
        for name, keys in re.findall(
            r"^\| `[^`]+` \| `([a-z-]+)`[^|]* \| (.*) \|$", (_DOCS / "install.md").read_text(), re.M
        )
    }
    assert set(told) - {"rlaif-hub"} == set(wanted)
    for name, keys in wanted.items():
        assert keys <= told[name], name
    header = (CHART / "ci" / "production-values.yaml").read_text().partition("\n\n")[0]
    assert set(re.findall(r"rlaif-[a-z-]+|registry", header)) == set(wanted)


def test_secrets_go_only_to_pods_that_use_them() -> None:
    pods = pod_specs(rendered("production"))

    def secrets(name: str) -> dict[str, Any]:
        volumes = pods[name]["spec"]["volumes"]
        return {volume["name"]: volume["secret"] for volume in volumes if "secret" in volume}

    assert set(secrets("Deployment/rlaif-judge")) == {"tls", "tokens", "token"}
    assert set(secrets("Deployment/rlaif-sampler")) == {"tls", "tokens"}
    assert set(secrets("Deployment/rlaif-oversight")) == {"tls", "tokens"}
    assert set(secrets("Pod/rlaif-test")) == {"tls", "token"}
    # Without client certificates, who only calls gets no private key.
    tests = pod_specs(rendered("TLS"))["Pod/rlaif-test"]["spec"]["volumes"]
    assert [volume["secret"]["items"] for volume in tests if "secret" in volume] == [
        [{"key": "ca.crt", "path": "ca.crt"}]
    ]


def test_the_judge_is_asked_by_the_test_as_its_callers_ask() -> None:
    (container,) = pod_specs(rendered("production"))["Pod/rlaif-test"]["spec"]["containers"]
    (variable,) = container["env"]
    settings = ClientSettings.model_validate_json(variable["value"])
    assert settings.target == "dns:///rlaif-judge:50051"
    assert settings.token_path == Path("/run/secrets/rlaif/token/token")
    assert settings.tls_certificate_path == Path("/run/secrets/rlaif/tls/tls.crt")
    compile(container["args"][0], "compare.py", "exec")


def test_notes_say_the_next_step_and_what_pipelines_are_to_be_told() -> None:
    from rlaif_pipelines.parameters import parameters_of

    def notes_of(profile: str, changes: Values | None = None) -> str:
        values = changed(read_profile(profile), changes or {})
        texts = render_text(values, name="demo", namespace="here")
        (notes,) = [text for path, text in texts.items() if path.endswith("NOTES.txt")]
        return notes

    def told_by(notes: str) -> dict[str, Any]:
        told: dict[str, Any] = yaml.safe_load(notes.partition("--params FILE):")[2].partition("\n\n\n")[0])
        return told

    trial = notes_of("trial-cpu")
    assert "services:" not in trial
    assert "helm test demo -n here --logs" in trial
    assert "kubectl -n here port-forward svc/demo-rlaif-judge 50051" in trial
    assert "kubectl -n here create job first --from=cronjob/demo-rlaif-loop" in trial
    assert "ledger_address: dns:///demo-rlaif-oversight.here.svc:50051" in trial
    told = told_by(notes_of("production"))
    assert told["evaluator_address"] == "dns:///demo-rlaif-evaluator.here.svc:50051"
    assert told["volume_claim"] == "demo-rlaif-runs"
    # Where the names are those that pipelines look for, nothing has to be said.
    assert "token_secret" not in told
    assert told["services"] == {
        "tls_ca_path": "/etc/rlaif/tls/ca.crt",
        "tls_certificate_path": "/etc/rlaif/tls/tls.crt",
        "tls_key_path": "/etc/rlaif/tls/tls.key",
    }
    others = told_by(
        notes_of(
            "production",
            {"tokens.clientSecret": "mine", "artifacts.credentialsSecret": "", "huggingFace.tokenSecret": "hub"},
        )
    )
    assert (others["token_secret"], others["hub_secret"]) == ("mine", "hub")
    assert "storage_secret" not in others
    assert set(told) <= {parameter.name for parameter in parameters_of("rlaif")}
