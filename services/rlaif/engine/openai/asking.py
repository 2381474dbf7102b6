"""What both ways of asking share."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from rlaif.core.conversation import Message
from rlaif.core.errors import UnsupportedError
from rlaif.engine.openai.answers import Malformed
from rlaif.engine.openai.constraints import WRAPPER_TOKENS, ConstraintForm, constrained_text, constraint_fields
from rlaif.engine.protocol import GenerateRequest, Generation, StopReason, TokenIds

# Whole numbers that every JSON reader keeps.
_SEED_BITS = 53


@dataclass(frozen=True)
class ChoiceRow:
    """Natural log-probability of each choice: -inf for one that was not listed, NaN for one that cannot be told.

    `unlisted` bounds the probability of all that were not listed together.
    """

    logprobs: tuple[float, ...]
    unlisted: float = 0.0


class Way(Protocol):
    """How one server is asked."""

    def encode_chat(self, messages: Sequence[Message]) -> TokenIds:
        """See Engine."""

    def encode_judge_prompt(self, context: str, question: str) -> tuple[TokenIds, TokenIds]:
        """See Engine."""

    def encode_choices(self, labels: Sequence[str]) -> tuple[TokenIds, ...]:
        """See Engine."""

    async def generate(self, request: GenerateRequest, completion: int) -> Generation:
        """One completion of the request."""

    async def choice_row(self, prompt_ids: TokenIds, choices: Sequence[TokenIds]) -> ChoiceRow:
        """Log-probability of each choice after the prompt."""


def text_fields(
    request: GenerateRequest,
    completion: int,
    *,
    form: ConstraintForm,
    most_tokens: int,
    max_tokens_field: str = "max_tokens",
) -> dict[str, Any]:
    """Fields that say how one completion is drawn."""
    constraint, max_tokens = request.constraint, request.max_tokens
    fields: dict[str, Any] = {
        "temperature": request.temperature,
        "top_p": request.top_p,
        "seed": completion_seed(request, completion),
    }
    if request.stop_sequences:
        fields["stop"] = list(request.stop_sequences)
    if constraint is not None:
        fields |= constraint_fields(constraint, form)
        max_tokens += WRAPPER_TOKENS if form == "json_schema" and constraint.choices else 0
    return fields | {max_tokens_field: min(max_tokens, most_tokens)}


def text_of(
    text: str, request: GenerateRequest, reason: StopReason, *, form: ConstraintForm, malformed: Malformed
) -> str:
    """The text as it was asked for; half a constrained text is left as it is."""
    if request.constraint is None or reason == "max_tokens":
        return text
    return constrained_text(text, request.constraint, form, malformed)


def completion_seed(request: GenerateRequest, completion: int) -> int:
    """The seed of one completion, from (seed, stream, completion) alone."""
    key = f"{request.seed} {request.stream} {completion}".encode()
    return int.from_bytes(hashlib.sha256(key).digest()[:8], "big") >> (64 - _SEED_BITS)


def no_logprobs(url: str) -> UnsupportedError:
    """The error for asking what the server cannot tell."""
    return UnsupportedError(f"{url} gives no log-probabilities", reason="CHOICE_LOGPROBS_UNSUPPORTED")
