"""Requests off the wire into checked plans; what is wrong is named by field and limit."""

from __future__ import annotations

import math
import re
import secrets
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import NoReturn

from rlaif.core.conversation import Conversation, Message
from rlaif.core.errors import InvalidInputError
from rlaif.engine.protocol import Constraint, Engine, GenerateRequest, TokenIds
from rlaif.runtime.messages import TextLimits, read_conversation
from rlaif.v1 import sampler_service_pb2 as pb

MAX_PROMPTS = 1024
MAX_COMPLETIONS_PER_PROMPT = 64
MAX_TEMPERATURE = 10.0
MAX_STOP_SEQUENCES = 8
MAX_STOP_SEQUENCE_BYTES = 256
MAX_PRIORITY = 1000
MAX_CHOICES = 256
MAX_REGEX_BYTES = 4096
MAX_SCHEMA_BYTES = 65536

_PROMPT_FIELD = re.compile(r"prompts\[(\d+)\]")

SampleRequest = pb.SampleCompletionsRequest | pb.StreamCompletionsRequest


@dataclass(frozen=True)
class SamplingPlan:
    """How to sample every prompt of a request."""

    num_completions: int
    max_tokens: int
    temperature: float
    top_p: float
    stop_sequences: tuple[str, ...]
    seed: int
    priority: int = 0
    constraint: Constraint | None = None

    def requests(self, prompts: Sequence[TokenIds]) -> list[GenerateRequest]:
        """One engine request a prompt; the prompt's position names its random streams."""
        return [
            GenerateRequest(
                prompt_ids=prompt_ids,
                num_completions=self.num_completions,
                max_tokens=self.max_tokens,
                temperature=self.temperature,
                top_p=self.top_p,
                stop_sequences=self.stop_sequences,
                seed=self.seed,
                stream=index,
                constraint=self.constraint,
                priority=self.priority,
            )
            for index, prompt_ids in enumerate(prompts)
        ]


def read_prompts(request: SampleRequest, *, limits: TextLimits) -> list[Conversation | TokenIds]:
    """The request's prompts, 1 to 1024: conversations, or token ids."""
    if not 1 <= len(request.prompts) <= MAX_PROMPTS:
        raise InvalidInputError(f"{len(request.prompts)} prompts; from 1 to {MAX_PROMPTS} are needed", field="prompts")
    return [
        _read_prompt(prompt, field=f"prompts[{index}]", limits=limits) for index, prompt in enumerate(request.prompts)
    ]


def check_lengths(request: SampleRequest, prompts: Sequence[TokenIds], *, context_length: int) -> None:
    """InvalidInputError for a prompt that leaves no room for a completion; prompts are never cut."""
    for index, (prompt, prompt_ids) in enumerate(zip(request.prompts, prompts, strict=True)):
        if len(prompt_ids) >= context_length:
            raise InvalidInputError(
                f"the prompt has {len(prompt_ids)} tokens; at most {context_length - 1} fit the model's context of "
                f"{context_length}",
                reason="PROMPT_TOO_LONG",
                field=f"prompts[{index}].{'token_ids' if prompt.token_ids else 'messages'}",
            )


@contextmanager
def naming_fields(request: SampleRequest) -> Iterator[None]:
    """Names the request's own field where the engine refuses one of its prompts or its constraint."""
    try:
        yield
    except InvalidInputError as error:
        if (match := _PROMPT_FIELD.fullmatch(error.field or "")) and int(match[1]) < len(request.prompts):
            ids = request.prompts[int(match[1])].token_ids
            error.field = f"{error.field}.{'token_ids' if ids else 'messages'}"
        elif (error.field or "").partition(".")[0] == "constraint":
            error.field = f"params.{error.field}"
        raise


def encode_prompts(prompts: Sequence[Conversation | TokenIds], *, engine: Engine) -> list[TokenIds]:
    """Token ids of each prompt; an InvalidInputError names the prompt."""
    encoded = []
    for index, prompt in enumerate(prompts):
        if isinstance(prompt[0], Message):
            try:
                encoded.append(engine.encode_chat(prompt))
            except InvalidInputError as error:
                # The engine knows the messages, not whose they are.
                error.field = f"prompts[{index}].{error.field or 'messages'}"
                raise
        else:
            encoded.append(prompt)
    return encoded


