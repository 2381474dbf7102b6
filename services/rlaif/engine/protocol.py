"""What a service asks of an inference engine; each implementation is the only importer of its library."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final, Literal, Protocol

from rlaif.core.conversation import Message

TokenIds = tuple[int, ...]
StopReason = Literal["end_of_turn", "stop_sequence", "max_tokens"]

ENGINE_LOST: Final = "ENGINE_LOST"
"""Reason of an UnavailableError after which the engine never works again in this process."""


@dataclass(frozen=True)
class ModelIdentity:
    """Which weights an engine runs. `digest` is empty when they cannot be identified (remote engines)."""

    uri: str
    digest: str
    version: int = 0


@dataclass(frozen=True)
class Capabilities:
    """What an engine can do with the model it was opened with."""

    choice_logprobs: bool
    """Log-probabilities of given answers over the whole vocabulary; ChoiceLogprobs tells what is not known."""
    constraints: bool
    """Completions held to choices, a regular expression or a JSON schema."""
    loads_weights: bool
    """Swapping to other weights of the same architecture while it serves."""
    loads_adapters: bool
    """Swapping to a LoRA adapter of the model while it serves."""
    repeatable: bool
    """The same request alone gives the same token ids again."""
    token_ids: bool = True
    """Prompts are encoded to the model's own tokens, and completions come with theirs; else ids are opaque."""


@dataclass(frozen=True)
class EngineUsage:
    """How busy an engine is. `cache_usage` is the share of its key-value cache in use, in [0, 1]; None if unknown."""

    running_completions: int
    waiting_completions: int
    cache_usage: float | None = None


@dataclass
class EngineWork:
    """What an engine has done since it was opened, as far as it is told."""

    prompt_tokens: int = 0
    """Tokens of all prompts, each counted for every completion or question that followed it."""
    computed_prompt_tokens: int = 0
    """Those of them that the model ran over; the others were shared with a prompt before."""


@dataclass(frozen=True)
class Constraint:
    """What a completion's text must be; exactly one is set: one of the choices, a regular expression, a JSON schema."""

    choices: tuple[str, ...] = ()
    regex: str = ""
    json_schema: str = ""


@dataclass(frozen=True)
class GenerateRequest:
    """One prompt to continue `num_completions` times.

    `stream` names the prompt's random streams together with `seed`: completion i draws from the stream
    (seed, stream, i), whatever else is in the batch. `temperature` 0 is greedy. Of requests that wait, those of
    the smallest `priority` run first.
    """

    prompt_ids: TokenIds
    num_completions: int
    max_tokens: int
    temperature: float = 1.0
    top_p: float = 1.0
    stop_sequences: tuple[str, ...] = ()
    seed: int = 0
    stream: int = 0
    constraint: Constraint | None = None
    priority: int = 0


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
    """Which of `choices` comes next after prefix + suffix, for every suffix of one shared prefix.

    `seed` matters only where the answer is estimated from draws.
    """

    prefix_ids: TokenIds
    suffixes: tuple[TokenIds, ...]
    choices: tuple[TokenIds, ...]
    seed: int = 0


@dataclass(frozen=True)
class ChoiceLogprobs:
    """`logprobs[s][c]` is the natural log-probability of choice c after suffix s, over the whole vocabulary.

    An engine that is told of the likeliest tokens only says -inf of a choice that was not among them, and `unlisted[s]`
    bounds the probability of all such choices together; NaN is a choice that cannot be told. `unlisted` is empty where
    everything is known. `too_long`: a server that alone can count its tokens found that the prompt does not fit.
    """

    logprobs: tuple[tuple[float, ...], ...]
    unlisted: tuple[float, ...] = ()
    too_long: bool = False

    def unlisted_after(self, suffix: int) -> float | None:
        """The bound after that suffix; None where everything is known."""
        return self.unlisted[suffix] if self.unlisted else None


class Engine(Protocol):
    """A loaded causal language model."""

    @property
    def identity(self) -> ModelIdentity:
        """Weights now being served."""

    @property
    def context_length(self) -> int:
        """Longest prompt plus completion, tokens."""

    @property
    def capabilities(self) -> Capabilities:
        """What may be asked of it; anything else is an UnsupportedError."""

    @property
    def usage(self) -> EngineUsage:
        """How busy it is."""

    @property
    def work(self) -> EngineWork:
        """What it has done so far."""

    @property
    def num_gpus(self) -> int:
        """GPUs of this process that it computes on; 0 on CPUs and where a server elsewhere computes."""

    def encode_chat(self, messages: Sequence[Message]) -> TokenIds:
        """Chat-template ids of a conversation, generation prompt included; content never yields control tokens."""

    def encode_judge_prompt(self, context: str, question: str) -> tuple[TokenIds, TokenIds]:
        """(prefix, suffix) ids of one user turn whose context and question are tokenised apart."""

    def encode_choices(self, labels: Sequence[str]) -> tuple[TokenIds, ...]:
        """Ids of each answer label as it would follow the generation prompt."""

    async def generate(
        self, requests: Sequence[GenerateRequest], *, on_generation: OnGeneration | None = None
    ) -> list[list[Generation]]:
        """Completions of each request; `on_generation` hears of each on the event loop as it finishes.

        Calls may overlap; whether they then share batches is the engine's own. Cancelling a call stops its work.
        """

    async def choice_logprobs(self, requests: Sequence[ChoiceRequest]) -> list[ChoiceLogprobs]:
        """Log-probabilities of the choices by prefill alone, as one batch; no decoding."""

    async def load(self, identity: ModelIdentity) -> None:
        """Swap to other weights of the same architecture, or to a LoRA adapter where the folder holds one.

        Calls made before finish on the old weights, calls made after start on the new ones. On an error the old
        weights stay.
        """

    async def check_health(self) -> None:
        """Return when the engine works; UnavailableError when not, with reason ENGINE_LOST when it never will again."""

    async def close(self) -> None:
        """Free the model."""
