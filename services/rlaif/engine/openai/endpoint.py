"""One OpenAI-compatible server over HTTP: keys, retries within a deadline, and every failure as a typed error.

The only importer of the `openai` package.
"""

from __future__ import annotations

import asyncio
import heapq
import itertools
import json
import logging
import math
import os
import random
import time
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager
from email.utils import parsedate_to_datetime
from typing import Any

import httpx2
import openai
from pydantic import SecretStr

from rlaif.core.errors import (
    DeadlineError,
    InvalidInputError,
    QuotaExceededError,
    RlaifError,
    SettingsError,
    UnavailableError,
    UnsupportedError,
)
from rlaif.engine.openai.answers import count_prompt
from rlaif.engine.openai.settings import OpenAiSettings
from rlaif.engine.protocol import EngineWork
from rlaif.runtime.context import remaining_seconds
from rlaif.runtime.watched_files import read_file

Json = Mapping[str, Any]

MALFORMED_RESPONSE = "MALFORMED_RESPONSE"
PROMPT_TOO_LONG = "PROMPT_TOO_LONG"
CONTENT_FILTERED = "CONTENT_FILTERED"
REQUEST_REFUSED = "REQUEST_REFUSED"

_FIRST_DELAY_SECONDS, _LONGEST_DELAY_SECONDS = 0.5, 8.0
_MAX_QUOTED_CHARACTERS = 200
_MAX_ANSWER_BYTES = 64 * 1024 * 1024
_RETRIED = frozenset({408, 429})
# What servers call a prompt that does not fit: OpenAI, vLLM, TGI, llama.cpp, SGLang.
_CONTEXT_ERRORS = (
    *("context_length", "context length", "context window", "context size", "exceed_context_size"),
    *("max_model_len", "maximum model length", "prompt is too long", "`inputs` tokens", "longer than the model"),
)


class Slots:
    """So many requests at a time; of those that wait, the smallest priority goes first, then who came first."""

    def __init__(self, size: int) -> None:
        self._free = size
        self._order = itertools.count()
        self._waiting: list[tuple[int, int, asyncio.Future[None]]] = []
        self.num_running = 0

    @property
    def num_waiting(self) -> int:
        """Requests that wait for a slot."""
        return sum(not turn.done() for _, _, turn in self._waiting)

    @asynccontextmanager
    async def slot(self, priority: int) -> AsyncIterator[None]:
        """Held while the block runs."""
        await self._enter(priority)
        self.num_running += 1
        try:
            yield
        finally:
            self.num_running -= 1
            self._leave()

    async def _enter(self, priority: int) -> None:
        if self._free:
            self._free -= 1
            return
        turn = asyncio.get_running_loop().create_future()
        heapq.heappush(self._waiting, (priority, next(self._order), turn))
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():
                # The turn came in the very moment in which it was given up.
                self._leave()
            raise

    def _leave(self) -> None:
        while self._waiting:
            turn = heapq.heappop(self._waiting)[-1]
            if not turn.done():
                turn.set_result(None)
                return
        self._free += 1


