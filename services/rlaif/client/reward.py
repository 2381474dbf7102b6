"""Typed client of the reward service: plain values in, frozen values out, core errors when it fails."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from types import TracebackType

from rlaif.client.channel import open_channel
from rlaif.client.judge_messages import conversation_messages
from rlaif.client.judge_values import ResponseToScore, ToScore
from rlaif.runtime.settings import ClientSettings
from rlaif.v1 import provenance_pb2, reward_service_pb2, reward_service_pb2_grpc

JUDGE = "rewardModels/judge"
"""The direct judge: its expected score, rescaled to [-1, 1]."""
_MAX_INPUTS = 1024


@dataclass(frozen=True)
class ModelReference:
    """Weights by folder or hub id; an empty digest is not checked."""

    uri: str
    digest: str = ""
    version: int = 0


@dataclass(frozen=True)
class RewardResult:
    """A reward and its unweighted parts; `value` is None exactly when `failure_reason` is set."""

    value: float | None
    components: Mapping[str, float]
    spread: float
    """Standard deviation over ensemble members, the largest over components; 0 with one member."""
    failure_reason: str
    """"" or "ABSTAINED", "TOO_LONG", "NOT_FINITE", "UNAVAILABLE"."""


@dataclass(frozen=True)
class RewardModelState:
    """A reward model as one replica serves it; the direct judge has no members of its own."""

    name: str
    members: tuple[ModelReference, ...]
    load_time: datetime


class RewardClient:
    """A reward service. Safe to use from several threads; close it, or use it as a context manager."""

    def __init__(self, settings: ClientSettings) -> None:
        self._channel = open_channel(settings)
        self._stub = reward_service_pb2_grpc.RewardServiceStub(self._channel)

    def __enter__(self) -> RewardClient:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection."""
        self._channel.close()

    def score(
        self,
        reward_model: str,
        inputs: Sequence[ToScore],
        *,
        constitution: str = "",
        timeout_seconds: float | None = None,
    ) -> list[RewardResult]:
        """One reward an input, in order. Up to 1024 inputs are one request, which is one batch."""
        results: list[RewardResult] = []
        for start in range(0, len(inputs), _MAX_INPUTS):
            request = reward_service_pb2.ScoreResponsesRequest(
                reward_model=reward_model,
                inputs=[_input(ResponseToScore(*scored)) for scored in inputs[start : start + _MAX_INPUTS]],
                constitution=constitution,
            )
            response = self._stub.ScoreResponses(request, timeout=timeout_seconds)
            results.extend(map(_result, response.rewards))
        return results

    def load_reward_model(
        self, name: str, members: Sequence[ModelReference], *, timeout_seconds: float | None = None
    ) -> RewardModelState:
        """Serves these weights under `name`, "rewardModels/{id}"; a digest that does not match is refused."""
        request = reward_service_pb2.LoadRewardModelRequest(
            name=name,
            members=[
                provenance_pb2.ModelRef(uri=member.uri, digest=member.digest, version=member.version)
                for member in members
            ],
        )
        return _state(self._stub.LoadRewardModel(request, timeout=timeout_seconds).reward_model)

    def get_reward_model(self, name: str) -> RewardModelState:
        """The reward model of that name."""
        request = reward_service_pb2.GetRewardModelRequest(name=name)
        return _state(self._stub.GetRewardModel(request).reward_model)


def _input(scored: ResponseToScore) -> reward_service_pb2.ScoredInput:
    return reward_service_pb2.ScoredInput(
        messages=conversation_messages(scored.conversation), response=scored.response, category=scored.category
    )


def _result(reward: reward_service_pb2.Reward) -> RewardResult:
    return RewardResult(
        value=reward.value if reward.HasField("value") else None,
        components={component.component: component.value for component in reward.components},
        spread=max((component.spread for component in reward.components), default=0.0),
        failure_reason=reward.failure_reason,
    )


def _state(model: reward_service_pb2.RewardModel) -> RewardModelState:
    return RewardModelState(
        name=model.name,
        members=tuple(ModelReference(member.uri, member.digest, member.version) for member in model.members),
        load_time=model.load_time.ToDatetime(UTC),
    )
