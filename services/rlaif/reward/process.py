"""The reward service: what is loaded before it serves and freed after."""

from __future__ import annotations

from contextlib import AsyncExitStack

import grpc

from rlaif.client.channel import open_aio_channel
from rlaif.reward.direct import DirectJudge
from rlaif.reward.metrics import reward_metrics
from rlaif.reward.registry import RewardRegistry
from rlaif.reward.servicer import RewardServicer
from rlaif.reward.settings import RewardSettings
from rlaif.runtime.messages import TextLimits
from rlaif.runtime.server import Service
from rlaif.v1 import reward_service_pb2_grpc


def make_service(settings: RewardSettings) -> Service:
    """The reward service of these settings. Reward models named in them are loaded when it starts."""
    process = _Process(settings)
    return Service(
        name="reward",
        grpc_services=("rlaif.v1.RewardService",),
        register=process.register,
        start=process.start,
        stop=process.stop,
    )


class _Process:
    """Owns what the service holds open."""

    def __init__(self, settings: RewardSettings) -> None:
        limits = settings.limits
        self._settings = settings
        self._resources = AsyncExitStack()
        self._servicer = RewardServicer(
            text_limits=TextLimits(max_text_bytes=limits.max_text_bytes, max_turns=limits.max_turns),
            max_inputs=limits.max_inputs,
            metrics=reward_metrics(),
        )

    def register(self, server: grpc.aio.Server) -> None:
        reward_service_pb2_grpc.add_RewardServiceServicer_to_server(self._servicer, server)

    async def start(self) -> None:
        settings = self._settings
        judge = None
        if settings.judge is not None:
            channel = open_aio_channel(settings.judge)
            self._resources.push_async_callback(channel.close, None)
            judge = DirectJudge(channel)
        registry = RewardRegistry(settings, judge=judge, metrics=reward_metrics())
        self._resources.push_async_callback(registry.close)
        await registry.start()
        self._servicer.registry = registry

    async def stop(self) -> None:
        await self._resources.aclose()
