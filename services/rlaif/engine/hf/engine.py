"""The engine on transformers."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from rlaif.core.conversation import Message
from rlaif.core.errors import CorruptionError, InvalidInputError, UnavailableError, UnsupportedError
from rlaif.engine.hf.adapters import AdaptedModel, is_adapter, plain_state, read_adapter
from rlaif.engine.hf.cache import takes_newcomers
from rlaif.engine.hf.choices import ChoiceScorer, packing_error
from rlaif.engine.hf.constraints import Guide, Guides
from rlaif.engine.hf.forward import ModelRunner, positions_of
from rlaif.engine.hf.loading import LoadedModel, copy_weights, load_causal_model, load_weights, resolve_dtype
from rlaif.engine.hf.rows import RowRules
from rlaif.engine.hf.scheduler import BatchLimits, DecodeScheduler
from rlaif.engine.hf.worker import CancelledWorkError, Worker
from rlaif.engine.protocol import (
    ENGINE_LOST,
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
from rlaif.engine.settings import Attention, Dtype
from rlaif.runtime.artifacts import folder_digest
from rlaif.runtime.logging import EventLogger
from rlaif.runtime.store import is_remote, local_folder

_logger = EventLogger(__name__)

_PACKING_TOLERANCE = 1e-3


@dataclass(frozen=True)
class _Options:
    device: str
    dtype: Dtype
    attention: Attention
    max_batch_tokens: int
    max_cache_tokens: int
    continuous_batching: bool


class HfEngine:
    """A causal language model on transformers.

    Calls run in order of arrival, each as one batch; with continuous batching they join the running batch instead.
    """

    def __init__(self, worker: Worker, loaded: LoadedModel, identity: ModelIdentity, options: _Options) -> None:
        self._worker, self._options = worker, options
        self._codec, self._context_length, self._stop_ids = loaded.codec, loaded.context_length, loaded.stop_ids
        self._identity = self._base = identity
        self._folder, self._on_base = loaded.folder, True
        self._adapted = AdaptedModel(loaded.model)
        self._closed = False
        self._work = EngineWork()
        runner = self._runner(loaded.model)
        vocabulary_size = loaded.model.get_input_embeddings().weight.shape[0]
        self._guides = Guides(loaded.codec.tokenizer, vocabulary_size=vocabulary_size, stop_ids=loaded.stop_ids)
        self._scheduler = DecodeScheduler(
            RowRules(loaded.codec, loaded.stop_ids, self.context_length, vocabulary_size),
            runner,
            BatchLimits(options.max_batch_tokens, options.max_cache_tokens, joins=options.continuous_batching),
            takes_newcomers=_takes_newcomers(runner),
            work=self._work,
        )
        self._scorer = self._make_scorer(runner, packed=self._packing_works(loaded.model))
        worker.attach(self._scheduler)

    @classmethod
    def load_model(
        cls,
        uri: str,
        *,
        version: int = 0,
        device: str = "cpu",
        dtype: Dtype = "float32",
        attention: Attention = "auto",
        num_threads: int = 0,
        max_batch_tokens: int = 2048,
        max_cache_tokens: int = 65536,
        continuous_batching: bool = False,
        context_length: int | None = None,
    ) -> HfEngine:
        """The engine with a model folder or hub id loaded; blocks until it is. `num_threads` 0 is torch's choice."""
        dtype = resolve_dtype(dtype, device=device)
        options = _Options(device, dtype, attention, max_batch_tokens, max_cache_tokens, continuous_batching)
        worker = Worker(num_threads=num_threads)

        def load() -> HfEngine:
            loaded = load_causal_model(
                uri, device=device, dtype=dtype, attention=attention, context_length=context_length
            )
            identity = ModelIdentity(uri=uri, digest=folder_digest(loaded.folder), version=version)
            return cls(worker, loaded, identity, options)

        try:
            return worker.run_blocking(load)
        except BaseException:
            worker.close()
            raise

    @property
    def identity(self) -> ModelIdentity:
        """Weights now being served."""
        return self._identity

    @property
    def context_length(self) -> int:
        """Longest prompt plus completion, tokens."""
        return self._context_length

    @property
    def capabilities(self) -> Capabilities:
        """What may be asked of it."""
        return Capabilities(
            choice_logprobs=True,
            constraints=True,
            loads_weights=True,
            loads_adapters=True,
            repeatable=True,
        )

    @property
    def usage(self) -> EngineUsage:
        """How busy it is."""
        return self._scheduler.usage()

    @property
    def work(self) -> EngineWork:
        """What it has done so far."""
        return self._work

    @property
    def num_gpus(self) -> int:
        """GPUs that it computes on."""
        return int(torch.device(self._options.device).type != "cpu")

    @property
    def packs_suffixes(self) -> bool:
        """Whether suffixes share their prefix's computation; else each is computed whole."""
        return self._scorer.packed

    def encode_chat(self, messages: Sequence[Message]) -> TokenIds:
        """Chat-template ids of a conversation, generation prompt included; content never yields control tokens."""
        return self._codec.encode_chat(messages)

    def encode_judge_prompt(self, context: str, question: str) -> tuple[TokenIds, TokenIds]:
        """(prefix, suffix) ids of one user turn whose context and question are tokenised apart."""
        return self._codec.encode_judge_prompt(context, question)

    def encode_choices(self, labels: Sequence[str]) -> tuple[TokenIds, ...]:
        """Ids of each answer label as it would follow the generation prompt."""
        return self._codec.encode_choices(labels)

    async def generate(
        self, requests: Sequence[GenerateRequest], *, on_generation: OnGeneration | None = None
    ) -> list[list[Generation]]:
        """Completions of each request; `on_generation` hears of each on the event loop as it finishes."""
        self._check_open()
        self._scheduler.check(requests)
        loop = asyncio.get_running_loop()

        def tell(request: int, completion: int, generation: Generation) -> None:
            assert on_generation is not None
            loop.call_soon_threadsafe(on_generation, request, completion, generation)

        guides: list[Guide | None] = [None] * len(requests)
        if any(request.constraint is not None for request in requests):
            guides = await asyncio.to_thread(self._make_guides, requests)
        job = self._scheduler.submit(requests, guides, tell if on_generation is not None else None)
        self._worker.wake()
        try:
            return await asyncio.wrap_future(job.future)
        except asyncio.CancelledError:
            self._scheduler.cancel(job)
            self._worker.wake()
            raise

    async def choice_logprobs(self, requests: Sequence[ChoiceRequest]) -> list[ChoiceLogprobs]:
        """Log-probabilities of the choices by prefill alone, as one batch; no decoding."""
        self._check_open()
        self._scorer.check(requests)
        return await self._worker.run(lambda cancelled: self._scorer.score(requests, cancelled=cancelled))

    async def load(self, identity: ModelIdentity) -> None:
        """Swaps to other weights of the same architecture, or to a LoRA adapter where the folder holds one.

        Calls that came before finish on the old ones.
        """
        self._check_open()
        scheduler, cancelled = self._scheduler, threading.Event()
        epoch = scheduler.close_epoch()

        def swap() -> None:
            try:
                if cancelled.is_set():
                    raise CancelledWorkError
                self._swap(identity)
            finally:
                scheduler.open_epoch(epoch + 1)

        # Shielded, because its turn must come for the calls after it to be let in.
        swapping = asyncio.wrap_future(self._worker.submit(swap, ready=lambda: scheduler.drained(epoch)))
        try:
            await asyncio.shield(swapping)
        except asyncio.CancelledError:
            cancelled.set()
            swapping.add_done_callback(lambda done: done.cancelled() or done.exception())
            raise

    async def check_health(self) -> None:
        """Returns when the engine works."""
        self._check_open()
        if not self._worker.alive:
            raise UnavailableError("the engine's thread has died; start the service again", reason=ENGINE_LOST)

    async def close(self) -> None:
        """Frees the model; calls in flight finish first."""
        self._closed = True
        await asyncio.to_thread(self._worker.close)

    def _check_open(self) -> None:
        if self._closed:
            raise UnavailableError("the engine is closed")

    def _swap(self, identity: ModelIdentity) -> None:
        folder = local_folder(identity.uri, digest=identity.digest)
        if is_adapter(folder):
            self._put_adapter(folder)
        elif copy_weights(self._adapted.model, folder):
            self._adapted.remove()
            self._on_base = identity.digest == self._base.digest
        else:
            self._adopt(AdaptedModel(self._load_same_architecture(folder)))
            self._on_base = identity.digest == self._base.digest
        self._identity = identity

    def _put_adapter(self, folder: Path) -> None:
        adapter = read_adapter(folder, base_digest=self._base.digest)
        if self._on_base:
            self._adapted.put(adapter)
            return
        base = local_folder(self._base.uri, digest=self._base.digest) if is_remote(self._base.uri) else self._folder
        if folder_digest(base) != self._base.digest:
            raise CorruptionError(f"{base} no longer holds the weights that the engine was opened with")
        adapted = AdaptedModel(self._load_same_architecture(base))
        adapted.put(adapter)
        self._adopt(adapted)
        self._on_base = True

    def _adopt(self, adapted: AdaptedModel) -> None:
        runner = self._runner(adapted.model)
        self._scheduler.replace_runner(runner)
        self._scorer = self._make_scorer(runner, packed=self._scorer.packed)
        self._adapted = adapted

    def _load_same_architecture(self, folder: Path) -> Any:
        options = self._options
        model = load_weights(folder, device=options.device, dtype=options.dtype, attention=options.attention)
        shapes = {name: tensor.shape for name, tensor in plain_state(self._adapted.model).items()}
        if {name: tensor.shape for name, tensor in model.state_dict().items()} != shapes:
            raise InvalidInputError(f"{folder} has another architecture than the model being served", field="model")
        return model

    def _make_guides(self, requests: Sequence[GenerateRequest]) -> list[Guide | None]:
        return [self._guides.make(request.constraint) if request.constraint else None for request in requests]

    def _make_scorer(self, runner: ModelRunner, *, packed: bool) -> ChoiceScorer:
        return ChoiceScorer(
            runner, self.context_length, self._codec.end_of_turn, self._options.max_batch_tokens, packed, self._work
        )

    def _runner(self, model: Any, *, exact: bool = False) -> ModelRunner:
        autocast = self._options.dtype == "bfloat16_autocast" and not exact
        return ModelRunner(model, autocast, pad_id=next(iter(sorted(self._stop_ids)), 0))

    def _packing_works(self, model: Any) -> bool:
        """Whether this architecture honours a tree-shaped mask: some ignore it, and some scale their logits later."""
        try:
            error, leak = packing_error(
                self._runner(model, exact=True),
                vocabulary_size=model.get_input_embeddings().weight.shape[0],
                context_length=self.context_length,
            )
        except (RuntimeError, ValueError, TypeError, AttributeError, IndexError) as failure:
            _logger.warning("Prefix sharing is off: the model takes no ready-made mask.", cause=str(failure))
            return False
        tolerance = _PACKING_TOLERANCE
        if model.dtype != torch.float32:
            # Rounding alone exceeds it; then the error must be far from what a leak would do.
            tolerance = max(tolerance, 0.25 * leak)
        if not error <= tolerance:
            _logger.warning("Prefix sharing is off: it changes this model's answers.", error=error, tolerance=tolerance)
            return False
        return True


def _takes_newcomers(runner: ModelRunner) -> bool:
    """Whether the model's cache lets rows join a running batch; sliding windows and recurrent states do not."""
    ids_BT, mask_BT = runner.left_padded([[runner.pad_id] * 2])
    try:
        _, cache = runner.forward(ids_BT, mask_BT, positions_of(mask_BT), use_cache=True)
    except UnsupportedError:
        return False
    return takes_newcomers(cache)


_: type[Engine] = HfEngine
