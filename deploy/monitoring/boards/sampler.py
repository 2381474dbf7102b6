"""The sampler: the policy that is served, and how quickly."""

from __future__ import annotations

from monitoring import catalogue, limits, objectives
from monitoring.boards.board import HEALTH, HERE, WINDOW, Board, Variable
from monitoring.boards.panel import GREEN, ORANGE, RED, Panel, Query, stat_panel
from monitoring.boards.service import calls_section
from monitoring.catalogue import series_of
from monitoring.rules import recording
from rlaif.sampler.metrics import sampler_metrics

UID = "rlaif-sampler"
_SAMPLER = HERE.where(job="rlaif-sampler", pod="=~$pod")
_ALL = HERE.where(job="rlaif-sampler")
_PODS = _SAMPLER.keep("pod")


def sampler() -> Board:
    """Which version of the policy is served, whether it is the one published, and how many tokens a second."""
    ready = series_of(catalogue.requests("sampler").ready).name
    return Board(
        uid=UID,
        title="RLAIF / Sampler",
        description="Completions of the policy: which version of it, how many tokens a second, how long callers wait.",
        sections={
            HEALTH: _health(),
            "Is it the right policy?": _policy(),
            "Does the engine keep up?": _engine(),
            "Do callers get answers?": calls_section("sampler", _SAMPLER),
        },
        variables=(Variable("pod", "replica", f'label_values({ready}{{namespace="$namespace"}}, pod)', many=True),),
    )


def _health() -> tuple[Panel, ...]:
    metrics = sampler_metrics()
    return (
        stat_panel(
            "ready",
            "Does it take calls?",
            f"min({_SAMPLER.select(catalogue.requests('sampler').ready)})",
            "Lowest readiness of any replica. One that is behind the published policy for too long takes no calls.",
            words={1: ("yes", GREEN), 0: ("not all", RED)},
            base=RED,
            steps=((1, GREEN),),
        ),
        stat_panel(
            "behind",
            "Is the policy current?",
            f"max({_SAMPLER.select(metrics.behind_seconds)})",
            "Longest time that a replica has known of a published version that it does not serve yet.",
            unit="s",
            steps=((limits.POLICY_BEHIND_SECONDS / 3, ORANGE), (limits.POLICY_BEHIND_SECONDS, RED)),
        ),
        stat_panel(
            "errors",
            "How many calls fail?",
            f"max({_ALL.select(recording.request_errors('5m'))})",
            "Share of the calls of 5 minutes that ended in a fault of the sampler.",
            unit="percentunit",
            steps=((1 - objectives.AVAILABILITY, ORANGE), (0.05, RED)),
        ),
        stat_panel(
            "queue",
            "How full is its queue?",
            f"max({_ALL.select(recording.QUEUE_USED)})",
            "Places in use of the fullest queue of any replica; at 100 % calls are refused.",
            unit="percentunit",
            steps=((0.5, ORANGE), (limits.QUEUE_USED, RED)),
        ),
        stat_panel(
            "cache",
            "How full is its cache?",
            f"max({_SAMPLER.select(metrics.cache_usage)})",
            "Share of the fullest key-value cache in use. At 100 % completions wait for others to end.",
            unit="percentunit",
            steps=((0.9, ORANGE),),
        ),
        stat_panel(
            "tokens_per_second",
            "How many tokens a second?",
            _SAMPLER.rate(metrics.completion_tokens, WINDOW),
            "Tokens of completions, all replicas together.",
            unit="short",
        ),
    )


