"""rlaif.v1.RewardService: reads requests, asks a reward model, writes responses."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from rlaif.core.errors import InvalidInputError
from rlaif.engine.protocol import ModelIdentity
from rlaif.reward.metrics import RewardMetrics
from rlaif.reward.registry import Entry, RewardRegistry
from rlaif.reward.scoring import Component, Reward, ScoredInput
from rlaif.runtime.messages import TextLimits, check_size, read_conversation
from rlaif.v1 import provenance_pb2, reward_service_pb2, reward_service_pb2_grpc


class RewardServicer(reward_service_pb2_grpc.RewardServiceServicer):
    """Rewards on the wire. `registry` is set before calls are let in."""

    registry: RewardRegistry

    def __init__(self, *, text_limits: TextLimits, max_inputs: int, metrics: RewardMetrics) -> None:
        self._text_limits = text_limits
        self._max_inputs = max_inputs
        self._metrics = metrics

    async def ScoreResponses(  # noqa: N802 - named by the contract
        self, request: reward_service_pb2.ScoreResponsesRequest, context: Any
    ) -> reward_service_pb2.ScoreResponsesResponse:
        inputs = self._inputs(request.inputs)
        source = self.registry.get(request.reward_model, field="reward_model").source
        start = time.perf_counter()
        rewards = await source.score(inputs, constitution=request.constitution)
        self._metrics.batch_seconds.labels(component=source.component).observe(time.perf_counter() - start)
        for reward in rewards:
            outcome = reward.failure_reason.lower() or "scored"
            self._metrics.rewards.labels(component=source.component, outcome=outcome).inc()
        return reward_service_pb2.ScoreResponsesResponse(rewards=map(_reward_message, rewards))

    async def GetRewardModel(  # noqa: N802
        self, request: reward_service_pb2.GetRewardModelRequest, context: Any
    ) -> reward_service_pb2.GetRewardModelResponse:
        entry = self.registry.get(request.name, field="name")
        return reward_service_pb2.GetRewardModelResponse(reward_model=_model_message(entry))

    async def LoadRewardModel(  # noqa: N802
        self, request: reward_service_pb2.LoadRewardModelRequest, context: Any
    ) -> reward_service_pb2.LoadRewardModelResponse:
        members = [ModelIdentity(member.uri, member.digest, member.version) for member in request.members]
        entry = await self.registry.load(request.name, members)
        self._metrics.loads.inc()
        return reward_service_pb2.LoadRewardModelResponse(reward_model=_model_message(entry))

    def _inputs(self, inputs: Sequence[reward_service_pb2.ScoredInput]) -> list[ScoredInput]:
        if not 1 <= len(inputs) <= self._max_inputs:
            raise InvalidInputError(
                f"{len(inputs)} inputs are outside the limits of 1 to {self._max_inputs}", field="inputs"
            )
        return [self._input(item, field=f"inputs[{index}]") for index, item in enumerate(inputs)]

    def _input(self, item: reward_service_pb2.ScoredInput, *, field: str) -> ScoredInput:
        conversation = read_conversation(item.messages, field=f"{field}.messages", limits=self._text_limits)
        check_size(item.response, field=f"{field}.response", limits=self._text_limits)
        return ScoredInput(conversation, item.response, item.category)


def _reward_message(reward: Reward) -> reward_service_pb2.Reward:
    return reward_service_pb2.Reward(
        value=reward.value,
        components=map(_component_message, reward.components),
        failure_reason=reward.failure_reason,
        provenance=reward.provenance,
    )


def _component_message(component: Component) -> reward_service_pb2.RewardComponent:
    return reward_service_pb2.RewardComponent(
        component=component.name, value=component.value, weight=component.weight, spread=component.spread
    )


def _model_message(entry: Entry) -> reward_service_pb2.RewardModel:
    return reward_service_pb2.RewardModel(
        name=entry.name,
        members=[
            provenance_pb2.ModelRef(uri=member.uri, digest=member.digest, version=member.version)
            for member in entry.source.members
        ],
        components=[_component_message(Component(entry.source.component, 0.0))],
        load_time=entry.load_time,
    )
