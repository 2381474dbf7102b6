"""A reward model as it is served: the weighted sum of its components, each from its own source."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from rlaif.core.canonical import digest
from rlaif.core.errors import PreconditionError
from rlaif.engine.protocol import ModelIdentity
from rlaif.reward.scoring import Component, RawValue, Reward, ScoredInput, Term
from rlaif.runtime.context import current_trace_id
from rlaif.runtime.revision import service_revision
from rlaif.v1 import provenance_pb2


@dataclass(frozen=True)
class Recipe:
    """One reward model."""

    name: str
    components: tuple[Component, ...]

    @property
    def members(self) -> tuple[ModelIdentity, ...]:
        """Weights of the members of all trained components."""
        return tuple(member for component in self.components for member in component.members)

    async def score(self, inputs: Sequence[ScoredInput], *, constitution: str) -> list[Reward]:
        """One reward an input, in order; the components are asked at the same time."""
        by_component = await self._ask(inputs, constitution=constitution)
        made = self._provenance()
        return [self._reward(values, made) for values in zip(*by_component, strict=True)]

    async def _ask(self, inputs: Sequence[ScoredInput], *, constitution: str) -> list[Sequence[RawValue]]:
        if len(self.components) == 1:
            return [await self.components[0].source.score(inputs, constitution=constitution)]
        tasks = [
            asyncio.ensure_future(component.source.score(inputs, constitution=constitution))
            for component in self.components
        ]
        try:
            return list(await asyncio.gather(*tasks))
        finally:
            # When one is refused or the caller leaves, nothing more is computed for the others.
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    def _reward(self, values: Sequence[RawValue], made: provenance_pb2.Provenance) -> Reward:
        terms = []
        failure_reason = failed_component = ""
        for component, raw in zip(self.components, values, strict=True):
            if raw.provenance is not None:
                made = raw.provenance if len(values) == 1 else _with_rules(made, raw.provenance)
            if raw.value is not None:
                terms.append(_term(component, raw, raw.value))
            elif not failure_reason:
                failure_reason, failed_component = raw.failure_reason, component.name
        return Reward(tuple(terms), failure_reason, failed_component, provenance=made)

    def _provenance(self) -> provenance_pb2.Provenance:
        made = provenance_pb2.Provenance(
            model=self._model, service_revision=service_revision(), trace_id=current_trace_id()
        )
        made.create_time.GetCurrentTime()
        return made

    @cached_property
    def _model(self) -> provenance_pb2.ModelRef:
        """The only member of the only component; the ensemble, or the sum, under its name with a digest over it."""
        members = self.members
        if len(self.components) > 1:
            return provenance_pb2.ModelRef(uri=self.name, digest=digest(list(map(_identity, self.components))))
        if len(members) == 1:
            only = members[0]
            return provenance_pb2.ModelRef(uri=only.uri, digest=only.digest, version=only.version)
        return provenance_pb2.ModelRef(uri=self.name, digest=digest([member.digest for member in members]))


def _term(component: Component, raw: RawValue, value: float) -> Term:
    fitted = component.normalisation
    if fitted is None:
        return Term(component.name, value, component.weight, raw.spread, value, raw.source_sha256)
    if raw.source_sha256 != fitted.source_sha256:
        raise PreconditionError(
            f"{component.name}: normalisation {fitted.normalisation_id} is stale: it was fitted on "
            f"{fitted.source_sha256[:12]}, and the values come from {raw.source_sha256[:12] or 'unknown weights'}; "
            "fit it anew or remove it from the settings",
            reason="STALE_NORMALISATION",
            field="reward_model",
        )
    return Term(
        component.name,
        fitted.apply(value),
        component.weight,
        raw.spread / fitted.sd,
        value,
        raw.source_sha256,
    )


def _with_rules(made: provenance_pb2.Provenance, judged: provenance_pb2.Provenance) -> provenance_pb2.Provenance:
    """The sum's provenance with the rules by which its judge scored."""
    joint = provenance_pb2.Provenance()
    joint.CopyFrom(made)
    joint.constitution.CopyFrom(judged.constitution)
    joint.template_sha256 = judged.template_sha256
    return joint


def _identity(component: Component) -> dict[str, object]:
    fitted = component.normalisation
    return {
        "name": component.name,
        "kind": component.kind,
        "weight": component.weight,
        "source": component.source_sha256,
        "parameters": component.parameters_sha256,
        "normalisation": fitted.normalisation_id if fitted else "",
    }
