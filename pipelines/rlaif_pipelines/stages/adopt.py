"""Publish a model that was made elsewhere as the run's first version, so that its completions can be evaluated."""

from __future__ import annotations

import functools
import shutil
from pathlib import Path

from rlaif.core.errors import InvalidInputError
from rlaif.runtime.artifacts import folder_digest
from rlaif.runtime.store import open_store
from rlaif_pipelines.context import RunContext, StageOutput, StageResult
from rlaif_pipelines.stages.model_folder import model_folder
from rlaif_pipelines.stages.policy import base_policy

_VERSION = 1


def adopt(context: RunContext) -> StageResult:
    """The candidate as version 1 of the run's policy, served."""
    candidate = context.settings.candidate
    assert candidate is not None, "settings see to it"
    folder = model_folder(candidate, field="candidate")
    digest, start = folder_digest(folder), base_policy(context)
    if digest == start.digest:
        raise InvalidInputError(
            f"candidate {candidate!r} has the weights of the policy that it is to be held against", field="candidate"
        )
    inputs = {"candidate": digest, "policy": context.policy, "base": start.digest}

    def body(stage_folder: Path) -> StageOutput:
        del stage_folder
        write = functools.partial(shutil.copytree, folder, dirs_exist_ok=True)
        published = open_store(context.artifact_root).publish_version(context.policy, version=_VERSION, write=write)
        with context.sampler() as sampler:
            sampler.load_policy(context.policy, min_version=_VERSION)
        context.record_event(
            "policy_published",
            subject=context.policy,
            payload={"stage": "adopt", "version": _VERSION, "digest": published.digest, "from": start.digest},
        )
        return StageOutput(
            values={
                "version": published.version,
                "uri": published.uri,
                "digest": published.digest,
                "candidate": candidate,
                "stopped_by": None,
            }
        )

    return context.run_stage("adopt", body, inputs=inputs)
