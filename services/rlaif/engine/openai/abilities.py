"""What a server can do, found out when the engine opens: a few requests of one token or a few."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any

from rlaif.core.errors import RlaifError, UnavailableError, UnsupportedError
from rlaif.engine.openai.answers import Position, only_choice, read_positions, token_id_of
from rlaif.engine.openai.constraints import ConstraintForm, constrained_text, constraint_fields
from rlaif.engine.openai.endpoint import MALFORMED_RESPONSE, REQUEST_REFUSED, Endpoint
from rlaif.engine.openai.settings import OpenAiSettings
from rlaif.engine.protocol import Constraint, TokenIds

# Words that no model says unless it is held to them.
_PROBE_CONSTRAINT = Constraint(choices=("quail-17", "quail-29"))
_FEW_LOGPROBS = 5
_FORMS: tuple[ConstraintForm, ...] = ("structured_outputs", "guided", "json_schema")

Ask = Callable[[Mapping[str, Any], int], Awaitable[Mapping[str, Any]]]
"""Sends a probe's fields and the most tokens to answer; returns the one choice of the answer."""


@dataclass(frozen=True)
class Abilities:
    """What one server does with one model.

    `token_ids`: it names tokens by their ids and gives the log-probability of any id asked for (vLLM). `top_logprobs`:
    how many of the likeliest tokens it lists, 0 for none. `echo`: it gives the log-probabilities of a prompt.
    """

    token_ids: bool
    top_logprobs: int
    echo: bool
    constraints: ConstraintForm
    tokens_seen: frozenset[str] = frozenset()
    """Single tokens of the model, leading white space aside, as far as a chat server has listed them."""

    @property
    def choice_logprobs(self) -> bool:
        """Whether labels' log-probabilities can be had at all."""
        return self.token_ids or self.top_logprobs > 0


async def find_context_length(endpoint: Endpoint) -> int | None:
    """Longest context that the server says it has; None when it says nothing."""
    try:
        answer = await endpoint.get("/models")
    except RlaifError:
        # Not every server lists its models, and what is wrong with this one the probes will tell.
        return None
    models = answer.get("data")
    for each in models if isinstance(models, list) else ():
        if isinstance(each, dict) and each.get("id") == endpoint.model:
            length = each.get("max_model_len")
            return length if isinstance(length, int) and length > 0 else None
    return None


async def probe_completions(
    endpoint: Endpoint, settings: OpenAiSettings, *, prompt_ids: TokenIds, label_ids: TokenIds
) -> Abilities:
    """Abilities of /completions with token ids as the prompt."""

    async def ask(fields: Mapping[str, Any], max_tokens: int) -> Mapping[str, Any]:
        body = {"prompt": list(prompt_ids), "max_tokens": max_tokens, "temperature": 1.0, **fields}
        return only_choice(await endpoint.post("/completions", body), endpoint.malformed)

    async def positions(fields: Mapping[str, Any], max_tokens: int = 1) -> list[Position]:
        return read_positions((await ask(fields, max_tokens)).get("logprobs"), endpoint.malformed) or []

    async def lists_ids() -> bool:
        by_id = {"logprobs": 1, "logprob_token_ids": list(label_ids), "return_tokens_as_token_ids": True}
        found = await positions(by_id)
        return bool(found) and {*label_ids} <= {token_id_of(token) for token, _ in found[0].listed}

    async def lists_tokens(most: int) -> bool:
        found = await positions({"logprobs": most})
        return bool(found) and len(found[0].listed) > 1

    async def scores_prompt() -> bool:
        return len(await positions({"logprobs": 1, "echo": True}, max_tokens=0)) == len(prompt_ids)

    # First the plainest request, so that what is wrong with the endpoint itself is told as such.
    await ask({}, 1)
    return Abilities(
        token_ids=await _works(lists_ids()),
        top_logprobs=await _most_logprobs(settings, lists_tokens),
        echo=await _works(scores_prompt()),
        constraints=await _constraint_form(endpoint, settings, ask),
    )


async def probe_chat(endpoint: Endpoint, settings: OpenAiSettings) -> Abilities:
    """Abilities of /chat/completions."""
    seen: set[str] = set()

    async def ask(fields: Mapping[str, Any], max_tokens: int) -> Mapping[str, Any]:
        # Whether "10" is one token or two, the answer shows.
        question = {"role": "user", "content": "Answer with the number 10 and nothing else."}
        body = {"messages": [question], settings.max_tokens_field: max_tokens, "temperature": 1.0, **fields}
        return only_choice(await endpoint.post("/chat/completions", body), endpoint.malformed)

    async def lists_tokens(most: int) -> bool:
        choice = await ask({"logprobs": True, "top_logprobs": most}, 1)
        found = read_positions(choice.get("logprobs"), endpoint.malformed)
        if not found or len(found[0].listed) < 2:
            return False
        seen.update(token.lstrip() for token, _ in found[0].listed)
        return True

    await ask({}, 1)
    top_logprobs = await _most_logprobs(settings, lists_tokens)
    constraints = await _constraint_form(endpoint, settings, ask)
    return Abilities(False, top_logprobs, echo=False, constraints=constraints, tokens_seen=frozenset(seen))


async def _most_logprobs(settings: OpenAiSettings, works: Callable[[int], Awaitable[bool]]) -> int:
    """Vendors differ in how many they list; too many is refused."""
    for most in sorted({settings.top_logprobs, min(_FEW_LOGPROBS, settings.top_logprobs)}, reverse=True):
        if await _works(works(most)):
            return most
    return 0


async def _constraint_form(endpoint: Endpoint, settings: OpenAiSettings, ask: Ask) -> ConstraintForm:
    """The first form that the server honours: some take unknown fields and ignore them."""
    if settings.constraints == "none":
        return "none"
    forms: tuple[ConstraintForm, ...] = (settings.constraints,) if settings.constraints != "auto" else _FORMS

    async def honoured(form: ConstraintForm) -> bool:
        choice = await ask(constraint_fields(_PROBE_CONSTRAINT, form), 48)
        message = choice.get("message")
        text = message.get("content") if isinstance(message, dict) else choice.get("text")
        if not isinstance(text, str):
            return False
        return constrained_text(text, _PROBE_CONSTRAINT, form, endpoint.malformed) in _PROBE_CONSTRAINT.choices

    for form in forms:
        if await _works(honoured(form)):
            return form
    return "none"


async def _works(probe: Awaitable[bool]) -> bool:
    """False when the server refuses the request or answers something else; an endpoint that is lost is an error."""
    try:
        return await probe
    except (UnsupportedError, UnavailableError) as error:
        if error.reason in (REQUEST_REFUSED, MALFORMED_RESPONSE):
            return False
        raise
