"""The engine that runs reward models, and the queue in front of it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from rlaif.reward.metrics import RewardMetrics
from rlaif.reward.settings import RewardSettings
from rlaif.runtime.batching import Batcher

if TYPE_CHECKING:
    from rlaif.engine.reward_model import EncodedInput, RewardModelEngine


@dataclass(frozen=True)
class Running:
    """An open engine and its queue."""

    engine: RewardModelEngine
    batcher: Batcher[EncodedInput, tuple[float, ...]]

    async def close(self) -> None:
        """Ends the work that was accepted, then the engine's threads."""
        await self.batcher.close()
        await asyncio.to_thread(self.engine.close)


def open_running(settings: RewardSettings, *, metrics: RewardMetrics) -> Running:
    """Opens the engine, and with it torch; no model is loaded yet."""
    from rlaif.engine.reward_model import RewardModelEngine, RewardModelOptions

    options = settings.engine
    engine = RewardModelEngine(
        RewardModelOptions(device=options.device, dtype=options.dtype, max_batch_tokens=options.max_batch_tokens),
        num_threads=options.num_threads,
    )
    batcher = _batcher(engine, settings, metrics)
    metrics.queue_tokens.set_function(lambda: batcher.size_queued)
    metrics.queue_limit.set(settings.queue.max_queue_tokens)
    return Running(engine, batcher)


def _batcher(
    engine: RewardModelEngine, settings: RewardSettings, metrics: RewardMetrics
) -> Batcher[EncodedInput, tuple[float, ...]]:
    queue, mix = settings.queue, settings.mix_requests

    async def execute(inputs: Sequence[EncodedInput]) -> Sequence[tuple[float, ...]]:
        start = time.perf_counter()
        values = await engine.score(inputs, repeatable=not mix)
        metrics.batch_seconds.observe(time.perf_counter() - start)
        metrics.batch_inputs.observe(len(inputs))
        metrics.batch_tokens.observe(sum(each.num_tokens for each in inputs))
        return values

    return Batcher(
        execute,
        mix=mix,
        max_batch_size=queue.max_batch_tokens,
        max_delay_seconds=queue.max_delay_milliseconds / 1000,
        max_queue_size=queue.max_queue_tokens,
        # A request that is a batch of its own is never cut: its floats are those of the whole.
        max_turn_size=queue.max_batch_tokens if mix else None,
        size_of=lambda encoded: encoded.num_tokens,
        unit="tokens",
        on_wait=metrics.queue_wait_seconds.observe,
    )
