"""Versions of a policy for samplers: full weights or an adapter, written whole, then waited for until served."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

from rlaif.core.errors import InvalidInputError
from rlaif.runtime.artifacts import PublishedVersion, atomic_write_folder
from rlaif.runtime.store import ArtifactStore, open_store
from rlaif_pipelines.training import engine as processes
from rlaif_pipelines.training.config.common import FailureSettings, PublishSettings
from rlaif_pipelines.training.engine import TrainingEngine
from rlaif_pipelines.training.errors import PausedError, told_when_full
from rlaif_pipelines.training.lora import has_adapter, load_adapter
from rlaif_pipelines.training.model import Base, load_policy, model_card, save_adapter, save_model, write_base
from rlaif_pipelines.training.rollouts import Sampler, patiently

_KEPT = 2
_ADAPTER_FILES = ("adapter_config.json", "adapter_model.safetensors")


def publish(
    engine: TrainingEngine,
    *,
    version: int,
    settings: PublishSettings,
    base: Base,
    facts: dict[str, Any],
    failures: FailureSettings | None = None,
) -> PublishedVersion | None:
    """Makes the engine's weights, or its adapter, the policy's desired version. Every process calls it.

    Process 0 gets the answer. With `failures`, a store that is away is waited for.
    """
    card = model_card(title=settings.policy, base=base, facts={"version": version, **facts})
    store = store_of(settings)
    adapted = has_adapter(engine.module.model)
    with engine.adapter_weights() if adapted else engine.whole_weights() as state:
        if processes.rank() != 0:
            return None

        def write(folder: Path) -> None:
            if adapted:
                save_adapter(engine.module.model, folder, base=base, card=card, state=state)
            else:
                save_model(engine.module.model, folder, base=base, card=card, state=state)

        def attempt() -> PublishedVersion:
            with told_when_full(Path(store.root)):
                return store.publish_version(settings.policy, version=version, write=write)

        return attempt() if failures is None else patiently(attempt, failures=failures, who=f"the store {store.root}")


def republish(
    published: PublishedVersion,
    *,
    version: int,
    settings: PublishSettings,
    base: Base,
    facts: dict[str, Any],
    failures: FailureSettings,
) -> PublishedVersion:
    """Makes an older version's weights the desired ones again, as a new version with the same digest.

    Only process 0 calls it.
    """
    card = model_card(title=settings.policy, base=base, facts={"version": version, **facts})
    store = store_of(settings)

    def write(folder: Path) -> None:
        shutil.copytree(store.fetch(published.uri, digest=published.digest), folder, dirs_exist_ok=True)
        (folder / "README.md").write_text(card, encoding="utf-8")

    return patiently(
        lambda: store.publish_version(settings.policy, version=version, write=write),
        failures=failures,
        who=f"the store {store.root}",
    )


def write_version(published: PublishedVersion, out: Path, *, base: Base, card: str, settings: PublishSettings) -> None:
    """Writes `out`/model, and `out`/adapter where it is one, from a version that was published. Process 0 alone."""
    found = store_of(settings).fetch(published.uri, digest=published.digest)
    is_adapter = (found / _ADAPTER_FILES[0]).is_file()

    def copy(folder: Path) -> None:
        shutil.copytree(found, folder, dirs_exist_ok=True)
        (folder / "README.md").write_text(card, encoding="utf-8")

    with told_when_full(out):
        atomic_write_folder(out / ("adapter" if is_adapter else "model"), copy)
        if is_adapter:
            model = load_policy(base, precision="float32", attention="eager")
            load_adapter(model, found)
            atomic_write_folder(out / "model", lambda folder: save_model(model, folder, base=base, card=card))


def write_policy(engine: TrainingEngine, out: Path, *, base: Base, card: str) -> None:
    """Writes `out`/model, and what was trained of it as `out`/adapter where that is one. Every process calls it."""
    model = engine.module.model

    def save(name: str, write: Callable[..., None]) -> None:
        with told_when_full(out / name):
            atomic_write_folder(out / name, lambda folder: write(model, folder, base=base, card=card, state=state))

    with engine.whole_weights() as state:
        if processes.rank() == 0:
            save("model", save_model)
            if has_adapter(model):
                save("adapter", save_adapter)
    processes.barrier()


def publish_adapter(
    *, version: int, settings: PublishSettings, base: Base, write: Callable[[Path], None]
) -> PublishedVersion:
    """Makes a LoRA adapter of `base` the policy's desired version: a few megabytes in place of all weights.

    `write` fills a folder as PEFT's `save_pretrained` does; what it must be put on is added as base.json. Only
    process 0 calls it.
    """

    def write_with_base(folder: Path) -> None:
        write(folder)
        missing = [name for name in _ADAPTER_FILES if not (folder / name).is_file()]
        if missing:
            raise InvalidInputError(f"the adapter to publish lacks {' and '.join(missing)}", field="adapter")
        write_base(folder, base)

    return store_of(settings).publish_version(settings.policy, version=version, write=write_with_base)


def wait_until_served(published: PublishedVersion, *, sampler: Sampler, failures: FailureSettings, target: str) -> None:
    """Returns once the sampler serves exactly these weights."""
    state = patiently(
        lambda: sampler.load_policy(published.policy, min_version=published.version),
        failures=failures,
        who=f"the sampler at {target}",
    )
    if (state.version, state.digest) != (published.version, published.digest):
        raise PausedError(
            f"version {published.version} of {published.policy} was published with digest {published.digest[:12]}, but "
            f"the sampler at {target} serves version {state.version} with digest {state.digest[:12]}: it looks at "
            "another folder, or something else publishes versions of this policy"
        )


def drop_old_versions(settings: PublishSettings, *, kept: Collection[int], failures: FailureSettings) -> None:
    """Removes the policy's versions except the newest two and those to be kept."""
    store = store_of(settings)

    def attempt() -> None:
        newest = store.list_versions(settings.policy)[-_KEPT:]
        if newest:
            store.remove_versions_before(settings.policy, newest[0], kept=kept)

    patiently(attempt, failures=failures, who=f"the store {store.root}")


def store_of(settings: PublishSettings) -> ArtifactStore:
    """The store that the settings name."""
    return open_store(settings.artifact_root, storage_options=settings.storage_options)
