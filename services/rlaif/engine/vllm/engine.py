"""The engine on vLLM."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, TypeVar

from vllm import SamplingParams
from vllm.inputs.engine import tokens_input
from vllm.lora.request import LoRARequest
from vllm.sampling_params import MAX_LOGPROB_TOKEN_IDS, RequestOutputKind, StructuredOutputsParams
from vllm.v1.engine.async_llm import AsyncLLM

from rlaif.core.conversation import Message
from rlaif.core.errors import InvalidInputError, UnavailableError, UnsupportedError
from rlaif.engine.checks import check_choices, check_generate
from rlaif.engine.hf.adapters import is_adapter
from rlaif.engine.hf.loading import find_model_folder
from rlaif.engine.protocol import (
    Capabilities,
    ChoiceLogprobs,
    ChoiceRequest,
    Constraint,
    Engine,
    EngineUsage,
    EngineWork,
    GenerateRequest,
    Generation,
    ModelIdentity,
    OnGeneration,
    StopReason,
    TokenIds,
)
from rlaif.engine.settings import EngineSettings
from rlaif.engine.tree import TokenTree, build_tree
from rlaif.engine.vllm.arguments import check_runs_on_cpu, engine_arguments
from rlaif.engine.vllm.errors import first_line, start_failure, typed_errors
from rlaif.engine.vllm.folders import (
    DescribedModel,
    check_adapter,
    check_same_architecture,
    describe_model,
)
from rlaif.engine.vllm.gate import Gate
from rlaif.engine.vllm.row_sampler import SampledRow
from rlaif.engine.vllm.usage import SchedulerUsage
from rlaif.runtime.store import local_folder

Result = TypeVar("Result")


class VllmEngine:
    """A causal language model on vLLM. Calls overlap and share batches; a swap of weights runs between them."""

    def __init__(
        self,
        llm: AsyncLLM,
        model: DescribedModel,
        identity: ModelIdentity,
        settings: EngineSettings,
        scheduler: SchedulerUsage,
        *,
        num_gpus: int,
    ) -> None:
        self._num_gpus = num_gpus
        self._llm, self._model, self._settings, self._scheduler = llm, model, settings, scheduler
        self._identity = identity
        # Where the weights under the adapter, if any, were read from.
        self._weights_folder = model.folder
        self._adapter: LoRARequest | None = None
        self._gate = Gate()
        self._request_numbers, self._adapter_numbers = itertools.count(), itertools.count(1)
        self._in_flight = 0
        self._closed = False

    @classmethod
    async def open(cls, uri: str, *, version: int, settings: EngineSettings, on_cpu: bool, eager: bool) -> VllmEngine:
        """The engine with a model folder or hub id loaded, for the running event loop."""
        model = await asyncio.to_thread(describe_model, uri, context_length=settings.context_length)
        identity = ModelIdentity(uri=uri, digest=model.digest, version=version)
        scheduler = SchedulerUsage()
        if on_cpu:
            check_runs_on_cpu(model)
        arguments = engine_arguments(settings, model, on_cpu=on_cpu, eager=eager)
        try:
            llm = await asyncio.to_thread(AsyncLLM.from_engine_args, arguments, stat_loggers=[scheduler.listener])
        except Exception as error:
            raise InvalidInputError(
                f"{model.folder}: vLLM cannot run this model with these settings: {start_failure(error)} "
                "(its own words are above in the log)",
                field="model",
            ) from error
        num_gpus = 0 if on_cpu else settings.vllm.tensor_parallel_size
        return cls(llm, model, identity, settings, scheduler, num_gpus=num_gpus)

    @property
    def identity(self) -> ModelIdentity:
        """Weights now being served."""
        return self._identity

    @property
    def context_length(self) -> int:
        """Longest prompt plus completion, tokens."""
        return self._model.context_length

    @property
    def capabilities(self) -> Capabilities:
        """What may be asked of it."""
        return Capabilities(
            choice_logprobs=True,
            constraints=True,
            loads_weights=True,
            loads_adapters=self._settings.vllm.adapters.enabled,
            repeatable=True,
        )

    @property
    def usage(self) -> EngineUsage:
        """How busy it is."""
        waiting = min(self._scheduler.waiting, self._in_flight)
        return EngineUsage(
            running_completions=self._in_flight - waiting,
            waiting_completions=waiting,
            cache_usage=self._scheduler.cache_usage if self._in_flight else 0.0,
        )

    @property
    def work(self) -> EngineWork:
        """What it has done so far, as vLLM's scheduler tells."""
        return self._scheduler.work

    @property
    def num_gpus(self) -> int:
        """GPUs that it computes on."""
        return self._num_gpus

    def encode_chat(self, messages: Sequence[Message]) -> TokenIds:
        """Chat-template ids of a conversation, generation prompt included; content never yields control tokens."""
        return self._model.codec.encode_chat(messages)

    def encode_judge_prompt(self, context: str, question: str) -> tuple[TokenIds, TokenIds]:
        """(prefix, suffix) ids of one user turn whose context and question are tokenised apart."""
        return self._model.codec.encode_judge_prompt(context, question)

    def encode_choices(self, labels: Sequence[str]) -> tuple[TokenIds, ...]:
        """Ids of each answer label as it would follow the generation prompt."""
        return self._model.codec.encode_choices(labels)

    async def generate(
        self, requests: Sequence[GenerateRequest], *, on_generation: OnGeneration | None = None
    ) -> list[list[Generation]]:
        """Completions of each request; `on_generation` hears of each as it finishes."""
        self._check_open()
        vocabulary_size = self._model.config.get_text_config().vocab_size
        check_generate(requests, context_length=self.context_length, vocabulary_size=vocabulary_size)

        async def complete(index: int, completion: int, adapter: LoRARequest | None) -> Generation:
            generation = await self._complete(requests[index], completion, adapter)
            if on_generation is not None:
                on_generation(index, completion, generation)
            return generation

        num_completions = sum(request.num_completions for request in requests)
        async with self._counted(num_completions):
            generations = iter(
                await _all_or_none(
                    complete(index, completion, self._adapter)
                    for index, request in enumerate(requests)
                    for completion in range(request.num_completions)
                )
            )
        return [list(itertools.islice(generations, request.num_completions)) for request in requests]

    async def choice_logprobs(self, requests: Sequence[ChoiceRequest]) -> list[ChoiceLogprobs]:
        """Log-probabilities of the choices by prefill alone; what prompts share is computed once, by prefix caching."""
        self._check_open()
        check_choices(requests, context_length=self.context_length)
        trees = [build_tree(request, terminator=self._model.codec.end_of_turn) for request in requests]
        targets: dict[TokenIds, dict[int, None]] = {}
        for tree in trees:
            for query, prompt in zip(tree.queries, _prompts(tree), strict=True):
                targets.setdefault(prompt, {}).update(dict.fromkeys(query.targets))
        asked = [
            (prompt, chunk) for prompt, ids in targets.items() for chunk in _chunks(tuple(ids), MAX_LOGPROB_TOKEN_IDS)
        ]
        logprobs: dict[TokenIds, dict[int, float]] = {prompt: {} for prompt in targets}
        async with self._counted(len(asked)):
            answers = await _all_or_none(self._score(prompt, ids, self._adapter) for prompt, ids in asked)
        for (prompt, _), answer in zip(asked, answers, strict=True):
            logprobs[prompt] |= answer
        return [_collect(tree, logprobs) for tree in trees]

    async def load(self, identity: ModelIdentity) -> None:
        """Swaps to other weights of the same architecture, or to a LoRA adapter where the folder holds one."""
        self._check_open()
        local = await asyncio.to_thread(local_folder, identity.uri, digest=identity.digest)
        if await asyncio.to_thread(is_adapter, local):
            await self._load_adapter(identity, local)
            return
        folder = await asyncio.to_thread(find_model_folder, identity.uri, digest=identity.digest)
        await asyncio.to_thread(check_same_architecture, folder, self._model)
        async with self._gate.writing():
            await self._reload(folder)
            self._identity, self._adapter = identity, None

    async def check_health(self) -> None:
        """Returns when the engine works."""
        self._check_open()
        with typed_errors():
            await self._llm.check_health()

    async def close(self) -> None:
        """Frees the model; calls in flight fail."""
        if not self._closed:
            self._closed = True
            if self._llm.output_handler is not None:
                # Else it logs the end of its process as a failure.
                self._llm.output_handler.cancel()
            await asyncio.to_thread(self._llm.shutdown)

    def _check_open(self) -> None:
        if self._closed:
            raise UnavailableError("the engine is closed")

    @asynccontextmanager
    async def _counted(self, num_completions: int) -> AsyncIterator[None]:
        """Inside the gate, with vLLM's errors as ours."""
        async with self._gate.reading():
            self._in_flight += num_completions
            try:
                with typed_errors():
                    yield
            finally:
                self._in_flight -= num_completions

    async def _complete(self, request: GenerateRequest, completion: int, adapter: LoRARequest | None) -> Generation:
        max_tokens = min(request.max_tokens, self.context_length - len(request.prompt_ids))
        row = SampledRow(
            seed=request.seed,
            stream=request.stream,
            completion=completion,
            temperature=request.temperature,
            top_p=request.top_p,
            max_tokens=max_tokens,
        )
        parameters = SamplingParams(
            temperature=0.0,
            max_tokens=max_tokens,
            stop=list(request.stop_sequences),
            stop_token_ids=sorted(self._model.stop_ids),
            detokenize=bool(request.stop_sequences),
            logprobs=0,
            structured_outputs=_structured(request.constraint),
            output_kind=RequestOutputKind.FINAL_ONLY,
            extra_args=row.as_arguments(),
        )
        output = await self._ask(request.prompt_ids, parameters, priority=request.priority, adapter=adapter)
        token_ids = tuple(output.token_ids)
        logprobs = tuple(
            float(entry[token].logprob) for token, entry in zip(token_ids, output.logprobs or (), strict=True)
        )
        stop_reason = _stop_reason(output)
        text = self._model.codec.decode(token_ids)
        if stop_reason == "stop_sequence":
            found = [text.find(stop) for stop in request.stop_sequences if stop in text]
            text = text[: min(found)] if found else output.text
        return Generation(text=text, token_ids=token_ids, logprobs=logprobs, stop_reason=stop_reason)

    async def _score(self, prompt: TokenIds, targets: TokenIds, adapter: LoRARequest | None) -> dict[int, float]:
        """Natural log-probabilities of `targets` after the prompt, over the whole vocabulary."""
        parameters = SamplingParams(
            temperature=0.0,
            max_tokens=1,
            detokenize=False,
            logprob_token_ids=list(targets),
            output_kind=RequestOutputKind.FINAL_ONLY,
        )
        output = await self._ask(prompt, parameters, priority=0, adapter=adapter)
        return {token: float(output.logprobs[0][token].logprob) for token in targets}

    async def _ask(
        self, prompt: TokenIds, parameters: SamplingParams, *, priority: int, adapter: LoRARequest | None
    ) -> Any:
        """vLLM's one output for the prompt; cancelling this aborts it there."""
        final: Any = None
        async for output in self._llm.generate(
            tokens_input(list(prompt)),
            parameters,
            f"r{next(self._request_numbers)}",
            priority=priority,
            lora_request=adapter,
        ):
            final = output.outputs[0]
        if final is None or final.finish_reason not in ("stop", "length"):
            raise UnavailableError("vLLM gave the request up before it was done; try again")
        return final

    async def _load_adapter(self, identity: ModelIdentity, folder: Path) -> None:
        adapters = self._settings.vllm.adapters
        if not adapters.enabled:
            raise UnsupportedError(
                f"{folder} is a LoRA adapter; set engine.vllm.adapters.enabled to load such", reason="NO_ADAPTERS"
            )
        await asyncio.to_thread(check_adapter, folder, self._model, max_rank=adapters.max_rank)
        if self._weights_folder != self._model.folder:
            async with self._gate.writing():
                await self._reload(self._model.folder)
                await self._put_adapter(identity, folder)
        else:
            # Completions under way keep the adapter they started with.
            await self._put_adapter(identity, folder)

    async def _put_adapter(self, identity: ModelIdentity, folder: Path) -> None:
        number = next(self._adapter_numbers)
        adapter = LoRARequest(lora_name=f"adapter-{number}", lora_int_id=number, lora_path=str(folder))
        with typed_errors():
            try:
                await self._llm.add_lora(adapter)
            except Exception as error:
                await self._llm.check_health()
                raise InvalidInputError(
                    f"{folder}: vLLM cannot load this adapter: {first_line(error)}", field="model"
                ) from error
        self._identity, self._adapter = identity, adapter

    async def _reload(self, folder: Path) -> None:
        """Puts the folder's weights in place of those there; nobody else is inside the gate."""
        with typed_errors():
            try:
                await self._read_weights(folder)
            except Exception as error:
                await self._llm.check_health()
                await self._read_weights(self._weights_folder)
                raise InvalidInputError(
                    f"{folder}: the weights cannot be loaded: {first_line(error)}", field="model"
                ) from error
        self._weights_folder = folder

    async def _read_weights(self, folder: Path) -> None:
        await self._llm.collective_rpc("read_folder", args=(str(folder),))
        # Keys and values of the old weights would be taken for those of the new.
        await self._llm.reset_prefix_cache(reset_running_requests=True)


