"""Typed client of the reward service: plain values in, frozen values out, core errors when it fails."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from types import TracebackType

from rlaif.client.bulk import Bulk, Send, run_bulk
from rlaif.client.channel import open_channel
from rlaif.client.judge_messages import conversation_messages
from rlaif.client.judge_values import Progress, ResponseToScore, ToScore
from rlaif.core.errors import RlaifError
from rlaif.core.reward_aggregation import AggregationKind
from rlaif.runtime.settings import ClientSettings
from rlaif.v1 import provenance_pb2, reward_service_pb2, reward_service_pb2_grpc

JUDGE = "rewardModels/judge"
"""The direct judge: its expected score, rescaled to [-1, 1]."""
_MAX_INPUTS = 1024
_BATCH_SIZE = 64
_AGGREGATIONS: dict[int, AggregationKind] = {
    reward_service_pb2.REWARD_AGGREGATION_MEAN: "mean",
    reward_service_pb2.REWARD_AGGREGATION_WORST_CASE: "worst_case",
    reward_service_pb2.REWARD_AGGREGATION_UNCERTAINTY_WEIGHTED: "uncertainty_weighted",
}


@dataclass(frozen=True)
class ModelReference:
    """Weights by folder or hub id; an empty digest is not checked."""

    uri: str
    digest: str = ""
    version: int = 0


@dataclass(frozen=True)
class RewardTerm:
    """One component of a reward: value is unweighted, and normalised where a normalisation is in force."""

    component: str
    value: float
    weight: float
    spread: float
    """Population standard deviation over ensemble members, in units of `value`; 0 with one member."""
    raw_value: float
    """Before normalisation."""
    source_sha256: str
    """What raw values come from; empty for penalties, and for judges whose weights cannot be identified."""


@dataclass(frozen=True)
class RewardResult:
    """A reward and its unweighted parts; `value` is None exactly when `failure_reason` is set."""

    value: float | None
    components: Mapping[str, float]
    spread: float
    """Standard deviation over ensemble members, the largest over components; 0 with one member."""
    failure_reason: str
    """"" or "ABSTAINED", "TOO_LONG", "NOT_FINITE"."""
    terms: tuple[RewardTerm, ...] = ()
    """The components that have a value."""
    failed_component: str = ""
    """Which component failed first."""


@dataclass(frozen=True)
class NormalisationState:
    """How a component's raw values are brought to a common scale: (raw value - mean) / sd."""

    normalisation_id: str
    mean: float
    sd: float
    num_inputs: int
    reference_sha256: str


@dataclass(frozen=True)
class RewardComponentState:
    """A component in force."""

    component: str
    kind: str
    """"reward_model", "judge", "length_penalty" or "repetition_penalty"."""
    weight: float
    members: tuple[ModelReference, ...]
    aggregation: AggregationKind | None
    """Of a trained ensemble."""
    variance_weight: float
    normalisation: NormalisationState | None
    source_sha256: str


@dataclass(frozen=True)
class RewardModelState:
    """A reward model as one replica serves it; the direct judge has no members of its own."""

    name: str
    members: tuple[ModelReference, ...]
    load_time: datetime
    components: tuple[RewardComponentState, ...] = ()


