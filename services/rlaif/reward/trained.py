"""Trained reward models as components: encoded beside the loop, batched with other callers, combined over members."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from rlaif.core.canonical import digest
from rlaif.core.reward_aggregation import Aggregation
from rlaif.engine.protocol import ModelIdentity
from rlaif.reward.scoring import RawValue, ScoredInput
from rlaif.runtime.batching import Batcher

if TYPE_CHECKING:
    from rlaif.engine.reward_model import EncodedInput, RewardEnsemble, RewardModelEngine

_TOO_LONG = RawValue(None, failure_reason="TOO_LONG")
_NOT_FINITE = RawValue(None, failure_reason="NOT_FINITE")


def source_sha256(members: Sequence[ModelIdentity], aggregation: Aggregation) -> str:
    """Identifies what an ensemble's raw values come from."""
    return digest(
        {
            "kind": "reward_model",
            "members": [member.digest for member in members],
            "aggregation": aggregation.kind,
            "variance_weight": aggregation.variance_weight,
        }
    )


class TrainedEnsemble:
    """An ensemble on the engine; the constitution is in the weights already and not looked at."""

    def __init__(
        self,
        ensemble: RewardEnsemble,
        *,
        aggregation: Aggregation,
        engine: RewardModelEngine,
        batcher: Batcher[EncodedInput, tuple[float, ...]],
        sort: bool,
    ) -> None:
        self._ensemble = ensemble
        self._aggregation = aggregation
        self._engine = engine
        self._batcher = batcher
        self._sort = sort
        self._source = source_sha256(ensemble.identities, aggregation)

    async def score(self, inputs: Sequence[ScoredInput], *, constitution: str) -> list[RawValue]:
        """One value an input; what does not fit some member's context has none."""
        self._batcher.check_room()
        encoded = await self._engine.encode(
            self._ensemble, [(scored.conversation, scored.response) for scored in inputs]
        )
        fitting = [index for index, each in enumerate(encoded) if each.fits]
        if self._sort:
            # Turns are cut in this order: sequences of like length stay together.
            fitting.sort(key=lambda index: encoded[index].num_tokens)
        values = [_TOO_LONG] * len(encoded)
        for index, of_members in zip(
            fitting, await self._batcher.submit([encoded[index] for index in fitting]), strict=True
        ):
            values[index] = self._combined(of_members)
        return values

    async def count_response_tokens(self, inputs: Sequence[ScoredInput]) -> list[int]:
        """Tokens of each response by the first member's tokenizer."""
        return await self._engine.count_tokens(self._ensemble, [scored.response for scored in inputs])

    def _combined(self, of_members: Sequence[float]) -> RawValue:
        if not all(map(math.isfinite, of_members)):
            return _NOT_FINITE
        value, spread = self._aggregation.combine(of_members)
        return RawValue(value, spread, source_sha256=self._source)
