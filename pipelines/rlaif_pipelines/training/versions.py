"""The versions that an online training publishes: what it may go back to, and what must stay in the store for it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rlaif.runtime.artifacts import PublishedVersion
from rlaif_pipelines.training.checkpoint import checkpointed_steps
from rlaif_pipelines.training.config.rl import RlTraining
from rlaif_pipelines.training.engine import TrainingEngine
from rlaif_pipelines.training.guards import HeldOutScore
from rlaif_pipelines.training.model import Base
from rlaif_pipelines.training.publishing import drop_old_versions, publish, republish, wait_until_served
from rlaif_pipelines.training.rollouts import Sampler


@dataclass(frozen=True)
class RolledBack:
    """Which weights a stopped training left."""

    num_steps: int
    from_version: int
    published: PublishedVersion
    held_out: float | None

    @property
    def sentence(self) -> str:
        """For who reads why it stopped."""
        why = "the last before it" if self.held_out is None else f"the best held-out score, {self.held_out:.3f}"
        return (
            f"went back to the weights after step {self.num_steps} ({why}), published as version "
            f"{self.published.version}"
        )

    def to_json(self) -> dict[str, Any]:
        """As a JSON object."""
        return {
            "num_steps": self.num_steps,
            "from_version": self.from_version,
            "version": self.published.version,
            "held_out": self.held_out,
        }


class Versions:
    """Publishes, remembers, forgets and goes back. What it remembers goes through a checkpoint."""

    def __init__(self, settings: RlTraining, *, base: Base, sampler: Sampler, checkpoints: Path) -> None:
        self._settings = settings
        self._base = base
        self._sampler = sampler
        self._checkpoints = checkpoints
        self._kept: dict[int, PublishedVersion] = {}
        """Those that may be gone back to: the best, and the latest two. Process 0 alone knows them."""
        self._needed_by: dict[int, list[int]] = {}
        """By step of a checkpoint, the versions that going on from there may need."""
        self.latest: PublishedVersion | None = None
        """What samplers should serve now; process 0 alone knows it."""

    def after(self, step: int) -> int:
        """The version of the weights after that many steps."""
        return self._settings.publish.base_version + step * self._settings.updates_per_batch

    def steps_of(self, version: int) -> int:
        """How many steps the weights of that version had been trained for."""
        return (version - self._settings.publish.base_version) // self._settings.updates_per_batch

    def publish(self, engine: TrainingEngine, *, step: int, best: HeldOutScore | None) -> None:
        """Returns once samplers serve the weights after that step; every process calls it."""
        settings, version = self._settings, self.after(step)
        facts = {"optimiser steps": step * settings.updates_per_batch, "reward": settings.reward.name}
        self.latest = publish(
            engine,
            version=version,
            settings=settings.publish,
            base=self._base,
            facts=facts,
            failures=settings.failures,
        )
        if self.latest is not None:
            self._kept[version] = self.latest
            self._wait_until_served(self.latest)
            self._drop_old(best)

    def forget_all_but(self, best: HeldOutScore | None) -> None:
        """Keeps in mind what may be gone back to from here."""
        latest = sorted(self._kept)[-2:]
        self._kept = {
            version: published
            for version, published in self._kept.items()
            if version in latest or (best is not None and version == best.version)
        }

    def go_back(self, best: HeldOutScore | None) -> RolledBack:
        """Publishes the best version again as a new one; where none was measured, leaves the latest, which the last
        rollouts came from. Only process 0 calls it.
        """
        assert self.latest is not None, "process 0 has published at least once"
        found = self.latest if best is None else self._kept[best.version]
        if found.version != self.latest.version:
            self.latest = republish(
                found,
                version=self.latest.version + 1,
                settings=self._settings.publish,
                base=self._base,
                facts={"weights of version": found.version},
                failures=self._settings.failures,
            )
            self._wait_until_served(self.latest)
        return RolledBack(
            num_steps=self.steps_of(found.version),
            from_version=found.version,
            published=self.latest,
            held_out=best.mean if best else None,
        )

    def to_json(self, *, step: int) -> dict[str, Any]:
        """All that it remembers, for the checkpoint of that step, which may need what there is now."""
        steps = {step, *checkpointed_steps(self._checkpoints)}
        self._needed_by = {each: versions for each, versions in self._needed_by.items() if each in steps}
        self._needed_by[step] = sorted(self._kept)
        return {"kept": [asdict(published) for published in self._kept.values()], "needed_by": self._needed_by}

    def load(self, values: Mapping[str, Any]) -> None:
        """Goes back to what `to_json` gave."""
        self._kept = {each["version"]: PublishedVersion(**each) for each in values["kept"]}
        self._needed_by = {int(step): versions for step, versions in values["needed_by"].items()}

    def _drop_old(self, best: HeldOutScore | None) -> None:
        steps = checkpointed_steps(self._checkpoints)
        needed = {version for step in steps for version in (self.after(step), *self._needed_by.get(step, ()))}
        kept = {self.after(0), *needed, *(() if best is None else (best.version,))}
        drop_old_versions(self._settings.publish, kept=kept, failures=self._settings.failures)

    def _wait_until_served(self, published: PublishedVersion) -> None:
        settings = self._settings
        wait_until_served(published, sampler=self._sampler, failures=settings.failures, target=settings.sampler.target)
