"""Give the trained weights to the policy that is used, where the evaluation says that they are an improvement."""

from __future__ import annotations

import functools
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rlaif.runtime.artifacts import PublishedVersion
from rlaif.runtime.store import ArtifactStore, local_folder, open_store
from rlaif_pipelines.context import RunContext, StageOutput, StageResult, stage_name
from rlaif_pipelines.stages.policy import PolicyVersion, trained_policy, training_stage


def promote(context: RunContext) -> StageResult:
    """The next version of the policy that settings name, from the last round's; or why there is none."""
    round_number = context.settings.rounds
    policy = trained_policy(context, round_number=round_number)
    verdict = context.result(stage_name("evaluate", round_number)).values["verdict"]
    stopped_by = context.result(training_stage(context, round_number=round_number)).values["stopped_by"]
    target = context.settings.promote_to
    inputs = {"to": target, "digest": policy.digest, "verdict": verdict, "stopped_by": stopped_by}

    def body(folder: Path) -> StageOutput:
        del folder
        reason = _why_not(context, verdict=verdict, stopped_by=stopped_by)
        if reason is not None or target is None:
            return StageOutput(values={"promoted": False, "reason": reason, "uri": policy.uri, "digest": policy.digest})
        published = _publish(open_store(context.artifact_root), target, policy)
        context.record_event(
            "policy_promoted",
            subject=target,
            payload={
                "version": published.version,
                "digest": published.digest,
                "from_policy": context.policy,
                "from_version": policy.version,
                "verdict": verdict,
            },
        )
        values: Mapping[str, Any] = {
            "promoted": True,
            "reason": None,
            "policy": target,
            "version": published.version,
            "uri": published.uri,
            "digest": published.digest,
        }
        return StageOutput(values=values)

    return context.run_stage("promote", body, inputs=inputs)


def _why_not(context: RunContext, *, verdict: str, stopped_by: str | None) -> str | None:
    if context.settings.promote_to is None:
        return "no policy to promote to was named"
    if stopped_by is not None:
        return f"a guard stopped its training: {stopped_by}"
    return None if verdict == "improved" else f"the verdict is {verdict.replace('_', ' ')}"


def _publish(store: ArtifactStore, target: str, policy: PolicyVersion) -> PublishedVersion:
    """The weights as the target's next version; published before, by an attempt that was killed, they are left."""
    before = store.read_desired(target)
    if before is not None and before.digest == policy.digest:
        return before
    write = functools.partial(shutil.copytree, local_folder(policy.uri, digest=policy.digest), dirs_exist_ok=True)
    return store.publish_version(target, version=before.version + 1 if before else 1, write=write)
