"""Where a reward comes from: the judge's score directly, or an ensemble of trained reward models."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

from rlaif.core.conversation import Conversation
from rlaif.engine.protocol import ModelIdentity
from rlaif.v1 import provenance_pb2


class ScoredInput(NamedTuple):
    """A conversation, the response to it, which may be empty, and the conversation's category, for the judge alone."""

    conversation: Conversation
    response: str
    category: str = ""


@dataclass(frozen=True)
class Component:
    """One term of a reward: unweighted value, weight, standard deviation over ensemble members."""

    name: str
    value: float
    weight: float = 1.0
    spread: float = 0.0


@dataclass(frozen=True)
class Reward:
    """Sum of weight * value over the components; no number at all when `failure_reason` is set."""

    components: tuple[Component, ...]
    failure_reason: str = ""
    provenance: provenance_pb2.Provenance = field(default_factory=provenance_pb2.Provenance)

    @property
    def value(self) -> float | None:
        """The reward; None when a component failed."""
        if self.failure_reason:
            return None
        return sum(component.weight * component.value for component in self.components)


class RewardSource(Protocol):
    """One reward model as it is served."""

    @property
    def component(self) -> str:
        """Name of its term."""

    @property
    def members(self) -> Sequence[ModelIdentity]:
        """Weights behind it; empty when another service holds them."""

    async def score(self, inputs: Sequence[ScoredInput], *, constitution: str) -> list[Reward]:
        """One reward an input, in order."""
