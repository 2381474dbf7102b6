"""The sampler as a service: what is loaded before it serves and freed after."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack, suppress

import grpc

from rlaif.core.errors import RlaifError
from rlaif.engine.factory import open_engine
from rlaif.runtime.logging import EventLogger
from rlaif.runtime.server import Service
from rlaif.sampler.metrics import sampler_metrics
from rlaif.sampler.policy import PolicySync
from rlaif.sampler.queue import SamplingQueue
from rlaif.sampler.servicer import SamplerParts, SamplerServicer
from rlaif.sampler.settings import SamplerSettings
from rlaif.v1 import sampler_service_pb2_grpc

_log = EventLogger(__name__)


def make_service(settings: SamplerSettings) -> Service:
    """The sampler service of these settings. Its model is loaded when it starts."""
    process = _Process(settings)
    return Service(
        name="sampler",
        grpc_services=("rlaif.v1.SamplerService",),
        register=process.register,
        start=process.start,
        stop=process.stop,
    )


class _Process:
    """Owns what the service holds open."""

    def __init__(self, settings: SamplerSettings) -> None:
        self._settings = settings
        self._metrics = sampler_metrics()
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
            mix=settings.mix_requests,
            max_batch_completions=settings.queue.max_batch_completions,
            max_queue_completions=settings.queue.max_queue_completions,
            metrics=metrics,
        )
        self._resources.callback(queue.close)
        metrics.queue_completions.set_function(lambda: queue.num_waiting)
        sync = PolicySync(queue, policy=settings.policy, artifact_root=settings.artifact_root, metrics=metrics)
        self._servicer.parts = SamplerParts(engine, queue, sync)
        try:
            await sync.look()
        except (RlaifError, OSError) as error:
            # Requests that need the published version are refused with its number until a later look succeeds.
            _log.error("policy not synced", policy=settings.policy, error=str(error))
        polling = asyncio.create_task(sync.run(poll_seconds=settings.sync_poll_seconds))
        self._resources.push_async_callback(_end, polling)

    async def stop(self) -> None:
        await self._resources.aclose()


async def _end(task: asyncio.Task[None]) -> None:
    task.cancel()
    with suppress(asyncio.CancelledError):
        await task
