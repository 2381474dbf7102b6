"""What the services serve, held against what the run is about: whatever moved behind an address is noticed here."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import TYPE_CHECKING

from rlaif.core.constitution import Constitution
from rlaif.core.errors import InvalidInputError, NotFoundError
from rlaif_pipelines.context import RunContext
from rlaif_pipelines.settings import NO_EVALUATOR, RunSettings, ServiceAddresses

if TYPE_CHECKING:
    from rlaif.client.judge import JudgeClient


def check_addresses(settings: RunSettings, services: ServiceAddresses) -> None:
    """InvalidInputError where a service that the run will ask has no address: not only once it is asked."""
    pipeline = settings.pipeline
    needed = {
        "sampler": pipeline != "judge-benchmark",
        "judge": pipeline != "evaluate-only",
        "reward": pipeline == "rlaif" and settings.algorithm == "grpo",
    }
    for name, is_needed in needed.items():
        if is_needed and getattr(services, name) is None:
            raise InvalidInputError(
                f"pipeline {pipeline} needs a {name} service: give {name}_address (services.{name})",
                field=f"services.{name}",
            )
    if not settings.asks_evaluator:
        return
    if settings.evaluator_uri is not None and services.evaluator is None:
        raise InvalidInputError(
            f"evaluator {settings.evaluator!r} needs a judge service that has it: give evaluator_address "
            "(services.evaluator)",
            field="services.evaluator",
        )
    if settings.evaluator is None and services.evaluator is not None:
        raise InvalidInputError(
            f"a second judge at {services.evaluator} needs its model named as evaluator, or {NO_EVALUATOR!r} there for "
            "none",
            field="evaluator",
        )


def check_sampler(context: RunContext, *, policy_digest: str) -> None:
    """InvalidInputError where the sampler does not serve the run's policy, or serves another base or run's."""
    with context.sampler() as sampler:
        try:
            state = sampler.get_policy(context.policy)
        except NotFoundError as error:
            raise InvalidInputError(
                f"the sampler at {context.services.sampler} does not serve {context.policy}: give the name that it "
                "serves as policy_resource",
                field="policy_resource",
            ) from error
    if state.version == 0:
        _check_same("sampler", "policy", told=context.settings.policy, digests=(policy_digest, state.digest))
    elif not _has_published(context):
        raise InvalidInputError(
            f"the sampler at {context.services.sampler} serves version {state.version} of {context.policy}, which "
            "another run has made: have it serve the policy under a new name, and give that as policy_resource",
            field="policy_resource",
        )


def served_judge(context: RunContext, constitution: Constitution, *, judge_digest: str) -> dict[str, str]:
    """Which judge answers at the address that was given: `digest`, and `fingerprint` of all that shapes its verdicts.

    Without an address they are what the settings' own model says. InvalidInputError where the judge is another model,
    or has other rules under the constitution's name.
    """
    if context.services.judge is None:
        return {"digest": judge_digest, "fingerprint": ""}
    return _served(context, "judge", context.judge(), constitution, told=context.settings.judge, digest=judge_digest)


def served_evaluator(context: RunContext, constitution: Constitution, *, evaluator_digest: str) -> str:
    """Digest of the second judge, likewise; empty where it cannot be known, or the run asks none."""
    if context.services.evaluator is None or not context.settings.asks_evaluator:
        return evaluator_digest
    told = str(context.settings.evaluator)
    found = _served(context, "evaluator", context.evaluator(), constitution, told=told, digest=evaluator_digest)
    return found["digest"]


def judge_identity(context: RunContext) -> dict[str, str]:
    """What of the judge its answers depend on; part of the inputs of every stage that asks it."""
    values = context.result("prepare").values
    return {"digest": values["judge_digest"], "fingerprint": values["judge_fingerprint"]}


def _served(
    context: RunContext,
    service: str,
    client: AbstractContextManager[JudgeClient],
    constitution: Constitution,
    *,
    told: str,
    digest: str,
) -> dict[str, str]:
    address = getattr(context.services, service)
    with client as judge:
        state = judge.get_judge()
        try:
            rules = judge.get_constitution(constitution.name)
        except NotFoundError as error:
            raise InvalidInputError(
                f"the {service} at {address} has no {constitution.name}: add it to the {service}'s settings, or name "
                "one that it has",
                field="constitution",
            ) from error
    _check_same(service, service, told=told, digests=(digest, state.model_digest))
    if rules.sha256 != constitution.sha256:
        raise InvalidInputError(
            f"the {service} at {address} has other rules under the name {constitution.name} (SHA-256 "
            f"{rules.sha256[:12]}) than this run ({constitution.sha256[:12]}): give both the same file",
            field="constitution",
        )
    return {"digest": digest or state.model_digest, "fingerprint": state.fingerprint}


def _has_published(context: RunContext) -> bool:
    """Whether a stage of this run that publishes versions of the policy has begun."""
    return any(context.stage_folder(stage).exists() for stage in ("adopt", "sft", "train"))


def _check_same(service: str, field: str, *, told: str, digests: tuple[str, str]) -> None:
    wanted, served = digests
    if wanted and served and wanted != served:
        raise InvalidInputError(
            f"the {service} serves other weights (digest {served[:12]}) than {field} {told!r} (digest {wanted[:12]}): "
            f"start it with that model, or name the one it serves as {field}",
            field=field,
        )
