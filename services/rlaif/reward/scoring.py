"""What a reward is made of, and where its components' values come from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple, Protocol

from rlaif.core.conversation import Conversation
from rlaif.core.reward_aggregation import Aggregation
from rlaif.core.reward_normalisation import Normalisation
from rlaif.engine.protocol import ModelIdentity
from rlaif.v1 import provenance_pb2

ComponentKind = Literal["reward_model", "judge", "length_penalty", "repetition_penalty"]


class ScoredInput(NamedTuple):
    """A conversation, the response to it, which may be empty, and the conversation's category, for the judge alone."""

    conversation: Conversation
    response: str
    category: str = ""


@dataclass(frozen=True, slots=True)
class RawValue:
    """What a source says of one input: a finite number and its members' spread, or why there is none."""

    value: float | None
    spread: float = 0.0
    failure_reason: str = ""
    source_sha256: str = ""
    """What the value comes from; empty when it cannot be identified, or is a penalty."""
    provenance: provenance_pb2.Provenance | None = None
    """Of values that another service made."""


class Source(Protocol):
    """Where a component's raw values come from."""

    async def score(self, inputs: Sequence[ScoredInput], *, constitution: str) -> Sequence[RawValue]:
        """One value an input, in order."""


@dataclass(frozen=True)
class Component:
    """A named term of a reward model, as it is in force."""

    name: str
    kind: ComponentKind
    weight: float
    source: Source
    normalisation: Normalisation | None = None
    members: tuple[ModelIdentity, ...] = ()
    """Of a trained ensemble."""
    aggregation: Aggregation | None = None
    """Of a trained ensemble."""
    source_sha256: str = ""
    """As in its values, where it is known before there are any."""
    parameters_sha256: str = ""
    """Digest of its settings, for a penalty."""


@dataclass(frozen=True, slots=True)
class Term:
    """One term of a reward: unweighted value, weight, spread over members in units of the value, value as it was."""

    name: str
    value: float
    weight: float
    spread: float
    raw_value: float
    source_sha256: str = ""


@dataclass(frozen=True, slots=True)
class Reward:
    """Sum of weight * value over the terms; no number at all when `failure_reason` is set."""

    terms: tuple[Term, ...]
    failure_reason: str = ""
    failed_component: str = ""
    provenance: provenance_pb2.Provenance = field(default_factory=provenance_pb2.Provenance)

    @property
    def value(self) -> float | None:
        """The reward; None when a component failed."""
        if self.failure_reason:
            return None
        if len(self.terms) == 1:
            return self.terms[0].weight * self.terms[0].value
        return sum(term.weight * term.value for term in self.terms)