def read_plan(request: SampleRequest, *, context_length: int, max_completions: int) -> SamplingPlan:
    """The request's sampling parameters, defaults filled in; a seed is drawn when there is none."""
    if not request.HasField("params"):
        raise InvalidInputError("sampling parameters are required", field="params")
    params = request.params
    num_completions = params.num_completions or 1
    if num_completions > MAX_COMPLETIONS_PER_PROMPT:
        _refuse(f"{num_completions} is more than {MAX_COMPLETIONS_PER_PROMPT}", "num_completions")
    if len(request.prompts) * num_completions > max_completions:
        _refuse(
            f"{len(request.prompts)} prompts of {num_completions} completions are more than the limit of "
            f"{max_completions} completions a request",
            "num_completions",
        )
    if not 1 <= params.max_tokens <= context_length:
        _refuse(f"{params.max_tokens} is not from 1 to {context_length}, the model's context", "max_tokens")
    temperature = params.temperature if params.HasField("temperature") else 1.0
    if not (math.isfinite(temperature) and 0 <= temperature <= MAX_TEMPERATURE):
        _refuse(f"{temperature:g} is not in [0, {MAX_TEMPERATURE:g}]", "temperature")
    top_p = params.top_p if params.HasField("top_p") else 1.0
    if not 0 < top_p <= 1:
        _refuse(f"{top_p:g} is not in (0, 1]", "top_p")
    if not -MAX_PRIORITY <= params.priority <= MAX_PRIORITY:
        _refuse(f"{params.priority} is not from -{MAX_PRIORITY} to {MAX_PRIORITY}", "priority")
    return SamplingPlan(
        num_completions=num_completions,
        max_tokens=params.max_tokens,
        temperature=temperature,
        top_p=top_p,
        stop_sequences=_stop_sequences(params.stop_sequences),
        seed=params.seed if params.HasField("seed") else secrets.randbits(64),
        priority=params.priority,
        constraint=_constraint(params.constraint) if params.HasField("constraint") else None,
    )


def _read_prompt(prompt: pb.SamplePrompt, *, field: str, limits: TextLimits) -> Conversation | TokenIds:
    if prompt.token_ids and prompt.messages:
        raise InvalidInputError(
            "messages and token_ids are both set; give the conversation or its tokens", field=f"{field}.token_ids"
        )
    if prompt.token_ids:
        return tuple(prompt.token_ids)
    if not prompt.messages:
        raise InvalidInputError("give messages or token_ids", field=f"{field}.messages")
    return read_conversation(prompt.messages, field=f"{field}.messages", limits=limits)


def _constraint(constraint: pb.Constraint) -> Constraint:
    kind = constraint.WhichOneof("kind")
    if kind == "choices":
        texts = tuple(constraint.choices.texts)
        if not 1 <= len(set(texts)) == len(texts) <= MAX_CHOICES or not all(texts):
            _refuse(f"from 1 to {MAX_CHOICES} different texts are needed, none empty", "constraint.choices.texts")
        return Constraint(choices=texts)
    if kind == "regex":
        return Constraint(regex=_sized(constraint.regex, MAX_REGEX_BYTES, "constraint.regex"))
    if kind is None:
        _refuse("one of choices, regex and json_schema is needed", "constraint")
    return Constraint(json_schema=_sized(constraint.json_schema, MAX_SCHEMA_BYTES, "constraint.json_schema"))


def _sized(text: str, most: int, parameter: str) -> str:
    if not 1 <= len(text.encode()) <= most:
        _refuse(f"{len(text.encode())} bytes are not from 1 to {most}", parameter)
    return text


def _stop_sequences(stop_sequences: Sequence[str]) -> tuple[str, ...]:
    if len(stop_sequences) > MAX_STOP_SEQUENCES:
        _refuse(f"{len(stop_sequences)} are more than {MAX_STOP_SEQUENCES}", "stop_sequences")
    for index, stop in enumerate(stop_sequences):
        if not 1 <= len(stop.encode()) <= MAX_STOP_SEQUENCE_BYTES:
            _refuse(f"a stop sequence has from 1 to {MAX_STOP_SEQUENCE_BYTES} bytes", f"stop_sequences[{index}]")
    return tuple(stop_sequences)


def _refuse(message: str, parameter: str) -> NoReturn:
    raise InvalidInputError(message, field=f"params.{parameter}")
