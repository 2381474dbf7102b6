"""Penalties as components: they look at the response's text alone and never fail."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence

from rlaif.core.reward_penalties import length_penalty, repetition_penalty, words_of
from rlaif.reward.recipes import LengthPenaltySettings, RepetitionPenaltySettings
from rlaif.reward.scoring import RawValue, ScoredInput

Measure = Callable[[Sequence[ScoredInput]], Awaitable[Sequence[int]]]
"""Length of each response."""


class LengthPenalty:
    """What is beyond the limit costs."""

    def __init__(self, settings: LengthPenaltySettings, *, measure: Measure) -> None:
        self._settings = settings
        self._measure = measure

    async def score(self, inputs: Sequence[ScoredInput], *, constitution: str) -> list[RawValue]:
        """One penalty an input."""
        settings = self._settings
        return [
            RawValue(length_penalty(length, limit=settings.limit, per_unit=settings.per_unit, cap=settings.cap))
            for length in await self._measure(inputs)
        ]


class RepetitionPenalty:
    """Saying the same again costs."""

    def __init__(self, settings: RepetitionPenaltySettings) -> None:
        self._ngram_size = settings.ngram_size

    async def score(self, inputs: Sequence[ScoredInput], *, constitution: str) -> list[RawValue]:
        """One penalty an input."""
        return await asyncio.to_thread(
            lambda: [
                RawValue(repetition_penalty(words_of(scored.response), ngram_size=self._ngram_size))
                for scored in inputs
            ]
        )


async def count_words(inputs: Sequence[ScoredInput]) -> list[int]:
    """Words of each response."""
    return await asyncio.to_thread(lambda: [len(words_of(scored.response)) for scored in inputs])