class Endpoint:
    """Sends requests of one model to one server."""

    def __init__(self, settings: OpenAiSettings, *, model: str) -> None:
        self._settings = settings
        self.model = model
        self.slots = Slots(settings.max_concurrency)
        self.work = EngineWork()
        """What the server says of the prompts it was sent."""
        self._key = SecretStr(_read_key(settings))
        # Both log whole requests, prompts included, or a line a request.
        for name in ("openai", "httpx2", "httpcore2"):
            logging.getLogger(name).setLevel(logging.WARNING)
        # Empty strings, not None: None makes the library look for keys in environment variables of its own choice.
        self._client = openai.AsyncOpenAI(
            api_key="", admin_api_key="", base_url=settings.base_url, max_retries=0, timeout=settings.timeout_seconds
        )

    def __repr__(self) -> str:
        return f"Endpoint({self._settings.base_url!r}, model={self.model!r})"

    @property
    def url(self) -> str:
        """Where the server is."""
        return self._settings.base_url

    async def post(self, path: str, body: Json, *, priority: int = 0) -> Json:
        """The answer to a request, a JSON object; typed errors name the endpoint and what to do."""
        async with self.slots.slot(priority):
            answer = await self._retried("POST", path, {**self._settings.extra_body, "model": self.model, **body})
        count_prompt(self.work, answer.get("usage"))
        return answer

    async def get(self, path: str, *, timeout_seconds: float | None = None) -> Json:
        """The same for a GET, outside of the slots."""
        return await self._retried("GET", path, None, timeout_seconds=timeout_seconds)

    async def close(self) -> None:
        """Closes the connections."""
        await self._client.close()

    def malformed(self, what: str) -> UnavailableError:
        """The error for an answer that is not what the protocol says."""
        return UnavailableError(
            f"{self.url} answers what the protocol does not know: {what}", reason=MALFORMED_RESPONSE
        )

    async def _retried(
        self, method: str, path: str, body: Json | None, *, timeout_seconds: float | None = None
    ) -> Json:
        """Tries until the deadline: the settings' or the call's, whichever comes first."""
        limit = timeout_seconds or self._settings.timeout_seconds
        left = remaining_seconds()
        limit = limit if left is None else min(limit, left)
        deadline = time.monotonic() + limit
        for num_failures in itertools.count(1):
            try:
                async with asyncio.timeout(max(0.0, deadline - time.monotonic())):
                    response = await self._send(method, path, body, timeout_seconds=limit)
                return self._read(response)
            except (TimeoutError, openai.APITimeoutError) as error:
                raise DeadlineError(f"{self.url}{path} did not answer within {limit:g} s") from error
            except openai.APIStatusError as error:
                failure, delay = self._failure(error, body), _retry_after(error.response.headers)
                if not _is_transient(error):
                    raise failure from None
            except openai.APIConnectionError as error:
                cause = error.__cause__
                failure, delay = UnavailableError(f"{self.url} cannot be reached: {_connection_cause(cause)}"), None
            delay = _backoff(num_failures) if delay is None else delay
            if num_failures > self._settings.max_retries or time.monotonic() + delay >= deadline:
                raise failure from None
            await _pause(delay)
        raise AssertionError("unreachable")

    async def _send(self, method: str, path: str, body: Json | None, *, timeout_seconds: float) -> httpx2.Response:
        key = self._key.get_secret_value()
        authorization: Any = f"Bearer {key}" if key else openai.Omit()
        options: Any = {
            "headers": {"Authorization": authorization},
            "timeout": timeout_seconds,
            # A redirect would turn the request into a GET, or take the prompt elsewhere.
            "follow_redirects": False,
        }
        if method == "GET":
            return await self._client.get(path, cast_to=httpx2.Response, options=options)
        return await self._client.post(path, cast_to=httpx2.Response, body=body, options=options)

    def _read(self, response: httpx2.Response) -> Json:
        if len(response.content) > _MAX_ANSWER_BYTES:
            raise self.malformed(f"an answer of {len(response.content)} bytes")
        try:
            answer = json.loads(response.content, parse_constant=_refuse_constant)
        except ValueError as error:
            kind = response.headers.get("content-type", "no content type").split(";")[0]
            raise self.malformed(f"{len(response.content)} bytes of {kind} that are no JSON") from error
        if not isinstance(answer, dict):
            raise self.malformed("JSON that is no object")
        if "choices" not in answer and answer.get("error"):
            # Some gateways report failures with the status of a success.
            raise self.malformed("an error with the HTTP status of a success")
        return answer

    def _failure(self, error: openai.APIStatusError, body: Json | None) -> RlaifError:
        status, endpoint = error.status_code, self.url
        if status in (401, 403):
            return SettingsError(
                f"{endpoint} refuses the credentials (HTTP {status}): {self._credentials()}",
                field="engine.openai.api_key_env",
            )
        said = self._quote(error, body)
        if status == 404 or 300 <= status < 400:
            return SettingsError(
                f"{endpoint} has no such place or model (HTTP {status}){said}: check engine.openai.base_url, which "
                f"usually ends in /v1, and the model's name {self.model!r}",
                field="engine.openai.base_url",
            )
        if status == 429:
            return QuotaExceededError(
                f"{endpoint} takes no more requests now (HTTP 429){said}",
                retry_after_seconds=_retry_after(error.response.headers) or _LONGEST_DELAY_SECONDS,
                reason="RATE_LIMITED",
            )
        if status == 408 or status >= 500:
            return UnavailableError(f"{endpoint} failed (HTTP {status}){said}")
        details = f"{error.code} {error.type} {error.message}".lower()
        if any(sign in details for sign in _CONTEXT_ERRORS):
            return InvalidInputError(
                f"{endpoint} says that prompt and answer are longer than the model's context{said}",
                field="messages",
                reason=PROMPT_TOO_LONG,
            )
        if "content_filter" in details or "content filter" in details:
            return InvalidInputError(
                f"{endpoint} filters the prompt's content (HTTP {status})", field="messages", reason=CONTENT_FILTERED
            )
        return UnsupportedError(f"{endpoint} refuses the request (HTTP {status}){said}", reason=REQUEST_REFUSED)

    def _credentials(self) -> str:
        settings = self._settings
        if settings.api_key_env is not None:
            return f"check the key in the environment variable {settings.api_key_env}"
        if settings.api_key_path is not None:
            return f"check the key in {settings.api_key_path}"
        return "no key was sent; name the variable that holds one in engine.openai.api_key_env"

    def _quote(self, error: openai.APIStatusError, body: Json | None) -> str:
        """The server's sentence, without key or prompt; empty when it says none in the protocol's form."""
        told = error.body.get("message") if isinstance(error.body, dict) else None
        if not isinstance(told, str) or not told.strip():
            return ""
        line = told.strip().splitlines()[0][:_MAX_QUOTED_CHARACTERS]
        key = self._key.get_secret_value()
        if (key and key in told) or any(text in told for text in _texts_of(body)):
            return ""
        return f": {line}"


