"""What the services serve, held against what the run is about: whatever moved behind an address is noticed here."""

from __future__ import annotations

from typing import Any

from rlaif.core.constitution import Constitution
from rlaif.core.errors import InvalidInputError, NotFoundError
from rlaif_pipelines.context import RunContext


def check_sampler(context: RunContext, *, policy_digest: str) -> None:
    """InvalidInputError where the sampler does not serve the run's policy, or has another base."""
    if context.services.sampler is None:
        return
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


def served_judge(context: RunContext, constitution: Constitution, *, judge_digest: str) -> dict[str, Any]:
    """Which judge answers at the address that was given: `digest`, and `fingerprint` of all that shapes its verdicts.

    Without an address they are what the settings' own model says. InvalidInputError where the judge is another model,
    or has other rules under the constitution's name.
    """
    if context.services.judge is None:
        return {"digest": judge_digest, "fingerprint": ""}
    with context.judge() as judge:
        state = judge.get_judge()
        try:
            rules = judge.get_constitution(constitution.name)
        except NotFoundError as error:
            raise InvalidInputError(
                f"the judge at {context.services.judge} has no {constitution.name}: add it to the judge's settings, "
                "or name one that it has",
                field="constitution",
            ) from error
    _check_same("judge", "judge", told=context.settings.judge, digests=(judge_digest, state.model_digest))
    if rules.sha256 != constitution.sha256:
        raise InvalidInputError(
            f"the judge at {context.services.judge} has other rules under the name {constitution.name} (SHA-256 "
            f"{rules.sha256[:12]}) than this run ({constitution.sha256[:12]}): give both the same file",
            field="constitution",
        )
    return {"digest": judge_digest or state.model_digest, "fingerprint": state.fingerprint}


def judge_identity(context: RunContext) -> dict[str, str]:
    """What of the judge its answers depend on; part of the inputs of every stage that asks it."""
    values = context.result("prepare").values
    return {"digest": values["judge_digest"], "fingerprint": values["judge_fingerprint"]}


def _check_same(service: str, field: str, *, told: str, digests: tuple[str, str]) -> None:
    wanted, served = digests
    if wanted and served and wanted != served:
        raise InvalidInputError(
            f"the {service} serves other weights (digest {served[:12]}) than {field} {told!r} (digest {wanted[:12]}): "
            f"start it with that model, or name the one it serves as {field}",
            field=field,
        )
