"""The engine on an OpenAI-compatible server: one HTTP request a completion and a prompt, many at a time."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Sequence
from dataclasses import replace
from typing import Any, TypeVar

from rlaif.core.conversation import Message
from rlaif.core.errors import DeadlineError, InvalidInputError, RlaifError, UnavailableError, UnsupportedError
from rlaif.engine.checks import check_choices, check_generate
from rlaif.engine.openai.abilities import Abilities, find_context_length, probe_chat, probe_completions
from rlaif.engine.openai.asking import ChoiceRow, Way
from rlaif.engine.openai.chat import ChatWay
from rlaif.engine.openai.endpoint import MALFORMED_RESPONSE, PROMPT_TOO_LONG, Endpoint
from rlaif.engine.openai.settings import OpenAiSettings
from rlaif.engine.protocol import (
    Capabilities,
    ChoiceLogprobs,
    ChoiceRequest,
    Engine,
    EngineUsage,
    EngineWork,
    GenerateRequest,
    Generation,
    ModelIdentity,
    OnGeneration,
    TokenIds,
)
from rlaif.runtime.logging import EventLogger

_log = EventLogger(__name__)

Result = TypeVar("Result")

_HEALTH_SECONDS = 10.0


class OpenAiEngine:
    """A model that a server elsewhere runs. Its weights are the server's own affair."""

    def __init__(
        self, endpoint: Endpoint, way: Way, *, abilities: Abilities, identity: ModelIdentity, context_length: int
    ) -> None:
        self._endpoint, self._way, self._abilities = endpoint, way, abilities
        self._identity, self._context_length = identity, context_length
        self._closed = False

    @classmethod
    async def open(
        cls, settings: OpenAiSettings, *, model: str, version: int = 0, context_length: int | None = None
    ) -> OpenAiEngine:
        """The engine, once the server has shown what it can do.

        SettingsError for a wrong key or place, UnavailableError when the server is not there.
        """
        endpoint = Endpoint(settings, model=model)
        try:
            length = await _context_length(endpoint, limit=context_length)
            way, abilities = await _open_way(endpoint, settings, context_length=length)
        except BaseException:
            await endpoint.close()
            raise
        _log.info(
            "endpoint probed",
            endpoint=settings.base_url,
            model=model,
            mode=settings.mode,
            context_length=length,
            label_logprobs=_told(abilities),
            prompt_logprobs=abilities.echo,
            constraints=abilities.constraints,
            token_ids=abilities.token_ids,
            weights="declared" if settings.model_digest else "unknown",
        )
        identity = ModelIdentity(f"{settings.base_url}#{model}", settings.model_digest, version)
        return cls(endpoint, way, abilities=abilities, identity=identity, context_length=length)

    @property
    def identity(self) -> ModelIdentity:
        """The server and its model; the digest is what the settings vouch for, empty when nothing does."""
        return self._identity

    @property
    def context_length(self) -> int:
        """Longest prompt plus completion, tokens."""
        return self._context_length

    @property
    def capabilities(self) -> Capabilities:
        """What may be asked of it, as the server has shown."""
        return Capabilities(
            choice_logprobs=self._abilities.choice_logprobs,
            constraints=self._abilities.constraints != "none",
            loads_weights=False,
            loads_adapters=False,
            repeatable=False,
            token_ids=self._abilities.token_ids,
        )

    @property
    def usage(self) -> EngineUsage:
        """What this process has at the server, and what waits here."""
        return EngineUsage(self._endpoint.slots.num_running, self._endpoint.slots.num_waiting)

    @property
    def work(self) -> EngineWork:
        """What the server says that it has done for this process."""
        return self._endpoint.work

    @property
    def num_gpus(self) -> int:
        """None of this process."""
        return 0

    def encode_chat(self, messages: Sequence[Message]) -> TokenIds:
        """Ids of a conversation: the model's own by completions, opaque by chat."""
        return self._way.encode_chat(messages)

    def encode_judge_prompt(self, context: str, question: str) -> tuple[TokenIds, TokenIds]:
        """(prefix, suffix) ids of one user turn."""
        return self._way.encode_judge_prompt(context, question)

    def encode_choices(self, labels: Sequence[str]) -> tuple[TokenIds, ...]:
        """Ids of each answer label."""
        return self._way.encode_choices(labels)

    async def generate(
        self, requests: Sequence[GenerateRequest], *, on_generation: OnGeneration | None = None
    ) -> list[list[Generation]]:
        """Completions of each request, each drawn by an HTTP request of its own."""
        self._check_open()
        check_generate(requests, context_length=self._context_length)

        async def one(index: int, completion: int) -> Generation:
            generation = await self._way.generate(requests[index], completion)
            if on_generation is not None:
                on_generation(index, completion, generation)
            return generation

        pairs = [(index, n) for index, request in enumerate(requests) for n in range(request.num_completions)]
        made = iter(await _all([one(*pair) for pair in pairs]))
        return [[next(made) for _ in range(request.num_completions)] for request in requests]

    async def choice_logprobs(self, requests: Sequence[ChoiceRequest]) -> list[ChoiceLogprobs]:
        """Log-probabilities of the choices; UnsupportedError when the server gives none."""
        self._check_open()
        check_choices(requests, context_length=self._context_length)
        prompts = [
            (request.prefix_ids + suffix, request.choices) for request in requests for suffix in request.suffixes
        ]
        rows = iter(await _all([self._row(*each) for each in prompts]))
        return [_joined([next(rows) for _ in request.suffixes], request) for request in requests]

    async def load(self, identity: ModelIdentity) -> None:
        """Not offered: what the server runs is set where it is started."""
        raise UnsupportedError(
            f"{self._endpoint.url} serves the weights it was started with and takes none from here: leave artifact_root"
            " out to sample a fixed policy, or run the policy on the engine vllm or hf",
            reason="LOAD_UNSUPPORTED",
        )

    async def check_health(self) -> None:
        """Returns when the server answers at all."""
        self._check_open()
        try:
            await self._endpoint.get("/models", timeout_seconds=_HEALTH_SECONDS)
        except (UnavailableError, DeadlineError) as error:
            # What answers in another language is there all the same.
            if error.reason != MALFORMED_RESPONSE:
                raise UnavailableError(f"{self._endpoint.url} is lost: {error}") from error
        except RlaifError:
            # It answered; not every server lists its models.
            return

    async def close(self) -> None:
        """Closes the connections."""
        self._closed = True
        await self._endpoint.close()

    async def _row(self, prompt_ids: TokenIds, choices: Sequence[TokenIds]) -> ChoiceRow | None:
        """None when the server finds the prompt too long."""
        try:
            return await self._way.choice_row(prompt_ids, choices)
        except InvalidInputError as error:
            if error.reason != PROMPT_TOO_LONG:
                raise
            return None

    def _check_open(self) -> None:
        if self._closed:
            raise UnavailableError("the engine is closed")


