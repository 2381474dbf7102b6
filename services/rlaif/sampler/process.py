"""The sampler as a service: what is loaded before it serves and freed after."""

from __future__ import annotations

import asyncio
import math
from contextlib import AsyncExitStack, suppress

import grpc

from rlaif.core.errors import RlaifError, SettingsError
from rlaif.engine.factory import open_engine
from rlaif.engine.watch import EngineWatch
from rlaif.runtime.server import Service
from rlaif.runtime.store import open_store
from rlaif.sampler.metrics import sampler_metrics
from rlaif.sampler.policy import PolicySync
from rlaif.sampler.queue import SamplingQueue
from rlaif.sampler.servicer import SamplerParts, SamplerServicer
from rlaif.sampler.settings import SamplerSettings
from rlaif.v1 import sampler_service_pb2_grpc


def make_service(settings: SamplerSettings) -> Service:
    """The sampler service of these settings. Its model is loaded when it starts."""
    process = _Process(settings)
    return Service(
        name="sampler",
        grpc_services=("rlaif.v1.SamplerService",),
        register=process.register,
        start=process.start,
        stop=process.stop,
        unready=process.unready,
        lost=process.lost,
    )


class _Process:
    """Owns what the service holds open."""

    def __init__(self, settings: SamplerSettings) -> None:
        self._settings = settings
        self._metrics = sampler_metrics()
        self._watch = EngineWatch()
        self._resources = AsyncExitStack()
        self._servicer = SamplerServicer(settings.limits, metrics=self._metrics)

    def register(self, server: grpc.aio.Server) -> None:
        sampler_service_pb2_grpc.add_SamplerServiceServicer_to_server(self._servicer, server)

    async def start(self) -> None:
        settings, metrics = self._settings, self._metrics
        engine = await open_engine(settings.engine, model=settings.model)
        self._resources.push_async_callback(engine.close)
        queue = SamplingQueue(
            engine,
            overlaps=settings.engine.shares_batches,
            max_queue_completions=settings.queue.max_queue_completions,
            metrics=metrics,
        )
        self._resources.callback(queue.close)
        metrics.queue_completions.set_function(lambda: queue.num_waiting)
        metrics.queue_limit.set(settings.queue.max_queue_completions)
        metrics.running_completions.set_function(lambda: queue.num_running)
        metrics.cache_usage.set_function(lambda: math.nan if (share := engine.usage.cache_usage) is None else share)
        metrics.engine_gpus.set(engine.num_gpus)
        root, options = settings.artifact_root, settings.storage_options
        if root is not None and not (engine.capabilities.loads_weights or engine.capabilities.loads_adapters):
            raise SettingsError(
                f"{engine.identity.uri} cannot be given the versions that are published under artifact_root: leave it "
                "out to sample a fixed policy, or run the policy on the engine vllm or hf",
                field="artifact_root",
            )
        store = open_store(root, storage_options=options) if root is not None else None
        sync = PolicySync(
            queue,
            policy=settings.policy,
            store=store,
            deadline_seconds=settings.sync_deadline_seconds,
            metrics=metrics,
        )
        self._servicer.parts = SamplerParts(engine, queue, sync)
        # Without it, requests that need the published version are refused with its number until a later look succeeds.
        with suppress(RlaifError, OSError):
            await sync.look()
        for watch in (sync.run(poll_seconds=settings.sync_poll_seconds), self._watch.run(engine)):
            self._resources.push_async_callback(_end, asyncio.create_task(watch))

    def unready(self) -> str:
        """Why this replica should get no calls, "" when it should."""
        return self._watch.failure or self._servicer.parts.sync.unready()

    def lost(self) -> str:
        """Why only another process can sample, "" while this one can."""
        return self._watch.lost

    async def stop(self) -> None:
        await self._resources.aclose()


async def _end(task: asyncio.Task[None]) -> None:
    task.cancel()
    with suppress(asyncio.CancelledError):
        await task
