"""Typed client of the sampler: plain values in, frozen values out, core errors when it fails."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Literal

from rlaif.client.channel import open_channel
from rlaif.client.judge_messages import conversation_messages
from rlaif.core.conversation import Conversation, Message
from rlaif.core.errors import RlaifError
from rlaif.runtime.settings import ClientSettings
from rlaif.v1 import sampler_service_pb2 as pb
from rlaif.v1 import sampler_service_pb2_grpc

StopReasonName = Literal["end_of_turn", "stop_sequence", "max_tokens"]

_STOP_REASONS: dict[int, StopReasonName] = {
    pb.STOP_REASON_END_OF_TURN: "end_of_turn",
    pb.STOP_REASON_STOP_SEQUENCE: "stop_sequence",
    pb.STOP_REASON_MAX_TOKENS: "max_tokens",
}


@dataclass(frozen=True)
class SampledCompletion:
    """One completion. `logprobs` are natural, at the sampling temperature before top-p, one a token."""

    text: str
    token_ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    stop_reason: StopReasonName
    policy_version: int


@dataclass(frozen=True)
class TextConstraint:
    """What a completion's text must be; exactly one is set: one of the choices, a regular expression, a JSON schema."""

    choices: tuple[str, ...] = ()
    regex: str = ""
    json_schema: str = ""


@dataclass(frozen=True)
class SampledBatch:
    """`completions[p][c]` is completion c of prompt p; `prompt_token_ids[p]` what the policy saw of the prompt."""

    prompt_token_ids: tuple[tuple[int, ...], ...]
    completions: tuple[tuple[SampledCompletion, ...], ...]


@dataclass(frozen=True)
class PolicyState:
    """A policy as one replica serves it; current when `version` equals `desired_version`."""

    name: str
    version: int
    digest: str
    uri: str
    desired_version: int
    context_length: int


class SamplerClient:
    """A sampler service. Safe to use from several threads; close it, or use it as a context manager."""

    def __init__(self, settings: ClientSettings) -> None:
        self._channel = open_channel(settings)
        self._stub = sampler_service_pb2_grpc.SamplerServiceStub(self._channel)

    def __enter__(self) -> SamplerClient:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection."""
        self._channel.close()

    def sample(
        self,
        policy: str,
        prompts: Sequence[Conversation | Sequence[int]],
        *,
        num_completions: int,
        max_tokens: int,
        temperature: float = 1.0,
        top_p: float = 1.0,
        stop_sequences: Sequence[str] = (),
        seed: int,
        min_policy_version: int = 0,
        priority: int = 0,
        constraint: TextConstraint | None = None,
        timeout_seconds: float | None = None,
    ) -> SampledBatch:
        """Completions of 1 to 1024 prompts, each a conversation or its token ids.

        The same call gives the same completions again with the same weights and seed, to the last bit where the service
        runs each request as a batch of its own. PreconditionError when the replica serves a version older than
        `min_policy_version`.
        """
        request = pb.SampleCompletionsRequest(
            policy=policy,
            prompts=[_prompt(prompt) for prompt in prompts],
            params=pb.SamplingParams(
                num_completions=num_completions,
                max_tokens=max_tokens,
                temperature=temperature,
                top_p=top_p,
                stop_sequences=stop_sequences,
                seed=seed,
                priority=priority,
                constraint=_constraint(constraint) if constraint else None,
            ),
            min_policy_version=min_policy_version,
        )
        response = self._stub.SampleCompletions(request, timeout=timeout_seconds)
        return _batch(response, num_prompts=len(prompts), num_completions=num_completions)

    def get_policy(self, name: str) -> PolicyState:
        """The policy as this replica serves it."""
        return _state(self._stub.GetPolicy(pb.GetPolicyRequest(name=name)).policy)

    def load_policy(self, name: str, *, min_version: int = 0, timeout_seconds: float | None = None) -> PolicyState:
        """Has the replica look at what is published now, and waits until it serves `min_version` or a later one."""
        request = pb.LoadPolicyRequest(name=name, min_version=min_version)
        return _state(self._stub.LoadPolicy(request, timeout=timeout_seconds).policy)


def _prompt(prompt: Conversation | Sequence[int]) -> pb.SamplePrompt:
    messages = tuple(turn for turn in prompt if isinstance(turn, Message))
    if messages:
        return pb.SamplePrompt(messages=conversation_messages(messages))
    return pb.SamplePrompt(token_ids=[token for token in prompt if isinstance(token, int)])


def _constraint(constraint: TextConstraint) -> pb.Constraint:
    if constraint.choices:
        return pb.Constraint(choices=pb.Choices(texts=constraint.choices))
    if constraint.regex:
        return pb.Constraint(regex=constraint.regex)
    return pb.Constraint(json_schema=constraint.json_schema)


def _batch(response: pb.SampleCompletionsResponse, *, num_prompts: int, num_completions: int) -> SampledBatch:
    expected = [(prompt, index) for prompt in range(num_prompts) for index in range(num_completions)]
    if [(completion.prompt_index, completion.index) for completion in response.completions] != expected:
        raise RlaifError(
            f"the sampler answered {len(response.completions)} completions in another order than asked for",
            reason="MALFORMED_RESPONSE",
        )
    completions = [_completion(completion) for completion in response.completions]
    return SampledBatch(
        prompt_token_ids=tuple(tuple(prompt.token_ids) for prompt in response.prompt_tokens),
        completions=tuple(
            tuple(completions[start : start + num_completions])
            for start in range(0, num_prompts * num_completions, num_completions)
        ),
    )


def _completion(completion: pb.Completion) -> SampledCompletion:
    return SampledCompletion(
        text=completion.text,
        token_ids=tuple(completion.token_ids),
        logprobs=tuple(completion.logprobs),
        stop_reason=_STOP_REASONS[completion.stop_reason],
        policy_version=completion.provenance.model.version,
    )


def _state(policy: pb.Policy) -> PolicyState:
    return PolicyState(
        name=policy.name,
        version=policy.model.version,
        digest=policy.model.digest,
        uri=policy.model.uri,
        desired_version=policy.desired_version,
        context_length=policy.context_length,
    )