def _policy() -> tuple[Panel, ...]:
    metrics = sampler_metrics()
    return (
        Panel(
            "versions",
            "Which version is served, which is published?",
            "Optimiser steps since the base. Lines apart are replicas that are behind.",
            (
                Query(_PODS.largest(_SAMPLER.select(metrics.policy_version)), "{{pod}} serves"),
                Query(_SAMPLER.largest(_SAMPLER.select(metrics.desired_policy_version)), "published"),
            ),
            "short",
            least=0,
        ),
        Panel(
            "behind_seconds",
            "How long has a replica been behind?",
            "Time since it learnt of a version that it does not serve yet. The line is where the alert fires.",
            (Query(_PODS.largest(_SAMPLER.select(metrics.behind_seconds)), "{{pod}}"),),
            "s",
            steps=((limits.POLICY_BEHIND_SECONDS, RED),),
            least=0,
        ),
        Panel(
            "loading",
            "How long does a new version take, and what goes wrong?",
            "Time to check and swap in a version; looks at shared storage that did not end with it being served, a "
            "second.",
            (
                Query(_SAMPLER.mean(metrics.policy_load_seconds, WINDOW), "mean time to load"),
                Query(_SAMPLER.keep("reason").rate(metrics.sync_failures, WINDOW), "failures: {{reason}}"),
            ),
            "short",
            least=0,
        ),
    )


def _engine() -> tuple[Panel, ...]:
    metrics = sampler_metrics()
    sampled = _SAMPLER.rate(metrics.completion_tokens, WINDOW)
    gpus = _SAMPLER.total(_SAMPLER.select(metrics.engine_gpus))
    return (
        Panel(
            "queue_depth",
            "How much is sampled, how much waits?",
            "Completions of all replicas, and the most that may wait.",
            (
                Query(_SAMPLER.total(_SAMPLER.select(metrics.running_completions)), "being sampled"),
                Query(_SAMPLER.total(_SAMPLER.select(metrics.queue_completions)), "waiting"),
                Query(_SAMPLER.total(_SAMPLER.select(metrics.queue_limit)), "limit of those that wait"),
            ),
            "short",
            least=0,
        ),
        Panel(
            "queue_wait",
            "How long do requests wait for the engine?",
            "From a request's arrival until the engine gets it. The line is the objective.",
            (
                Query(_SAMPLER.quantile(0.5, metrics.queue_wait_seconds, WINDOW), "median"),
                Query(_SAMPLER.quantile(0.99, metrics.queue_wait_seconds, WINDOW), "99 %"),
            ),
            "s",
            steps=((30, RED),),
            least=0,
        ),
        Panel(
            "engine_seconds",
            "How long does the engine take?",
            "Time of one call of the engine, and how many completions one asks for.",
            (
                Query(_SAMPLER.quantile(0.5, metrics.engine_seconds, WINDOW), "median seconds"),
                Query(_SAMPLER.quantile(0.99, metrics.engine_seconds, WINDOW), "99 % seconds"),
                Query(_SAMPLER.mean(metrics.call_completions, WINDOW), "completions of a call"),
            ),
            "short",
            least=0,
        ),
        Panel(
            "tokens",
            "How many tokens go in and out?",
            "Tokens a second: of prompts, each counted for every completion that follows it; computed for that; and "
            "sampled.",
            (
                Query(_SAMPLER.rate(metrics.prompt_tokens, WINDOW), "given"),
                Query(_SAMPLER.rate(metrics.computed_prompt_tokens, WINDOW), "computed"),
                Query(sampled, "sampled"),
            ),
            "short",
            least=0,
        ),
        Panel(
            "stops",
            "How do completions end?",
            "Completions a second. Many that end at max_tokens are cut off in the middle of what they say.",
            (Query(_SAMPLER.keep("stop_reason").rate(metrics.completions, WINDOW), "{{stop_reason}}"),),
            "short",
            least=0,
        ),
        Panel(
            "shared",
            "What does each GPU do?",
            "Prompt tokens that were not computed again, over half an hour; cache in use; tokens sampled a second by "
            "each GPU, "
            "or by all CPUs.",
            (
                Query(_ALL.select(recording.PROMPT_TOKENS_SHARED), "prompts shared"),
                Query(_PODS.largest(_SAMPLER.select(metrics.cache_usage)), "{{pod}} cache"),
                Query(f"{sampled} / clamp_min({gpus}, 1)", "tokens a second and GPU"),
            ),
            "short",
            least=0,
        ),
    )
