"""Check what the run was given and write down what it is made of, before anything costs time."""

from __future__ import annotations

import platform
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any, Final

from rlaif.core.constitution import Constitution
from rlaif.core.errors import InvalidInputError, SettingsError
from rlaif.runtime.artifacts import folder_digest
from rlaif.runtime.store import is_remote, local_folder
from rlaif_pipelines.context import RUN_FILE, RunContext, StageOutput, StageResult, now, read_json, write_json
from rlaif_pipelines.mounts import complete_services, hand_on_secrets
from rlaif_pipelines.parameters import services_from, settings_from
from rlaif_pipelines.settings import RunSettings, ServiceAddresses, make_settings
from rlaif_pipelines.stages.constitution import load_constitution
from rlaif_pipelines.stages.model_folder import model_folder
from rlaif_pipelines.stages.served import check_addresses, check_sampler, served_evaluator, served_judge

RUN_SCHEMA: Final = 1
_PACKAGES: Final = ("kube-rlaif", "kfp", "torch", "transformers", "deepspeed", "grpcio", "protobuf")


def create_run(settings: RunSettings, services: ServiceAddresses) -> RunContext:
    """Write run.json, which every stage reads; started again, the run keeps its creation time."""
    root = settings.out.absolute()
    path = root / RUN_FILE
    known: dict[str, Any] = read_json(path) if path.is_file() else {"created": now()}
    record = known | {
        "schema": RUN_SCHEMA,
        "started": now(),
        "seed": settings.seed,
        "policy": settings.policy_name,
        "settings": settings.model_dump(mode="json"),
        "services": services.model_dump(mode="json"),
        "versions": {"python": platform.python_version(), **_versions()},
    }
    write_json(path, record)
    return RunContext(root=root, settings=settings, services=services)


def create_run_from(given: Mapping[str, Any]) -> RunContext:
    """The same from what a pipeline was given: its parameters, and what it was compiled for."""
    values = settings_from(given) | {"out": given["run_root"]}
    _check_compiled(values, given)
    hand_on_secrets(values, given)
    services = ServiceAddresses.model_validate(complete_services(services_from(given)))
    return create_run(make_settings(values), services)


def prepare(context: RunContext) -> StageResult:
    """Digests of the models and the constitution, in the result and in run.json."""
    settings = context.settings
    constitution = load_constitution(settings.constitution)
    check_addresses(settings, context.services)
    policy_uri, policy_digest = _policy(context) if settings.pipeline != "judge-benchmark" else (None, "")
    judge = served_judge(context, constitution, judge_digest=_digest(settings.judge_uri))
    evaluator_digest = _evaluator_digest(context, constitution, judge_digest=judge["digest"])
    values = {
        "policy": context.policy,
        "policy_uri": policy_uri,
        "policy_digest": policy_digest,
        "judge_uri": settings.judge_uri,
        "judge_digest": judge["digest"],
        "judge_fingerprint": judge["fingerprint"],
        "evaluator_uri": settings.evaluator_uri,
        "evaluator_digest": evaluator_digest,
        "constitution": constitution.name,
        "constitution_sha256": constitution.sha256,
        "route": settings.route,
        "branch": settings.branch,
    }

    def body(folder: Path) -> StageOutput:
        write_json(context.root / RUN_FILE, read_json(context.root / RUN_FILE) | {"digests": values})
        return StageOutput(values=values)

    return context.run_stage("prepare", body, inputs=values)


def _check_compiled(values: dict[str, Any], given: Mapping[str, Any]) -> None:
    """Put in what the pipeline was compiled for; SettingsError where the settings want another pipeline."""
    compiled: dict[str, Any] = {"pipeline": given["pipeline"], "rounds": given["rounds"]}
    if given["constitutional"] == "only":
        compiled["algorithm"] = "sft"
    for name, value in compiled.items():
        if values.setdefault(name, value) != value:
            raise SettingsError(
                f"the pipeline was compiled for {name} = {value!r}, and the run's settings say {values[name]!r}: "
                "compile it for them (rlaif compile --help)",
                field=name,
            )
    stage = make_settings(values).constitutional_stage
    if given["constitutional"] == "first" and stage == "none":
        values["constitutional"] = {**values.get("constitutional", {}), "enabled": True}
    elif stage != given["constitutional"]:
        raise SettingsError(
            f"the pipeline was compiled with --constitutional {given['constitutional']}, and the run's settings want "
            f"{stage!r}: compile it for them",
            field="constitutional.enabled",
        )


def check_not_the_same_judge(*, judge_digest: str, evaluator_digest: str) -> None:
    """InvalidInputError when the evaluator's weights are the judge's. Weights without a digest cannot be told apart."""
    if judge_digest and judge_digest == evaluator_digest:
        raise InvalidInputError(
            "the evaluator has the same weights as the judge that labels: an evaluation by the judge whose labels "
            "trained the policy is no evidence; name another model as evaluator, or none",
            field="evaluator",
        )


def _evaluator_digest(context: RunContext, constitution: Constitution, *, judge_digest: str) -> str:
    uri = context.settings.evaluator_uri
    if uri is None:
        return ""
    found = served_evaluator(context, constitution, evaluator_digest=_digest(uri))
    check_not_the_same_judge(judge_digest=judge_digest, evaluator_digest=found)
    return found


def _policy(context: RunContext) -> tuple[str, str]:
    """What stages call the base policy, and its digest, which is that of the sampler's."""
    name = context.settings.policy
    folder = model_folder(name, field="policy")
    digest = folder_digest(folder)
    check_sampler(context, policy_digest=digest)
    return name if is_remote(name) else str(folder), digest


def _digest(uri: str) -> str:
    """Digest of a model folder; empty for a hub id or address, whose weights the service that loads them identifies."""
    path = local_folder(uri)
    return folder_digest(path) if path.is_dir() else ""


def _versions() -> dict[str, str]:
    found = {}
    for name in _PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found
