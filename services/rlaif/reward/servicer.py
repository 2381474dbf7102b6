"""rlaif.v1.RewardService: reads requests, asks a reward model, writes responses."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rlaif.core.errors import InvalidInputError
from rlaif.engine.protocol import ModelIdentity
from rlaif.reward.metrics import RewardMetrics
from rlaif.reward.registry import RewardRegistry
from rlaif.reward.scoring import ScoredInput
from rlaif.reward.wire import model_message, reward_message
from rlaif.runtime.messages import TextLimits, check_size, read_conversation
from rlaif.v1 import reward_service_pb2, reward_service_pb2_grpc


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
        entry = await self.registry.get(request.reward_model, field="reward_model")
        rewards = await entry.recipe.score(inputs, constitution=request.constitution)
        self._metrics.count(rewards)
        return reward_service_pb2.ScoreResponsesResponse(rewards=map(reward_message, rewards))

    async def GetRewardModel(  # noqa: N802
        self, request: reward_service_pb2.GetRewardModelRequest, context: Any
    ) -> reward_service_pb2.GetRewardModelResponse:
        entry = await self.registry.get(request.name, field="name")
        return reward_service_pb2.GetRewardModelResponse(reward_model=model_message(entry))

    async def LoadRewardModel(  # noqa: N802
        self, request: reward_service_pb2.LoadRewardModelRequest, context: Any
    ) -> reward_service_pb2.LoadRewardModelResponse:
        members = [ModelIdentity(member.uri, member.digest, member.version) for member in request.members]
        entry = await self.registry.load(request.name, members, component=request.component)
        return reward_service_pb2.LoadRewardModelResponse(reward_model=model_message(entry))

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