def _read_key(settings: OpenAiSettings) -> str:
    """The API key; empty when none is asked for. SettingsError when the one named is not there."""
    if settings.api_key_env is not None:
        key, source = os.environ.get(settings.api_key_env, ""), f"the environment variable {settings.api_key_env}"
        field = "engine.openai.api_key_env"
    elif settings.api_key_path is not None:
        field, source = "engine.openai.api_key_path", str(settings.api_key_path)
        key = read_file(settings.api_key_path, key=field).decode("utf-8", "replace")
    else:
        return ""
    key = key.strip()
    if not key or not key.isascii() or not key.isprintable() or " " in key:
        raise SettingsError(f"{source} must hold the API key: one line of printable ASCII without spaces", field=field)
    return key


def _refuse_constant(name: str) -> float:
    """NaN and Infinity are no JSON, although Python reads them."""
    raise ValueError(f"{name} is no JSON")


def _texts_of(body: Json | None) -> Iterator[str]:
    """The beginnings of what was sent as text, long enough to tell."""
    for message in (body or {}).get("messages", ()):
        for line in str(message["content"]).splitlines():
            if len(line.strip()) >= 8:
                yield line.strip()[:32]


def _is_transient(error: openai.APIStatusError) -> bool:
    # A spent budget is no matter of waiting, although it comes as 429.
    return (error.status_code in _RETRIED or error.status_code >= 500) and error.code != "insufficient_quota"


def _retry_after(headers: Mapping[str, str]) -> float | None:
    """Seconds that the server asks to wait; None when it does not say."""
    for name, unit in (("retry-after-ms", 1e-3), ("retry-after", 1.0)):
        value = headers.get(name, "")
        try:
            seconds = float(value) * unit
        except ValueError:
            continue
        if math.isfinite(seconds) and seconds >= 0:
            return seconds
    try:
        return max(0.0, parsedate_to_datetime(headers.get("retry-after", "")).timestamp() - time.time())
    except (ValueError, TypeError):
        return None


def _backoff(num_failures: int) -> float:
    """Doubles with every failure; a random quarter less, so that many callers do not return at once."""
    delay = min(_LONGEST_DELAY_SECONDS, _FIRST_DELAY_SECONDS * 2.0 ** (num_failures - 1))
    return delay * random.uniform(0.75, 1.0)  # noqa: S311 - no secret


async def _pause(seconds: float) -> None:
    await asyncio.sleep(seconds)


def _connection_cause(cause: BaseException | None) -> str:
    if cause is None:
        return "the connection was lost"
    lines = str(cause).strip().splitlines()
    return lines[0][:_MAX_QUOTED_CHARACTERS] if lines else type(cause).__name__
