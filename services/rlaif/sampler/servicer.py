"""rlaif.v1.SamplerService: reads requests, has them sampled, writes responses."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable
from dataclasses import dataclass
from typing import Any

from rlaif.core.errors import InvalidInputError, NotFoundError, PreconditionError, UnsupportedError
from rlaif.engine.protocol import Engine, Generation, ModelIdentity, StopReason, TokenIds
from rlaif.runtime.context import current_trace_id
from rlaif.runtime.messages import TextLimits
from rlaif.runtime.revision import service_revision
from rlaif.sampler.metrics import SamplerMetrics
from rlaif.sampler.policy import PolicySync
from rlaif.sampler.queue import SamplingQueue
from rlaif.sampler.requests import (
    SampleRequest,
    SamplingPlan,
    check_lengths,
    encode_prompts,
    naming_fields,
    read_plan,
    read_prompts,
)
from rlaif.sampler.settings import LimitSettings
from rlaif.v1 import provenance_pb2, sampler_service_pb2_grpc
from rlaif.v1 import sampler_service_pb2 as pb

_STOP_REASONS: dict[StopReason, pb.StopReason.ValueType] = {
    "end_of_turn": pb.STOP_REASON_END_OF_TURN,
    "stop_sequence": pb.STOP_REASON_STOP_SEQUENCE,
    "max_tokens": pb.STOP_REASON_MAX_TOKENS,
}


@dataclass(frozen=True)
class SamplerParts:
    """What the servicer works with once the model is loaded."""

    engine: Engine
    queue: SamplingQueue
    sync: PolicySync


class SamplerServicer(sampler_service_pb2_grpc.SamplerServiceServicer):
    """The sampler on the wire. `parts` is set before calls are let in."""

    parts: SamplerParts

    def __init__(self, limits: LimitSettings, *, metrics: SamplerMetrics) -> None:
        self._text_limits = TextLimits(max_text_bytes=limits.max_text_bytes, max_turns=limits.max_turns)
        self._max_completions = limits.max_completions
        self._metrics = metrics

    async def SampleCompletions(  # noqa: N802 - named by the contract
        self, request: pb.SampleCompletionsRequest, context: Any
    ) -> pb.SampleCompletionsResponse:
        plan, prompts = await self._read(request)
        with naming_fields(request):
            sampled = await self.parts.queue.sample(
                plan.requests(prompts), check=lambda identity: self._check_version(identity, request)
            )
        provenance = _provenance(sampled.identity, seed=plan.seed)
        self._count(generation for generations in sampled.generations for generation in generations)
        return pb.SampleCompletionsResponse(
            completions=[
                _completion(prompt_index, index, generation, provenance)
                for prompt_index, generations in enumerate(sampled.generations)
                for index, generation in enumerate(generations)
            ],
            # Opaque ids are no tokens of anything.
            prompt_tokens=[pb.PromptTokens(token_ids=prompt_ids) for prompt_ids in prompts]
            if self.parts.engine.capabilities.token_ids
            else (),
        )

    async def StreamCompletions(  # noqa: N802
        self, request: pb.StreamCompletionsRequest, context: Any
    ) -> AsyncIterator[pb.StreamCompletionsResponse]:
        plan, prompts = await self._read(request)
        finished: asyncio.Queue[tuple[ModelIdentity, int, int, Generation] | None] = asyncio.Queue()

        def tell(identity: ModelIdentity, prompt_index: int, index: int, generation: Generation) -> None:
            finished.put_nowait((identity, prompt_index, index, generation))

        sampling = asyncio.create_task(
            self.parts.queue.sample(
                plan.requests(prompts), check=lambda identity: self._check_version(identity, request), on_sampled=tell
            )
        )
        sampling.add_done_callback(lambda _: finished.put_nowait(None))
        try:
            while (told := await finished.get()) is not None:
                identity, prompt_index, index, generation = told
                completion = _completion(prompt_index, index, generation, _provenance(identity, seed=plan.seed))
                yield pb.StreamCompletionsResponse(completion=completion)
            with naming_fields(request):
                sampled = await sampling
        finally:
            sampling.cancel()
        self._count(generation for generations in sampled.generations for generation in generations)

    async def GetPolicy(  # noqa: N802
        self, request: pb.GetPolicyRequest, context: Any
    ) -> pb.GetPolicyResponse:
        self._check_name(request.name, field="name")
        return pb.GetPolicyResponse(policy=self._policy())

    async def LoadPolicy(  # noqa: N802
        self, request: pb.LoadPolicyRequest, context: Any
    ) -> pb.LoadPolicyResponse:
        self._check_name(request.name, field="name")
        await self.parts.sync.wait_for(request.min_version)
        return pb.LoadPolicyResponse(policy=self._policy())

    async def _read(self, request: SampleRequest) -> tuple[SamplingPlan, list[TokenIds]]:
        engine = self.parts.engine
        self._check_name(request.policy, field="policy")
        prompts = read_prompts(request, limits=self._text_limits)
        plan = read_plan(request, context_length=engine.context_length, max_completions=self._max_completions)
        self._check_capabilities(request, plan)
        self._check_version(self.parts.sync.identity, request)
        encoded = await asyncio.to_thread(encode_prompts, prompts, engine=engine)
        check_lengths(request, encoded, context_length=engine.context_length)
        return plan, encoded

    def _check_capabilities(self, request: SampleRequest, plan: SamplingPlan) -> None:
        capabilities, engine = self.parts.engine.capabilities, type(self.parts.engine).__name__
        if plan.constraint is not None and not capabilities.constraints:
            raise UnsupportedError(
                f"this sampler's engine, {engine}, cannot hold completions to constraints: leave params.constraint out "
                "or ask a sampler on another engine",
                reason="CONSTRAINTS_NOT_SUPPORTED",
            )
        if any(prompt.token_ids for prompt in request.prompts) and not capabilities.token_ids:
            raise UnsupportedError(
                f"this sampler's engine, {engine}, does not know the model's tokens: send messages, not token_ids",
                reason="TOKEN_IDS_NOT_SUPPORTED",
            )

    def _check_name(self, name: str, *, field: str) -> None:
        if not name:
            raise InvalidInputError("the policy's name is required", field=field)
        if name != self.parts.sync.policy:
            raise NotFoundError(
                f"policy {name!r} is not served here; {self.parts.sync.policy} is",
                reason="POLICY_NOT_FOUND",
                field=field,
                metadata={"resource_type": "policy", "resource_name": name},
            )

    def _check_version(self, identity: ModelIdentity, request: SampleRequest) -> None:
        if identity.version < request.min_policy_version:
            raise PreconditionError(
                f"{request.policy} is served at version {identity.version}, {request.min_policy_version} is needed",
                reason="POLICY_VERSION_BEHIND",
                field="min_policy_version",
                metadata={
                    "policy": request.policy,
                    "served_version": str(identity.version),
                    "desired_version": str(self.parts.sync.desired_version),
                    "min_policy_version": str(request.min_policy_version),
                },
            )

    def _policy(self) -> pb.Policy:
        sync = self.parts.sync
        policy = pb.Policy(
            name=sync.policy,
            model=_model(sync.identity),
            desired_version=sync.desired_version,
            context_length=self.parts.engine.context_length,
        )
        policy.load_time.FromDatetime(sync.load_time)
        return policy

    def _count(self, generations: Iterable[Generation]) -> None:
        for generation in generations:
            self._metrics.completion_tokens.inc(len(generation.token_ids))
            self._metrics.completions.labels(stop_reason=generation.stop_reason).inc()


def _model(identity: ModelIdentity) -> provenance_pb2.ModelRef:
    return provenance_pb2.ModelRef(uri=identity.uri, digest=identity.digest, version=identity.version)


def _provenance(identity: ModelIdentity, *, seed: int) -> provenance_pb2.Provenance:
    provenance = provenance_pb2.Provenance(
        model=_model(identity), seed=seed, service_revision=service_revision(), trace_id=current_trace_id()
    )
    provenance.create_time.GetCurrentTime()
    return provenance


def _completion(
    prompt_index: int, index: int, generation: Generation, provenance: provenance_pb2.Provenance
) -> pb.Completion:
    return pb.Completion(
        prompt_index=prompt_index,
        index=index,
        text=generation.text,
        token_ids=generation.token_ids,
        logprobs=generation.logprobs,
        stop_reason=_STOP_REASONS[generation.stop_reason],
        provenance=provenance,
    )