async def _context_length(endpoint: Endpoint, *, limit: int | None) -> int:
    known = [length for length in (limit, await find_context_length(endpoint)) if length is not None]
    if not known:
        raise InvalidInputError(
            f"{endpoint.url} does not say how long a context {endpoint.model} has; set engine.context_length, tokens",
            field="engine.context_length",
        )
    return min(known)


async def _open_way(endpoint: Endpoint, settings: OpenAiSettings, *, context_length: int) -> tuple[Way, Abilities]:
    if settings.mode == "chat":
        abilities = await probe_chat(endpoint, settings)
        return ChatWay(endpoint, settings, abilities=abilities, context_length=context_length), abilities
    from rlaif.engine.codec import ChatCodec
    from rlaif.engine.openai.completions import CompletionsWay
    from rlaif.engine.openai.tokenizer import load_tokenizer, token_names

    tokenizer = await asyncio.to_thread(load_tokenizer, settings.tokenizer)
    codec = ChatCodec(tokenizer)
    prefix, suffix = codec.encode_judge_prompt("", "Answer with one digit, 1 or 2.")
    labels = tuple(dict.fromkeys(choice[0] for choice in codec.encode_choices(("1", "2"))))
    abilities = await probe_completions(endpoint, settings, prompt_ids=prefix + suffix, label_ids=labels)
    names: dict[str, TokenIds] = {}
    if not abilities.token_ids and abilities.top_logprobs:
        names = await asyncio.to_thread(token_names, tokenizer)
        if any(len(ids) > 1 and {*labels} & {*ids} for ids in names.values()):
            _log.warning("the server tells tokens by their text, which is that of several tokens for the labels")
            abilities = replace(abilities, top_logprobs=0)
    way = CompletionsWay(endpoint, codec, names=names, abilities=abilities, context_length=context_length)
    return way, abilities


def _told(abilities: Abilities) -> str:
    if abilities.token_ids:
        return "all"
    return f"the {abilities.top_logprobs} likeliest tokens" if abilities.top_logprobs else "none"


def _joined(rows: Sequence[ChoiceRow | None], request: ChoiceRequest) -> ChoiceLogprobs:
    nothing = ChoiceRow((float("nan"),) * len(request.choices))
    return ChoiceLogprobs(
        logprobs=tuple((row or nothing).logprobs for row in rows),
        unlisted=tuple(max(0.0, (row or nothing).unlisted) for row in rows),
        too_long=None in rows,
    )


async def _all(work: Sequence[Coroutine[Any, Any, Result]]) -> list[Result]:
    """Every result, in order; the first failure, or being cancelled, ends what is still under way."""
    tasks = [asyncio.create_task(each) for each in work]
    try:
        return list(await asyncio.gather(*tasks))
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


_: type[Engine] = OpenAiEngine
