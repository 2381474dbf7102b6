"""Text that the judge writes: bounded, repeatable by seed, and typed when it is no use."""

from __future__ import annotations

import asyncio
import functools
import hashlib
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import ParamSpec, TypeVar

from rlaif.core.preference import AbstentionReason
from rlaif.engine.protocol import GenerateRequest, Generation, TokenIds

Parameters = ParamSpec("Parameters")
Result = TypeVar("Result")

RunGenerate = Callable[[Sequence[GenerateRequest]], Awaitable[Sequence[Sequence[Generation]]]]
"""Where the engine's batches of texts are formed: the completions of each request, in order."""


class PlanningThread:
    """One thread: tokenizers are not safe to share, and long texts must not hold up the event loop."""

    def __init__(self) -> None:
        self._executor = ThreadPoolExecutor(max_workers=1, thread_name_prefix="judge-plan")

    async def __call__(
        self, work: Callable[Parameters, Result], *arguments: Parameters.args, **keywords: Parameters.kwargs
    ) -> Result:
        """What `work` returns."""
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._executor, functools.partial(work, *arguments, **keywords))

    def close(self) -> None:
        """Stop the thread."""
        self._executor.shutdown(wait=True)


@dataclass(frozen=True)
class Decoding:
    """How texts are drawn: at most `max_tokens`, greedily at temperature 0."""

    max_tokens: int
    temperature: float
    top_p: float = 1.0


@dataclass(frozen=True)
class Text:
    """A whole text, stripped; or empty, and why."""

    content: str
    abstention_reason: AbstentionReason | None = None


def text_request(prompt_ids: TokenIds, *, decoding: Decoding, seed: int, num_completions: int = 1) -> GenerateRequest:
    """A request whose draws depend on prompt and seed alone, not on what else is asked."""
    stream = hashlib.sha256(",".join(map(str, prompt_ids)).encode()).digest()[:8]
    return GenerateRequest(
        prompt_ids=prompt_ids,
        num_completions=num_completions,
        max_tokens=decoding.max_tokens,
        temperature=decoding.temperature,
        top_p=decoding.top_p,
        seed=seed,
        stream=int.from_bytes(stream, "big"),
    )


def read_text(generation: Generation) -> Text:
    """The text if it ended by itself and says something: half a text is none."""
    if generation.stop_reason == "max_tokens":
        return Text("", AbstentionReason.TRUNCATED)
    content = generation.text.strip()
    return Text(content) if content else Text("", AbstentionReason.EMPTY)
