"""Keeps the engine on the version of the policy that shared storage asks for."""

from __future__ import annotations

import asyncio
import time
from datetime import UTC, datetime
from pathlib import Path

from rlaif.core.errors import CorruptionError, RlaifError
from rlaif.engine.protocol import ModelIdentity
from rlaif.runtime.artifacts import PublishedVersion, folder_digest, read_desired
from rlaif.runtime.logging import EventLogger
from rlaif.sampler.metrics import SamplerMetrics
from rlaif.sampler.queue import SamplingQueue

_log = EventLogger(__name__)

# How often a caller who waits for a version has shared storage looked at.
_WAIT_SECONDS = 0.05


class PolicySync:
    """The policy one replica serves, and what it should serve."""

    def __init__(
        self, queue: SamplingQueue, *, policy: str, artifact_root: Path | None, metrics: SamplerMetrics
    ) -> None:
        self._queue, self._policy, self._root, self._metrics = queue, policy, artifact_root, metrics
        self._looking = asyncio.Lock()
        self._last_failure = ""
        self.desired_version = queue.identity.version
        """Version published on shared storage, as of the last look."""
        self.load_time = datetime.now(UTC)
        """When the weights being served were loaded."""
        metrics.policy_version.set(queue.identity.version)
        metrics.desired_policy_version.set(self.desired_version)

    @property
    def policy(self) -> str:
        """Resource name, "policies/{run}"."""
        return self._policy

    @property
    def identity(self) -> ModelIdentity:
        """Weights now being served."""
        return self._queue.identity

    async def look(self) -> None:
        """Serves what is published; raises when it cannot, and keeps the weights it had."""
        if self._root is None:
            return
        async with self._looking:
            try:
                await self._follow(self._root)
            except (RlaifError, OSError):
                self._metrics.sync_failures.inc()
                raise

    async def wait_for(self, version: int) -> None:
        """Returns once that version or a later one is served; waits as long as the caller's deadline allows."""
        await self.look()
        while self.identity.version < version:
            await asyncio.sleep(_WAIT_SECONDS)
            await self._look_or_log()

    async def run(self, *, poll_seconds: float) -> None:
        """Looks for ever."""
        while True:
            await asyncio.sleep(poll_seconds)
            await self._look_or_log()

    async def _look_or_log(self) -> None:
        try:
            await self.look()
            self._last_failure = ""
        except (RlaifError, OSError) as error:
            # A failure that stays is one log line, not one a poll.
            if str(error) != self._last_failure:
                _log.error("policy not synced", policy=self._policy, error=str(error))
            self._last_failure = str(error)

    async def _follow(self, root: Path) -> None:
        desired = await asyncio.to_thread(read_desired, root, self._policy)
        if desired is None:
            return
        self.desired_version = desired.version
        self._metrics.desired_policy_version.set(desired.version)
        served = self.identity
        if (desired.version, desired.digest) == (served.version, served.digest):
            return
        started = time.perf_counter()
        await asyncio.to_thread(_check_digest, desired)
        await self._queue.load(ModelIdentity(uri=desired.uri, digest=desired.digest, version=desired.version))
        seconds = time.perf_counter() - started
        self.load_time = datetime.now(UTC)
        self._metrics.policy_version.set(desired.version)
        self._metrics.policy_load_seconds.observe(seconds)
        _log.info("policy loaded", policy=self._policy, version=desired.version, seconds=round(seconds, 4))


def _check_digest(desired: PublishedVersion) -> None:
    found = folder_digest(Path(desired.uri))
    if found != desired.digest:
        raise CorruptionError(
            f"version {desired.version} of {desired.policy} was published with digest {desired.digest[:12]}…, "
            f"its folder has {found[:12]}…",
            metadata={"policy": desired.policy, "version": str(desired.version)},
        )
