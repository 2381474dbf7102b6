"""The sampler: the policy that is served, and how quickly."""

from __future__ import annotations

from monitoring import catalogue, limits
from monitoring.boards import common
from monitoring.boards.board import HEALTH, HERE, WINDOW, Board, Variable
from monitoring.boards.common import lines, spread
from monitoring.boards.panel import ORANGE, Panel, Query
from monitoring.rules import recording
from rlaif.sampler.metrics import sampler_metrics

UID = "rlaif-sampler"
_SAMPLER = HERE.where(job="rlaif-sampler", pod="=~$sampler")
_ALL = HERE.where(job="rlaif-sampler")
_PODS = _SAMPLER.keep("pod")


def sampler() -> Board:
    """Which version of the policy is served, whether it is the one published, and how many tokens a second."""
    return Board(
        uid=UID,
        title="RLAIF / Sampler",
        description="Completions of the policy: which version of it, how many tokens a second, how long callers wait.",
        sections={
            HEALTH: _health(),
            "Is it the right policy?": _policy(),
            "Does the engine keep up?": _engine(),
            "Do callers get answers?": common.calls_section("sampler", _SAMPLER),
        },
        variables=(Variable.of("sampler", "replica", catalogue.requests("sampler").ready, "pod"),),
    )


def _health() -> tuple[Panel, ...]:
    metrics = sampler_metrics()
    return (
        common.ready(
            "sampler",
            _SAMPLER,
            "Lowest readiness of any replica. One that is behind the published policy for too long takes no calls.",
        ),
        common.bad_share(
            "behind",
            "Is the policy current?",
            f"max({_SAMPLER.select(metrics.behind_seconds)} / {_SAMPLER.select(metrics.sync_deadline)})",
            "Longest time that a replica has known of a published version that it does not serve yet, as a share of "
            "sync_deadline_seconds. At 100 % it takes no calls.",
            orange=limits.POLICY_BEHIND / 2,
            red=limits.POLICY_BEHIND,
        ),
        common.errors(_ALL, "Share of the calls of 5 minutes that ended in a fault of the sampler."),
        common.queue(_ALL),
        common.number(
            "cache",
            "How full is its cache?",
            # Of an engine that does not tell it is NaN, which no comparison holds for.
            f"max({_SAMPLER.select(metrics.cache_usage)} >= 0)",
            "Share of the fullest key-value cache in use. At 100 % completions wait for others to end.",
            unit="percentunit",
            steps=((0.9, ORANGE),),
            nothing="not told",
        ),
        common.number(
            "tokens_per_second",
            "How many tokens a second?",
            _SAMPLER.rate(metrics.completion_tokens, WINDOW),
            "Tokens of completions, all replicas together.",
        ),
    )


def _policy() -> tuple[Panel, ...]:
    metrics = sampler_metrics()
    return (
        lines(
            "versions",
            "Which version is served, which is published?",
            "Optimiser steps since the base. Lines apart are replicas that are behind.",
            Query(_PODS.largest(_SAMPLER.select(metrics.policy_version)), "{{pod}} serves"),
            Query(_SAMPLER.largest(_SAMPLER.select(metrics.desired_policy_version)), "published"),
        ),
        lines(
            "behind_seconds",
            "How long has a replica been behind?",
            "Time since it learnt of a version that it does not serve yet, and when it takes no calls any more: the "
            "alert fires before that.",
            Query(_PODS.largest(_SAMPLER.select(metrics.behind_seconds)), "{{pod}}"),
            Query(_SAMPLER.least(_SAMPLER.select(metrics.sync_deadline)), "takes no calls"),
            unit="s",
        ),
        lines(
            "loading",
            "How long does a new version take, and what goes wrong?",
            "Time to check and swap in a version; on the right, looks at shared storage that did not end with it "
            "being served, a second.",
            Query(_SAMPLER.mean(metrics.policy_load_seconds, WINDOW), "mean time to load"),
            Query(_SAMPLER.keep("reason").rate(metrics.sync_failures, WINDOW), "failures: {{reason}}", "ops"),
            unit="s",
        ),
    )


def _engine() -> tuple[Panel, ...]:
    metrics = sampler_metrics()
    sampled = _SAMPLER.rate(metrics.completion_tokens, WINDOW)
    gpus = _SAMPLER.total(_SAMPLER.select(metrics.engine_gpus))
    return (
        lines(
            "queue_depth",
            "How much is sampled, how much waits?",
            "Completions of all replicas, and the most that may wait.",
            Query(_SAMPLER.total(_SAMPLER.select(metrics.running_completions)), "being sampled"),
            Query(_SAMPLER.total(_SAMPLER.select(metrics.queue_completions)), "waiting"),
            Query(_SAMPLER.total(_SAMPLER.select(metrics.queue_limit)), "limit of those that wait"),
        ),
        lines(
            "queue_wait",
            "How long do requests wait for the engine?",
            "From a request's arrival until the engine gets it. The line is the objective.",
            *spread(_SAMPLER, metrics.queue_wait_seconds),
            unit="s",
            red=30,
        ),
        lines(
            "engine_seconds",
            "How long does the engine take?",
            "Time of one call of the engine; on the right, how many completions one asks for.",
            *spread(_SAMPLER, metrics.engine_seconds),
            Query(_SAMPLER.mean(metrics.call_completions, WINDOW), "completions of a call", "short"),
            unit="s",
        ),
        lines(
            "tokens",
            "How many tokens go in and out?",
            "Tokens a second: of prompts, each counted for every completion that follows it; computed for that; "
            "sampled; and sampled by each GPU, or by all CPUs.",
            Query(_SAMPLER.rate(metrics.prompt_tokens, WINDOW), "given"),
            Query(_SAMPLER.rate(metrics.computed_prompt_tokens, WINDOW), "computed"),
            Query(sampled, "sampled"),
            Query(f"{sampled} / clamp_min({gpus}, 1)", "sampled by each GPU"),
        ),
        lines(
            "stops",
            "How do completions end?",
            "Completions a second. Many that end at max_tokens are cut off in the middle of what they say.",
            Query(_SAMPLER.keep("stop_reason").rate(metrics.completions, WINDOW), "{{stop_reason}}"),
        ),
        lines(
            "shared",
            "How much is shared, how full are caches?",
            "Prompt tokens that were not computed again, over half an hour; cache in use.",
            Query(_ALL.select(recording.PROMPT_TOKENS_SHARED), "prompts shared"),
            Query(_PODS.largest(_SAMPLER.select(metrics.cache_usage)), "{{pod}} cache"),
            unit="percentunit",
            most=1,
        ),
    )
