"""What the sampler counts."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

from prometheus_client import Counter, Gauge, Histogram

from rlaif.runtime.telemetry import REGISTRY, SECONDS_BUCKETS

_BATCH_BUCKETS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096)


@dataclass(frozen=True)
class SamplerMetrics:
    """Tokens in and out, the queue, the engine's batches and the policy's versions."""

    prompt_tokens: Counter
    computed_prompt_tokens: Counter
    completion_tokens: Counter
    completions: Counter
    queue_completions: Gauge
    queue_limit: Gauge
    queue_wait_seconds: Histogram
    running_completions: Gauge
    cache_usage: Gauge
    engine_gpus: Gauge
    call_completions: Histogram
    engine_seconds: Histogram
    policy_version: Gauge
    desired_policy_version: Gauge
    policy_load_seconds: Histogram
    sync_failures: Counter
    behind_seconds: Gauge
    sync_deadline: Gauge


@cache
def sampler_metrics() -> SamplerMetrics:
    """The sampler's metrics, made once a process."""
    return SamplerMetrics(
        prompt_tokens=Counter(
            "rlaif_sampler_prompt_tokens_total",
            "Tokens of all prompts, each counted for every completion that follows it.",
            registry=REGISTRY,
        ),
        computed_prompt_tokens=Counter(
            "rlaif_sampler_computed_prompt_tokens_total",
            "Prompt tokens that the model ran over; the others were shared with a prompt before.",
            registry=REGISTRY,
        ),
        completion_tokens=Counter(
            "rlaif_sampler_completion_tokens_total", "Tokens sampled in requests answered.", registry=REGISTRY
        ),
        completions=Counter(
            "rlaif_sampler_completions_total", "Completions sampled.", ["stop_reason"], registry=REGISTRY
        ),
        queue_completions=Gauge(
            "rlaif_sampler_queue_completions", "Completions accepted that wait for their turn.", registry=REGISTRY
        ),
        queue_limit=Gauge(
            "rlaif_sampler_queue_limit_completions", "Most completions that may wait.", registry=REGISTRY
        ),
        running_completions=Gauge("rlaif_sampler_running_completions", "Completions being sampled.", registry=REGISTRY),
        cache_usage=Gauge(
            "rlaif_sampler_cache_usage_ratio",
            "Share of the engine's key-value cache in use; NaN unknown.",
            registry=REGISTRY,
        ),
        engine_gpus=Gauge(
            "rlaif_sampler_engine_gpus",
            "GPUs of this replica that the engine computes on; 0 on CPUs.",
            registry=REGISTRY,
        ),
        queue_wait_seconds=Histogram(
            "rlaif_sampler_queue_wait_seconds",
            "Time of a request from its arrival until the engine gets it.",
            buckets=SECONDS_BUCKETS,
            registry=REGISTRY,
        ),
        call_completions=Histogram(
            "rlaif_sampler_call_completions",
            "Completions of one call of the engine.",
            buckets=_BATCH_BUCKETS,
            registry=REGISTRY,
        ),
        engine_seconds=Histogram(
            "rlaif_sampler_engine_seconds",
            "Time of one call of the engine, its wait for a place in the batch included.",
            buckets=SECONDS_BUCKETS,
            registry=REGISTRY,
        ),
        policy_version=Gauge(
            "rlaif_sampler_policy_version", "Policy version served, optimiser steps since the base.", registry=REGISTRY
        ),
        desired_policy_version=Gauge(
            "rlaif_sampler_desired_policy_version", "Policy version published on shared storage.", registry=REGISTRY
        ),
        policy_load_seconds=Histogram(
            "rlaif_sampler_policy_load_seconds",
            "Time to check a published version and swap it in, the wait for samples in flight included.",
            buckets=SECONDS_BUCKETS,
            registry=REGISTRY,
        ),
        sync_failures=Counter(
            "rlaif_sampler_policy_sync_failures_total",
            "Looks at shared storage that did not end with the published version being served.",
            ["reason"],
            registry=REGISTRY,
        ),
        behind_seconds=Gauge(
            "rlaif_sampler_policy_behind_seconds",
            "Time since a version was published that this replica does not serve yet; 0 when it is current.",
            registry=REGISTRY,
        ),
        sync_deadline=Gauge(
            "rlaif_sampler_sync_deadline_seconds",
            "How long this replica takes calls while it is behind.",
            registry=REGISTRY,
        ),
    )
