"""The engine on transformers."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from rlaif.core.conversation import Message
from rlaif.core.errors import InvalidInputError, UnavailableError
from rlaif.engine.hf.choices import ChoiceScorer, packing_error
from rlaif.engine.hf.decode import Decoder
from rlaif.engine.hf.forward import ModelRunner
from rlaif.engine.hf.loading import LoadedModel, copy_weights, load_causal_model, load_weights, resolve_dtype
from rlaif.engine.hf.worker import Worker
from rlaif.engine.protocol import (
    Capabilities,
    ChoiceLogprobs,
    ChoiceRequest,
    Engine,
    EngineUsage,
    GenerateRequest,
    Generation,
    ModelIdentity,
    OnGeneration,
    TokenIds,
)
from rlaif.engine.settings import Attention, Dtype
from rlaif.runtime.artifacts import folder_digest
from rlaif.runtime.logging import EventLogger

_logger = EventLogger(__name__)

_PACKING_TOLERANCE = 1e-3


@dataclass(frozen=True)
class _Options:
    device: str
    dtype: Dtype
    attention: Attention
    max_batch_tokens: int
    max_cache_tokens: int


class HfEngine:
    """A causal language model on transformers. Calls run in order of arrival, each as one batch."""

    def __init__(self, worker: Worker, loaded: LoadedModel, identity: ModelIdentity, options: _Options) -> None:
        self._worker, self._loaded, self._identity, self._options = worker, loaded, identity, options
        self._closed = False
        self._running = 0
        self._assemble(loaded.model, packed=self._packing_works(loaded.model))

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
        context_length: int | None = None,
    ) -> HfEngine:
        """The engine with a model folder or hub id loaded; blocks until it is. `num_threads` 0 is torch's choice."""
        dtype = resolve_dtype(dtype, device=device)
        options = _Options(device, dtype, attention, max_batch_tokens, max_cache_tokens)
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
        return self._loaded.context_length

    @property
    def capabilities(self) -> Capabilities:
        """What may be asked of it."""
        return Capabilities(
            choice_logprobs=True, constraints=False, loads_weights=True, loads_adapters=False, repeatable=True
        )

    @property
    def usage(self) -> EngineUsage:
        """How busy it is."""
        return EngineUsage(running_completions=self._running, waiting_completions=0)

    @property
    def packs_suffixes(self) -> bool:
        """Whether suffixes share their prefix's computation; else each is computed whole."""
        return self._scorer.packed

    def encode_chat(self, messages: Sequence[Message]) -> TokenIds:
        """Chat-template ids of a conversation, generation prompt included; content never yields control tokens."""
        return self._loaded.codec.encode_chat(messages)

    def encode_judge_prompt(self, context: str, question: str) -> tuple[TokenIds, TokenIds]:
        """(prefix, suffix) ids of one user turn whose context and question are tokenised apart."""
        return self._loaded.codec.encode_judge_prompt(context, question)

    def encode_choices(self, labels: Sequence[str]) -> tuple[TokenIds, ...]:
        """Ids of each answer label as it would follow the generation prompt."""
        return self._loaded.codec.encode_choices(labels)

    async def generate(
        self, requests: Sequence[GenerateRequest], *, on_generation: OnGeneration | None = None
    ) -> list[list[Generation]]:
        """Completions of each request, as one batch; `on_generation` hears of each on the event loop as it finishes."""
        self._check_open()
        self._decoder.check(requests)
        loop = asyncio.get_running_loop()

        def tell(request: int, completion: int, generation: Generation) -> None:
            assert on_generation is not None
            loop.call_soon_threadsafe(on_generation, request, completion, generation)

        def work(cancelled: threading.Event) -> list[list[Generation]]:
            return self._decoder.generate(
                requests, cancelled=cancelled, on_generation=tell if on_generation is not None else None
            )

        num_completions = sum(request.num_completions for request in requests)
        self._running += num_completions
        try:
            return await self._worker.run(work)
        finally:
            self._running -= num_completions

    async def choice_logprobs(self, requests: Sequence[ChoiceRequest]) -> list[ChoiceLogprobs]:
        """Log-probabilities of the choices by prefill alone, as one batch; no decoding."""
        self._check_open()
        self._scorer.check(requests)
        return await self._worker.run(lambda cancelled: self._scorer.score(requests, cancelled=cancelled))

    async def load(self, identity: ModelIdentity) -> None:
        """Swaps to other weights of the same architecture; calls that came before finish on the old ones."""
        self._check_open()
        await self._worker.run(lambda _: self._swap(identity))

    async def check_health(self) -> None:
        """Returns when the engine works."""
        self._check_open()

    async def close(self) -> None:
        """Frees the model; calls in flight finish first."""
        self._closed = True
        await asyncio.to_thread(self._worker.close)

    def _check_open(self) -> None:
        if self._closed:
            raise UnavailableError("the engine is closed")

    def _swap(self, identity: ModelIdentity) -> None:
        folder = Path(identity.uri.removeprefix("file://"))
        if not copy_weights(self._loaded.model, folder):
            model = self._load_same_architecture(folder)
            self._loaded = replace(self._loaded, model=model)
            self._assemble(model, packed=self._scorer.packed)
        self._identity = identity

    def _load_same_architecture(self, folder: Path) -> Any:
        options = self._options
        model = load_weights(folder, device=options.device, dtype=options.dtype, attention=options.attention)
        shapes = {name: tensor.shape for name, tensor in self._loaded.model.state_dict().items()}
        if {name: tensor.shape for name, tensor in model.state_dict().items()} != shapes:
            raise InvalidInputError(f"{folder} has another architecture than the model being served", field="model")
        return model

    def _assemble(self, model: Any, *, packed: bool) -> None:
        loaded, options = self._loaded, self._options
        runner = self._runner(model)
        self._decoder = Decoder(runner, loaded.codec, loaded.stop_ids, self.context_length, options.max_cache_tokens)
        self._scorer = ChoiceScorer(
            runner, self.context_length, loaded.codec.end_of_turn, options.max_batch_tokens, packed
        )

    def _runner(self, model: Any, *, exact: bool = False) -> ModelRunner:
        autocast = self._options.dtype == "bfloat16_autocast" and not exact
        return ModelRunner(model, autocast, pad_id=next(iter(sorted(self._loaded.stop_ids)), 0))

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


_: type[Engine] = HfEngine
