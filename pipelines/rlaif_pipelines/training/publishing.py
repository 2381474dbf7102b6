"""Versions of a policy for samplers: written whole, then waited for until the sampler serves them."""

from __future__ import annotations

import shutil
from collections.abc import Collection
from typing import Any

from rlaif.runtime.artifacts import PublishedVersion, publish_version, version_folder
from rlaif_pipelines.training import engine as processes
from rlaif_pipelines.training.config import FailureSettings, PublishSettings
from rlaif_pipelines.training.engine import TrainingEngine
from rlaif_pipelines.training.errors import PausedError
from rlaif_pipelines.training.model import Base, model_card, save_model
from rlaif_pipelines.training.rollouts import Sampler, patiently

_KEPT = 2


def publish(
    engine: TrainingEngine, *, version: int, settings: PublishSettings, base: Base, facts: dict[str, Any]
) -> PublishedVersion | None:
    """Makes the engine's weights the policy's desired version. Every process calls it; process 0 gets the answer."""
    card = model_card(title=settings.policy, base=base, facts={"version": version, **facts})
    with engine.whole_weights() as state:
        if processes.rank() != 0:
            return None
        return publish_version(
            settings.artifact_root,
            settings.policy,
            version=version,
            write=lambda folder: save_model(engine.module.model, folder, base=base, card=card, state=state),
        )


def wait_until_served(published: PublishedVersion, *, sampler: Sampler, failures: FailureSettings, target: str) -> None:
    """Returns once the sampler serves exactly these weights."""
    state = patiently(
        lambda: sampler.load_policy(published.policy, min_version=published.version),
        failures=failures,
        who=f"the sampler at {target}",
    )
    if (state.version, state.digest) != (published.version, published.digest):
        raise PausedError(
            f"version {published.version} of {published.policy} was published, but the sampler at {target} serves "
            f"version {state.version}: it looks at another folder, or something else publishes versions of this policy"
        )


def drop_old_versions(settings: PublishSettings, *, kept: Collection[int]) -> None:
    """Removes the policy's versions except the newest two and those to be kept."""
    folder = version_folder(settings.artifact_root, settings.policy, version=0).parent
    versions = sorted(int(path.name) for path in folder.iterdir() if path.name.isdigit())
    for version in versions[:-_KEPT]:
        if version not in kept:
            shutil.rmtree(version_folder(settings.artifact_root, settings.policy, version=version))
