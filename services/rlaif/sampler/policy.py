"""Keeps the engine on the version of the policy that shared storage asks for."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from datetime import UTC, datetime
from typing import Any, TypeVar

from rlaif.core.errors import (
    DeadlineError,
    InvalidInputError,
    NotFoundError,
    PreconditionError,
    RlaifError,
    UnavailableError,
)
from rlaif.engine.protocol import ModelIdentity
from rlaif.runtime.artifacts import PublishedVersion
from rlaif.runtime.context import remaining_seconds
from rlaif.runtime.logging import EventLogger
from rlaif.runtime.store import ArtifactStore
from rlaif.sampler.metrics import SamplerMetrics
from rlaif.sampler.queue import SamplingQueue

_log = EventLogger(__name__)

Result = TypeVar("Result")

# How often a caller who waits for a version has shared storage looked at.
_WAIT_SECONDS = 0.05
# What an answer needs of the caller's deadline.
_MARGIN_SECONDS = 0.25
# A version that cannot be served is tried again after twice as long each time, up to this.
_MAX_PAUSE_SECONDS = 60.0
_PASSING = (UnavailableError, DeadlineError, OSError)


class PolicySync:
    """The policy one replica serves, and what it should serve.

    Nothing it waits for can hang it: whatever takes longer than the deadline is an error, and is not begun a second
    time before it ends.
    """

    def __init__(
        self,
        queue: SamplingQueue,
        *,
        policy: str,
        store: ArtifactStore | None,
        deadline_seconds: float,
        metrics: SamplerMetrics,
    ) -> None:
        self._queue, self._policy, self._store, self._metrics = queue, policy, store, metrics
        self._deadline_seconds = deadline_seconds
        self._looking = asyncio.Lock()
        self._next_look: asyncio.Task[None] | None = None
        self._under_way: tuple[str, float, asyncio.Future[Any]] | None = None
        self._behind_since: float | None = None
        self._failure = ""
        self._trying: PublishedVersion | None = None
        self._failed: tuple[PublishedVersion, RlaifError | OSError] | None = None
        self._patient = True
        self._pause_seconds, self._paused_until = 0.0, 0.0
        self.desired_version = queue.identity.version
        """Version published on shared storage, as of the last look."""
        self.load_time = datetime.now(UTC)
        """When the weights being served were loaded."""
        metrics.policy_version.set(queue.identity.version)
        metrics.desired_policy_version.set(self.desired_version)
        metrics.behind_seconds.set_function(lambda: self.behind_seconds)
        metrics.sync_deadline.set(deadline_seconds)

    @property
    def policy(self) -> str:
        """Resource name, "policies/{run}"."""
        return self._policy

    @property
    def identity(self) -> ModelIdentity:
        """Weights now being served."""
        return self._queue.identity

    @property
    def behind_seconds(self) -> float:
        """Time since this replica learnt of a version that it does not serve yet; 0 when it is current."""
        return 0.0 if self._behind_since is None else time.monotonic() - self._behind_since

    def unready(self) -> str:
        """Why this replica should get no calls: it is behind for longer than the deadline; else ""."""
        behind = self.behind_seconds
        if behind <= self._deadline_seconds:
            return ""
        return (
            f"{self._policy} is served at version {self.identity.version}, and version {self.desired_version} was "
            f"published {behind:.0f} s ago: {self._failure or 'it is still being loaded'}"
        )

    async def look(self, *, patient: bool = False) -> None:
        """Serves what is published, as seen after this call; raises when it cannot, and keeps the weights it had.

        `patient` does not try again so soon what has failed. A caller who goes away does not stop it.
        """
        if self._store is None:
            return
        self._patient = self._patient and patient
        if self._next_look is None:
            self._next_look = asyncio.create_task(self._look(self._store))
            self._next_look.add_done_callback(_read_failure)
        await asyncio.shield(self._next_look)

    async def wait_for(self, version: int) -> None:
        """Returns once that version or a later one is served.

        Raises what stands in the way: at once when trying again has not helped and waiting will not, else when the
        caller's deadline is near.
        """
        remaining = remaining_seconds()
        margin = 0.0 if remaining is None else min(_MARGIN_SECONDS, remaining / 5)
        until = None if remaining is None else asyncio.get_running_loop().time() + remaining - margin
        num_failures, cause = 0, ""
        try:
            async with asyncio.timeout_at(until) as scope:
                while True:
                    try:
                        await self.look()
                    except (RlaifError, OSError) as error:
                        num_failures, cause = num_failures + 1, str(error)
                        # A version that is being published again may not match for a moment.
                        if num_failures > 1 and not isinstance(error, _PASSING):
                            raise self._told(error) from error
                    else:
                        if self.identity.version >= version:
                            return
                        num_failures, cause = 0, ""
                    await asyncio.sleep(_WAIT_SECONDS)
        except TimeoutError as error:
            if not scope.expired():
                raise
            raise self._too_late(version, cause) from error

    async def run(self, *, poll_seconds: float) -> None:
        """Looks for ever."""
        while True:
            await asyncio.sleep(poll_seconds)
            # Logged and counted where it happens.
            with suppress(RlaifError, OSError):
                await self.look(patient=True)

    async def _look(self, store: ArtifactStore) -> None:
        async with self._looking:
            # Who comes from now on needs a later look.
            self._next_look, patient, self._patient = None, self._patient, True
            try:
                await self._follow(store, patient=patient)
            except (RlaifError, OSError) as error:
                if self._failed is None or error is not self._failed[1]:
                    self._note_failure(error)
                raise
            self._failure, self._failed, self._pause_seconds = "", None, 0.0

    def _note_failure(self, error: RlaifError | OSError) -> None:
        reason = error.reason if isinstance(error, RlaifError) else "OS_ERROR"
        self._metrics.sync_failures.labels(reason=reason).inc()
        # A failure that stays is one log line, not one a look.
        if str(error) != self._failure:
            _log.error("policy not synced", policy=self._policy, reason=reason, error=str(error))
        self._failure = str(error)
        self._failed = None if self._trying is None else (self._trying, error)
        self._pause_seconds = min(max(2 * self._pause_seconds, _WAIT_SECONDS), _MAX_PAUSE_SECONDS)
        self._paused_until = time.monotonic() + self._pause_seconds

    async def _follow(self, store: ArtifactStore, *, patient: bool) -> None:
        self._trying = None
        desired = await self._within("reading what is published", lambda: _in_thread(store.read_desired, self._policy))
        served = self.identity
        if desired is None or (desired.version, desired.digest) == (served.version, served.digest):
            self.desired_version, self._behind_since = served.version if desired is None else desired.version, None
            self._metrics.desired_policy_version.set(self.desired_version)
            return
        self.desired_version = desired.version
        self._metrics.desired_policy_version.set(desired.version)
        if self._behind_since is None:
            self._behind_since = time.monotonic()
        paused = patient and time.monotonic() < self._paused_until
        if paused and self._failed is not None and self._failed[0] == desired:
            raise self._failed[1]
        self._trying = desired
        await self._load(store, desired)
        self._behind_since = None

    async def _load(self, store: ArtifactStore, desired: PublishedVersion) -> None:
        started = time.perf_counter()
        what = f"version {desired.version} of {self._policy}"
        await self._within(f"fetching {what}", lambda: _in_thread(_fetch, store, desired))
        identity = ModelIdentity(uri=desired.uri, digest=desired.digest, version=desired.version)
        # Waiting for the calls in flight has its own end; past it others go on with the old weights.
        await self._within(
            f"loading {what}",
            lambda: self._queue.load(identity, timeout_seconds=self._deadline_seconds),
            seconds=2 * self._deadline_seconds,
        )
        seconds = time.perf_counter() - started
        self.load_time = datetime.now(UTC)
        self._metrics.policy_version.set(desired.version)
        self._metrics.policy_load_seconds.observe(seconds)
        _log.info("policy loaded", policy=self._policy, version=desired.version, seconds=round(seconds, 4))

    async def _within(
        self, what: str, begin: Callable[[], Awaitable[Result]], *, seconds: float | None = None
    ) -> Result:
        """Its result, or DeadlineError; then it goes on, since neither a thread nor a swap can be stopped midway."""
        if self._under_way is not None and not self._under_way[-1].done():
            before, since, _ = self._under_way
            raise DeadlineError(f"{before} has not ended for {time.monotonic() - since:.0f} s")
        seconds = seconds or self._deadline_seconds
        future = asyncio.ensure_future(begin())
        future.add_done_callback(_read_failure)
        self._under_way = (what, time.monotonic(), future)
        done, _ = await asyncio.wait({future}, timeout=seconds)
        if not done:
            raise DeadlineError(f"{what} has not ended for {seconds:g} s")
        return future.result()

    def _told(self, error: RlaifError | OSError) -> RlaifError | OSError:
        """The error as one of the policy, which the caller of LoadPolicy did not write."""
        if not isinstance(error, InvalidInputError | NotFoundError):
            return error
        return PreconditionError(
            f"version {self.desired_version} of {self._policy} cannot be served: {error.message}",
            reason="POLICY_NOT_LOADABLE" if error.reason == type(error).reason else error.reason,
            field=self._policy,
            metadata={"policy": self._policy, "desired_version": str(self.desired_version)},
        )

    def _too_late(self, version: int, cause: str) -> DeadlineError:
        if not cause:
            cause = self._failure
        if not cause and self.desired_version < version:
            cause = f"the newest version published is {self.desired_version}"
        elif not cause:
            cause = f"version {self.desired_version} is still being loaded"
        return DeadlineError(
            f"{self._policy} is served at version {self.identity.version} and not yet at {version}: {cause}",
            reason="POLICY_VERSION_BEHIND",
            metadata={
                "policy": self._policy,
                "served_version": str(self.identity.version),
                "desired_version": str(self.desired_version),
                "min_version": str(version),
            },
        )


def _fetch(store: ArtifactStore, desired: PublishedVersion) -> None:
    store.fetch(desired.uri, digest=desired.digest)


async def _in_thread(call: Callable[..., Result], *arguments: Any) -> Result:
    return await asyncio.to_thread(call, *arguments)


def _read_failure(future: asyncio.Future[Any]) -> None:
    """Marks its failure as seen: who waited for it may have gone."""
    if not future.cancelled():
        future.exception()
