"""The last step's figures for Prometheus. Called by metrics.MetricsLog alone."""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from prometheus_client import Counter, Gauge, start_http_server

from rlaif.core.errors import SettingsError
from rlaif.runtime.addresses import split_address
from rlaif.runtime.telemetry import REGISTRY, BoundedValues
from rlaif_pipelines.training.monitors import RemainingTime, is_figure

GAUGES: Final = {
    "step": ("step", "Optimiser steps or batches done."),
    "num_steps": ("steps_planned", "Steps that the training has."),
    "time": ("last_step_timestamp_seconds", "When the last step was done."),
    "loss": ("loss", "Loss of the last step."),
    "accuracy": ("accuracy_ratio", "Decided pairs of the last step whose preferred response leads."),
    "margin": ("margin_nats", "Mean lead of the preferred response in the last step."),
    "reward": ("reward", "Mean reward of the last batch of rollouts."),
    "reward_sd": ("reward_sd", "Standard deviation of the last batch's rewards."),
    "gold": ("gold_score", "Mean gold score of the last batch, where there is a gold evaluator."),
    "held_out": ("held_out_score", "Second opinion on the prompts set apart, when last measured."),
    "kl": ("kl_nats", "KL of a completion to the reference in the last batch."),
    "kl_beta": ("kl_weight", "Weight of the KL in the last step."),
    "entropy": ("entropy_nats", "Mean entropy of a token in the last batch."),
    "completion_tokens": ("completion_tokens", "Mean length of the last batch's completions."),
    "repetition": ("repetition_ratio", "Repeated 4-grams of a completion in the last batch."),
    "cut_off_fraction": ("cut_off_ratio", "Completions of the last batch that ended because their budget did."),
    "clip_fraction": ("clip_ratio", "Tokens of the last step whose ratio of policies was clipped."),
    "truncated_fraction": ("truncated_ratio", "Tokens of the last step whose importance weight was cut."),
    "learning_rate": ("learning_rate", "Learning rate of the last step."),
    "grad_norm": ("gradient_norm", "Norm of the last step's gradient before clipping."),
    "tokens_per_second": ("tokens_per_second", "Tokens trained on, or sampled, a second of the last step."),
    "policy_version": ("policy_version", "Version of the policy that the last batch was sampled from."),
    "staleness": ("staleness_steps", "Steps between the weights sampled from and those trained."),
}
"""Figure of a step to the gauge `rlaif_training_{name}` and what it says."""
_PARTS: Final = ("step", "sample", "reward", "held_out", "train", "publish", "wait")
_DROPPED: Final = re.compile(r"[A-Za-z][A-Za-z_]{0,40}")
_REASONS: Final = ("ABSTAINED", "NOT_FINITE", "TOO_LONG")
"""Told from the start, so that the first is a rise."""
_MAX_REASONS = 20


class Prometheus:
    """The last step's figures as gauges under /metrics of an address, labelled by stage."""

    def __init__(self, address: str) -> None:
        _serve_metrics(address)
        self._remaining = RemainingTime()
        # The reasons are another service's words.
        self._reasons = BoundedValues(_MAX_REASONS, pattern=_DROPPED)

    def __call__(self, line: Mapping[str, Any]) -> None:
        """Sets the gauges; a figure that a step lacks leaves its gauge."""
        stage, metrics = line["stage"], training_metrics()
        for name, gauge in metrics.figures.items():
            if is_figure(line.get(name)):
                gauge.labels(stage).set(line[name])
        remaining = self._remaining.seconds(line["step"], line["num_steps"])
        if remaining is not None:
            metrics.remaining_seconds.labels(stage).set(remaining)
        for part, seconds in _parts(line.get("seconds")).items():
            metrics.part_seconds.labels(stage, part).set(seconds)
        for guard, used in (line.get("guards_used") or {}).items():
            metrics.guards_used.labels(stage, guard).set(used)
            metrics.guards.labels(stage, guard)
        for firing in line.get("guards") or ():
            metrics.guards.labels(stage, firing["guard"]).inc()
        metrics.samples.labels(stage).inc(line.get("num_sequences") or 0)
        metrics.skipped.labels(stage).inc(bool(line.get("skipped")))
        if "dropped" in line:
            for reason, count in (dict.fromkeys(_REASONS, 0) | line["dropped"]).items():
                metrics.dropped.labels(stage, self._reasons(reason).lower()).inc(count)


def _parts(seconds: Any) -> dict[str, float]:
    """Times of a step's known parts; a trainer that measures the whole alone tells just that."""
    if isinstance(seconds, Mapping):
        return {part: seconds[part] for part in _PARTS if is_figure(seconds.get(part))}
    return {"step": seconds} if is_figure(seconds) else {}


@dataclass(frozen=True)
class TrainingMetrics:
    """The metrics of a training process; `figures` by the name of the figure."""

    figures: Mapping[str, Gauge]
    remaining_seconds: Gauge
    part_seconds: Gauge
    guards_used: Gauge
    guards: Counter
    samples: Counter
    skipped: Counter
    dropped: Counter


@functools.cache
def _serve_metrics(address: str) -> None:
    host, port = split_address(address)
    try:
        start_http_server(port, addr=host, registry=REGISTRY)
    except OSError as error:
        raise SettingsError(
            f"metrics_address {address} cannot be listened on: {error.strerror}; give another, or none",
            field="metrics_address",
        ) from error


@functools.cache
def training_metrics() -> TrainingMetrics:
    """Made once a process, and only where they are shown."""

    def gauge(name: str, text: str, *labels: str) -> Gauge:
        return Gauge(f"rlaif_training_{name}", text, ["stage", *labels], registry=REGISTRY)

    def counter(name: str, text: str, *labels: str) -> Counter:
        return Counter(f"rlaif_training_{name}_total", text, ["stage", *labels], registry=REGISTRY)

    return TrainingMetrics(
        figures={figure: gauge(name, text) for figure, (name, text) in GAUGES.items()},
        remaining_seconds=gauge("remaining_seconds", "Expected time to the end."),
        part_seconds=gauge("part_seconds", "Time of the last step, and of its parts.", "part"),
        guards_used=gauge("guard_used_ratio", "How much of its limit a guard found used; over 1 it fires.", "guard"),
        guards=counter("guards", "Times a guard fired.", "guard"),
        samples=counter("samples", "Completions that were trained on."),
        skipped=counter("skipped_steps", "Steps without anything to learn from."),
        dropped=counter(
            "dropped",
            "What was not trained on: rewards that failed, by reason, and whole groups without a quorum or variance.",
            "reason",
        ),
    )
