"""Verdicts of an engine that gives no log-probabilities: the share of draws in which it gave each label.

An answer counts when it is a label and nothing else. A share is an estimate, with a standard error of up to 1/(2√n)
for n draws, and its provenance says so.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Sequence
from dataclasses import replace

from rlaif.core.errors import InvalidInputError
from rlaif.core.template import SCORE_LABELS, VERDICT_LABELS
from rlaif.engine.protocol import (
    ChoiceLogprobs,
    ChoiceRequest,
    Constraint,
    Engine,
    GenerateRequest,
    Generation,
    TokenIds,
)
from rlaif.judge.generation import Decoding, RunGenerate, text_request

# The longest label is two digits; what goes on after that is no label.
_DECODING = Decoding(max_tokens=4, temperature=1.0)


class VerdictSampler:
    """Answers what log-probabilities would, from `num_samples` draws of the model's own distribution each."""

    def __init__(self, engine: Engine, *, run_generate: RunGenerate, num_samples: int) -> None:
        self._run_generate = run_generate
        self._num_samples = num_samples
        self._constrains = engine.capabilities.constraints
        self._labels = {engine.encode_choices(labels): labels for labels in (VERDICT_LABELS, SCORE_LABELS)}

    async def __call__(self, requests: Sequence[ChoiceRequest]) -> list[ChoiceLogprobs]:
        """Log-shares of each label; one that no draw gave is at -inf, and nothing of it is unlisted."""
        asked = [self._draws(request, suffix) for request in requests for suffix in request.suffixes]
        drawn = iter(await self._draw(asked))
        return [self._estimates(request, [next(drawn) for _ in request.suffixes]) for request in requests]

    def _draws(self, request: ChoiceRequest, suffix: TokenIds) -> GenerateRequest:
        draws = text_request(
            request.prefix_ids + suffix, decoding=_DECODING, seed=request.seed, num_completions=self._num_samples
        )
        if not self._constrains:
            return draws
        return replace(draws, constraint=Constraint(choices=self._labels[request.choices]))

    async def _draw(self, asked: Sequence[GenerateRequest]) -> Sequence[Sequence[Generation] | None]:
        """The draws of each request; None where a server found its prompt too long."""
        try:
            return await self._run_generate(asked)
        except InvalidInputError as error:
            if error.reason != "PROMPT_TOO_LONG":
                raise
            if len(asked) == 1:
                return [None]
        # One that is too long fails the batch; the others are answered.
        return [draws for [draws] in await asyncio.gather(*(self._draw([request]) for request in asked))]

    def _estimates(self, request: ChoiceRequest, drawn: Sequence[Sequence[Generation] | None]) -> ChoiceLogprobs:
        labels = self._labels[request.choices]
        return ChoiceLogprobs(
            logprobs=tuple(_log_shares(labels, draws or ()) for draws in drawn),
            unlisted=(0.0,) * len(drawn),
            too_long=None in drawn,
        )


def _log_shares(labels: Sequence[str], draws: Sequence[Generation]) -> tuple[float, ...]:
    answers = [draw.text.strip() for draw in draws]
    counts = [answers.count(label) for label in labels]
    return tuple(math.log(count / len(answers)) if count else -math.inf for count in counts)
