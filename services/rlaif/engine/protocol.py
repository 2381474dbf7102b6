"""What a service asks of an inference engine; each implementation is the only importer of its library."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from rlaif.core.conversation import Message

TokenIds = tuple[int, ...]
StopReason = Literal["end_of_turn", "stop_sequence", "max_tokens"]


@dataclass(frozen=True)
class ModelIdentity:
    """Which weights an engine runs. `digest` is empty when they cannot be identified (remote engines)."""

    uri: str
    digest: str
    version: int = 0


@dataclass(frozen=True)
class GenerateRequest:
    """One prompt to continue `num_completions` times.

    `stream` names the prompt's random streams together with `seed`: completion i draws from the stream
    (seed, stream, i), whatever else is in the batch. `temperature` 0 is greedy.
    """

    prompt_ids: TokenIds
    num_completions: int
    max_tokens: int
    temperature: float = 1.0
    top_p: float = 1.0
    stop_sequences: tuple[str, ...] = ()
    seed: int = 0
    stream: int = 0


@dataclass(frozen=True)
class Generation:
    """One completion. `logprobs` are natural, at the sampling temperature before top-p, one a token."""

    text: str
    token_ids: TokenIds
    logprobs: tuple[float, ...]
    stop_reason: StopReason


OnGeneration = Callable[[int, int, Generation], None]
"""Called with (request index, completion index, completion)."""


@dataclass(frozen=True)
class ChoiceRequest:
    """Which of `choices` comes next after prefix + suffix, for every suffix of one shared prefix."""

    prefix_ids: TokenIds
    suffixes: tuple[TokenIds, ...]
    choices: tuple[TokenIds, ...]


@dataclass(frozen=True)
class ChoiceLogprobs:
    """`logprobs[s][c]` is the natural log-probability of choice c after suffix s, over the whole vocabulary."""

    logprobs: tuple[tuple[float, ...], ...]


class Engine(Protocol):
    """A loaded causal language model."""

    @property
    def identity(self) -> ModelIdentity:
        """Weights now being served."""

    @property
    def context_length(self) -> int:
        """Longest prompt plus completion, tokens."""

    def encode_chat(self, messages: Sequence[Message]) -> TokenIds:
        """Chat-template ids of a conversation, generation prompt included; content never yields control tokens."""

    def encode_judge_prompt(self, context: str, question: str) -> tuple[TokenIds, TokenIds]:
        """(prefix, suffix) ids of one user turn whose context and question are tokenised apart."""

    def encode_choices(self, labels: Sequence[str]) -> tuple[TokenIds, ...]:
        """Ids of each answer label as it would follow the generation prompt."""

    async def generate(
        self, requests: Sequence[GenerateRequest], *, on_generation: OnGeneration | None = None
    ) -> list[list[Generation]]:
        """Completions of each request, as one batch; `on_generation` hears of each on the event loop as it finishes.

        Cancelling the call stops the work.
        """

    async def choice_logprobs(self, requests: Sequence[ChoiceRequest]) -> list[ChoiceLogprobs]:
        """Log-probabilities of the choices by prefill alone, as one batch; no decoding."""

    async def load(self, identity: ModelIdentity) -> None:
        """Swap to other weights of the same architecture; calls in flight finish on the old ones."""

    async def close(self) -> None:
        """Free the model."""
