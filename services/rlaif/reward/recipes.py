"""How settings describe reward models: named components and their weights."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from rlaif.core.reward_aggregation import Aggregation, AggregationKind
from rlaif.runtime.settings import SettingsModel

MAX_COMPONENTS, MAX_MEMBERS = 16, 8


class ComponentSettings(SettingsModel):
    """What every component has."""

    name: str = Field(default="", max_length=63, pattern=r"^([a-z][a-z0-9_-]*)?$")
    """Name of its term in rewards and metrics; empty takes its kind."""
    weight: float = Field(default=1.0, allow_inf_nan=False)
    """Factor of its value in the sum; 0 reports it only."""


class TrainedSettings(ComponentSettings):
    """An ensemble of trained sequence classifiers."""

    kind: Literal["reward_model"]
    """What it is."""
    members: list[Annotated[str, Field(min_length=1)]] = Field(min_length=1, max_length=MAX_MEMBERS)
    """Model folders, URIs or hub ids of the members."""
    aggregation: AggregationKind = "mean"
    """How members' values become one: their mean, the lowest, or the mean less their variance."""
    variance_weight: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    """Weight of the variance, with uncertainty_weighted, which needs one."""
    normalisation: Path | None = None
    """File that `rlaif reward fit-normalisation` wrote for these members; null leaves values as they are."""

    @model_validator(mode="after")
    def _is_possible(self) -> TrainedSettings:
        if self.aggregation == "uncertainty_weighted" and self.variance_weight is None:
            raise ValueError("aggregation uncertainty_weighted needs a variance_weight")
        if self.aggregation != "uncertainty_weighted" and self.variance_weight is not None:
            raise ValueError(f"variance_weight is of aggregation uncertainty_weighted, not of {self.aggregation}")
        if self.aggregation != "mean" and len(self.members) < 2:
            raise ValueError(f"aggregation {self.aggregation} needs 2 or more members")
        return self

    @property
    def rule(self) -> Aggregation:
        """The aggregation with its weight."""
        return Aggregation(self.aggregation, self.variance_weight or 0.0)


class JudgedSettings(ComponentSettings):
    """The judge's expected score, rescaled to [-1, 1]."""

    kind: Literal["judge"]
    """What it is."""
    normalisation: Path | None = None
    """File that `rlaif reward fit-normalisation` wrote for this judge, template and constitution."""


class LengthPenaltySettings(ComponentSettings):
    """-min(cap, per_unit * units beyond the limit)."""

    kind: Literal["length_penalty"]
    """What it is."""
    unit: Literal["words", "tokens"] = "words"
    """What is counted: words, or tokens of the first trained component's first member."""
    limit: int = Field(ge=0)
    """Longest response that is free."""
    per_unit: float = Field(gt=0, allow_inf_nan=False)
    """Penalty of each unit beyond it."""
    cap: float = Field(gt=0, allow_inf_nan=False)
    """Largest penalty."""


class RepetitionPenaltySettings(ComponentSettings):
    """Minus the share of a response's n-grams that repeat an earlier one."""

    kind: Literal["repetition_penalty"]
    """What it is."""
    ngram_size: int = Field(default=3, ge=1, le=16)
    """Words in an n-gram."""


AnyComponent = Annotated[
    TrainedSettings | JudgedSettings | LengthPenaltySettings | RepetitionPenaltySettings, Field(discriminator="kind")
]


class RecipeSettings(SettingsModel):
    """A reward model: the weighted sum of its components. A list of folders is short for one trained component."""

    components: list[AnyComponent] = Field(min_length=1, max_length=MAX_COMPONENTS)
    """Its terms."""

    @model_validator(mode="before")
    @classmethod
    def _from_folders(cls, given: Any) -> Any:
        return {"components": [{"kind": "reward_model", "members": given}]} if isinstance(given, list) else given

    @field_validator("components")
    @classmethod
    def _named(cls, components: list[AnyComponent]) -> list[AnyComponent]:
        named = [
            component if component.name else component.model_copy(update={"name": component.kind})
            for component in components
        ]
        for name, count in Counter(component.name for component in named).items():
            if count > 1:
                raise ValueError(f"{count} components are named {name}; give each a name of its own")
        return named

    @model_validator(mode="after")
    def _is_possible(self) -> RecipeSettings:
        kinds = [component.kind for component in self.components]
        if kinds.count("judge") > 1:
            raise ValueError("two components are the judge: it gives one score")
        for component in self.components:
            if component.kind in ("length_penalty", "repetition_penalty") and component.weight < 0:
                raise ValueError(f"{component.name}: a weight of {component.weight:g} makes the penalty a bonus")
            if component.kind == "length_penalty" and component.unit == "tokens" and "reward_model" not in kinds:
                raise ValueError(
                    f"{component.name}: unit tokens needs a reward_model component, whose tokenizer counts them"
                )
        return self