class RewardClient:
    """A reward service. Safe to use from several threads; close it, or use it as a context manager.

    `settings` is how to reach it; a text is its address, "127.0.0.1:50053", in plaintext. UNAVAILABLE is tried again
    within the deadline; nothing else is.
    """

    def __init__(self, settings: ClientSettings | str) -> None:
        settings = ClientSettings(target=settings) if isinstance(settings, str) else settings
        self._timeout_seconds = settings.timeout_seconds
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
        seconds = self._timeout_seconds if timeout_seconds is None else timeout_seconds
        send = self._send(reward_model, constitution)
        results: list[RewardResult] = []
        for start in range(0, len(inputs), _MAX_INPUTS):
            results.extend(send(inputs[start : start + _MAX_INPUTS], seconds))
        return results

    def score_many(
        self,
        reward_model: str,
        inputs: Sequence[ToScore],
        *,
        constitution: str = "",
        batch_size: int = _BATCH_SIZE,
        concurrency: int = 4,
        progress: Progress | None = None,
        timeout_seconds: float | None = None,
    ) -> list[RewardResult]:
        """One reward an input, in order; the first error is raised, with the input's position in its field.

        Batches are cut in order of `inputs`, so the same call makes the same batches; `concurrency` of them are in
        flight at once, and `timeout_seconds` is of each. A full queue is waited out within that time. `progress` hears
        of batches in order.
        """
        bulk = self._bulk(batch_size, concurrency, timeout_seconds, raises=True)
        results: list[RewardResult] = []
        for batch in run_bulk(inputs, self._send(reward_model, constitution), bulk):
            results += [each for each in batch if isinstance(each, RewardResult)]
            if progress is not None:
                progress(len(results), len(inputs))
        return results

    def score_each(
        self,
        reward_model: str,
        inputs: Iterable[ToScore],
        *,
        constitution: str = "",
        batch_size: int = _BATCH_SIZE,
        concurrency: int = 4,
        timeout_seconds: float | None = None,
    ) -> Iterator[RewardResult | RlaifError]:
        """One reward or error an input, in order, as they come; for jobs too large to hold.

        `inputs` is read a few batches ahead. An input that is refused yields its error and the others their rewards.
        """
        bulk = self._bulk(batch_size, concurrency, timeout_seconds, raises=False)
        for batch in run_bulk(inputs, self._send(reward_model, constitution), bulk):
            yield from batch

    def load_reward_model(
        self,
        name: str,
        members: Sequence[ModelReference],
        *,
        component: str = "",
        timeout_seconds: float | None = None,
    ) -> RewardModelState:
        """Serves these weights under `name`, "rewardModels/{id}"; a digest that does not match is refused.

        Where the service's settings describe that name, they replace the members of its trained `component`.
        """
        request = reward_service_pb2.LoadRewardModelRequest(
            name=name,
            members=[
                provenance_pb2.ModelRef(uri=member.uri, digest=member.digest, version=member.version)
                for member in members
            ],
            component=component,
        )
        return _state(self._stub.LoadRewardModel(request, timeout=timeout_seconds).reward_model)

    def get_reward_model(self, name: str) -> RewardModelState:
        """The reward model of that name."""
        request = reward_service_pb2.GetRewardModelRequest(name=name)
        return _state(self._stub.GetRewardModel(request).reward_model)

    def _bulk(self, batch_size: int, concurrency: int, timeout_seconds: float | None, *, raises: bool) -> Bulk:
        if batch_size > _MAX_INPUTS:
            raise ValueError(f"batch_size must be at most {_MAX_INPUTS}, not {batch_size}")
        seconds = self._timeout_seconds if timeout_seconds is None else timeout_seconds
        return Bulk(batch_size, concurrency, seconds, errors="raise" if raises else "return")

    def _send(self, reward_model: str, constitution: str) -> Send[ToScore, RewardResult]:
        def send(inputs: Sequence[ToScore], timeout_seconds: float) -> Sequence[RewardResult]:
            request = reward_service_pb2.ScoreResponsesRequest(
                reward_model=reward_model,
                inputs=[_input(ResponseToScore(*scored)) for scored in inputs],
                constitution=constitution,
            )
            response = self._stub.ScoreResponses(request, timeout=timeout_seconds)
            return list(map(_result, response.rewards))

        return send


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
        terms=tuple(map(_term, reward.components)),
        failed_component=reward.failed_component,
    )


def _term(component: reward_service_pb2.RewardComponent) -> RewardTerm:
    return RewardTerm(
        component=component.component,
        value=component.value,
        weight=component.weight,
        spread=component.spread,
        raw_value=component.raw_value,
        source_sha256=component.source_sha256,
    )


def _state(model: reward_service_pb2.RewardModel) -> RewardModelState:
    return RewardModelState(
        name=model.name,
        members=tuple(map(_member, model.members)),
        load_time=model.load_time.ToDatetime(UTC),
        components=tuple(map(_component_state, model.component_states)),
    )


def _component_state(state: reward_service_pb2.RewardComponentState) -> RewardComponentState:
    kind = reward_service_pb2.RewardComponentKind.Name(state.kind).removeprefix("REWARD_COMPONENT_KIND_").lower()
    fitted = state.normalisation
    return RewardComponentState(
        component=state.component,
        kind=kind,
        weight=state.weight,
        members=tuple(map(_member, state.members)),
        aggregation=_AGGREGATIONS.get(state.aggregation),
        variance_weight=state.variance_weight,
        normalisation=NormalisationState(
            fitted.normalisation_id,
            fitted.mean,
            fitted.standard_deviation,
            fitted.num_inputs,
            fitted.reference_sha256,
        )
        if state.HasField("normalisation")
        else None,
        source_sha256=state.source_sha256,
    )


def _member(member: provenance_pb2.ModelRef) -> ModelReference:
    return ModelReference(member.uri, member.digest, member.version)
