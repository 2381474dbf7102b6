"""What vLLM's scheduler last said about itself."""

from __future__ import annotations

from typing import Any

from vllm.v1.metrics.loggers import StatLoggerBase

from rlaif.engine.protocol import EngineWork


class SchedulerUsage:
    """The scheduler's last figures; `listener` is what vLLM calls with them."""

    def __init__(self) -> None:
        self.waiting = 0
        self.cache_usage = 0.0
        self.work = EngineWork()

    def listener(self, vllm_config: Any, engine_index: int = 0) -> StatLoggerBase:
        """A stat logger of one vLLM engine that writes here."""
        return _Listener(vllm_config, engine_index, self)


class _Listener(StatLoggerBase):
    def __init__(self, vllm_config: Any, engine_index: int, usage: SchedulerUsage) -> None:
        del vllm_config, engine_index
        self._usage = usage

    def record(
        self, scheduler_stats: Any, iteration_stats: Any, mm_cache_stats: Any = None, engine_idx: int = 0
    ) -> None:
        """Takes the figures of one step."""
        del mm_cache_stats, engine_idx
        if iteration_stats is not None:
            prompts = iteration_stats.prompt_token_stats
            self._usage.work.prompt_tokens += prompts.total
            self._usage.work.computed_prompt_tokens += prompts.computed
        if scheduler_stats is not None:
            self._usage.waiting = scheduler_stats.num_waiting_reqs
            self._usage.cache_usage = float(scheduler_stats.kv_cache_usage)

    def log_engine_initialized(self) -> None:
        """Nothing to say."""
