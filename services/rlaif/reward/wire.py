"""Rewards and reward models as messages."""

from __future__ import annotations

from rlaif.core.reward_aggregation import AggregationKind
from rlaif.engine.protocol import ModelIdentity
from rlaif.reward.registry import Entry
from rlaif.reward.scoring import Component, ComponentKind, Reward
from rlaif.v1 import provenance_pb2
from rlaif.v1 import reward_service_pb2 as pb

_KINDS: dict[ComponentKind, pb.RewardComponentKind.ValueType] = {
    "reward_model": pb.REWARD_COMPONENT_KIND_REWARD_MODEL,
    "judge": pb.REWARD_COMPONENT_KIND_JUDGE,
    "length_penalty": pb.REWARD_COMPONENT_KIND_LENGTH_PENALTY,
    "repetition_penalty": pb.REWARD_COMPONENT_KIND_REPETITION_PENALTY,
}
_AGGREGATIONS: dict[AggregationKind, pb.RewardAggregation.ValueType] = {
    "mean": pb.REWARD_AGGREGATION_MEAN,
    "worst_case": pb.REWARD_AGGREGATION_WORST_CASE,
    "uncertainty_weighted": pb.REWARD_AGGREGATION_UNCERTAINTY_WEIGHTED,
}


def reward_message(reward: Reward) -> pb.Reward:
    """One reward with its terms."""
    return pb.Reward(
        value=reward.value,
        components=[
            pb.RewardComponent(
                component=term.name,
                value=term.value,
                weight=term.weight,
                spread=term.spread,
                raw_value=term.raw_value,
                source_sha256=term.source_sha256,
            )
            for term in reward.terms
        ],
        failure_reason=reward.failure_reason,
        failed_component=reward.failed_component,
        provenance=reward.provenance,
    )


def model_message(entry: Entry) -> pb.RewardModel:
    """A reward model as it is in force."""
    recipe = entry.recipe
    return pb.RewardModel(
        name=recipe.name,
        members=map(_member, recipe.members),
        components=[pb.RewardComponent(component=each.name, weight=each.weight) for each in recipe.components],
        load_time=entry.load_time,
        component_states=map(_state, recipe.components),
    )


def _state(component: Component) -> pb.RewardComponentState:
    state = pb.RewardComponentState(
        component=component.name,
        kind=_KINDS[component.kind],
        weight=component.weight,
        members=map(_member, component.members),
        source_sha256=component.source_sha256,
    )
    if component.aggregation is not None:
        state.aggregation = _AGGREGATIONS[component.aggregation.kind]
        state.variance_weight = component.aggregation.variance_weight
    if component.normalisation is not None:
        fitted = component.normalisation
        state.normalisation.CopyFrom(
            pb.RewardNormalisation(
                normalisation_id=fitted.normalisation_id,
                mean=fitted.mean,
                standard_deviation=fitted.sd,
                num_inputs=fitted.num_inputs,
                reference_sha256=fitted.reference_sha256,
            )
        )
    return state


def _member(identity: ModelIdentity) -> provenance_pb2.ModelRef:
    return provenance_pb2.ModelRef(uri=identity.uri, digest=identity.digest, version=identity.version)
