"""Opens the engine that settings name; the heavy libraries load here and not before."""

from __future__ import annotations

import asyncio

from rlaif.engine.protocol import Engine
from rlaif.engine.settings import EngineSettings


async def open_engine(settings: EngineSettings, *, model: str, version: int = 0) -> Engine:
    """The engine with `model` (folder, hub id or a server's name for it); InvalidInputError when it cannot be had."""
    if settings.kind == "vllm":
        from rlaif.engine.vllm.opening import open_vllm

        return await open_vllm(settings, model=model, version=version)
    if settings.kind == "openai":
        from rlaif.engine.openai.opening import open_openai

        return await open_openai(settings, model=model, version=version)
    return await asyncio.to_thread(_open_hf, settings, model, version)


def _open_hf(settings: EngineSettings, model: str, version: int) -> Engine:
    from rlaif.engine.hf import HfEngine

    return HfEngine.load_model(
        model,
        version=version,
        device=settings.device,
        dtype=settings.dtype,
        attention=settings.attention,
        num_threads=settings.num_threads,
        max_batch_tokens=settings.max_batch_tokens,
        max_cache_tokens=settings.max_cache_tokens,
        continuous_batching=settings.continuous_batching,
        context_length=settings.context_length,
    )