async def _all_or_none(awaitables: Any) -> list[Any]:
    """All results in order; on the first error or when cancelled, the others are cancelled before it is raised."""
    tasks: list[asyncio.Task[Any]] = [asyncio.ensure_future(each) for each in awaitables]
    try:
        return await asyncio.gather(*tasks)
    except BaseException:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        raise


def _stop_reason(output: Any) -> StopReason:
    if output.finish_reason == "length":
        return "max_tokens"
    return "stop_sequence" if isinstance(output.stop_reason, str) else "end_of_turn"


def _structured(constraint: Constraint | None) -> StructuredOutputsParams | None:
    if constraint is None:
        return None
    if constraint.choices:
        return StructuredOutputsParams(choice=list(constraint.choices))
    if constraint.regex:
        return StructuredOutputsParams(regex=constraint.regex)
    return StructuredOutputsParams(json=constraint.json_schema)


def _prompts(tree: TokenTree) -> list[TokenIds]:
    """Ids up to the position that each query reads."""
    prompts = []
    for query in tree.queries:
        whole = tree.path(query.segment)
        unread = len(tree.segments[query.segment].ids) - query.offset - 1
        prompts.append(whole[: len(whole) - unread])
    return prompts


def _chunks(ids: TokenIds, size: int) -> list[TokenIds]:
    return [ids[start : start + size] for start in range(0, len(ids), size)]


def _collect(tree: TokenTree, logprobs: dict[TokenIds, dict[int, float]]) -> ChoiceLogprobs:
    read = [
        [logprobs[prompt][target] for target in query.targets]
        for query, prompt in zip(tree.queries, _prompts(tree), strict=True)
    ]
    return ChoiceLogprobs(
        tuple(tuple(sum(read[query][target] for query, target in places) for places in row) for row in tree.cells)
    )


_: type[Engine] = VllmEngine
