"""What the judge counts."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from typing import Final, Literal

from prometheus_client import Counter, Gauge, Histogram

from rlaif.runtime.telemetry import REGISTRY, SECONDS_BUCKETS
from rlaif.v1 import judge_service_pb2, ledger_service_pb2

Queue = Literal["verdicts", "texts"]

_REASON: Final = "ABSTENTION_REASON_"
_OUTCOMES: Final = {"compare": ("first", "second", "tie", "abstain"), "score": ("scored", "abstain")}
_BATCH_BUCKETS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048)


@dataclass(frozen=True)
class JudgeMetrics:
    """Labels by what they say, and how the engine's batches go."""

    labels: Counter
    abstentions: Counter
    order_inconsistent: Counter
    injections: Counter
    null_responses: Counter
    nearly_identical: Counter
    texts: Counter
    panel_votes: Counter
    ledger_hits: Counter
    batch_prompts: Histogram
    engine_seconds: Histogram
    text_seconds: Histogram
    engine_gpus: Gauge
    prompt_tokens: Counter
    computed_prompt_tokens: Counter
    completion_tokens: Counter
    queue_prompts: Gauge
    queue_limit: Gauge
    queue_wait_seconds: Histogram

    def count_label(self, label: ledger_service_pb2.Label) -> None:
        """Counts a label that was just made."""
        flags: judge_service_pb2.Verdict | judge_service_pb2.Score
        if label.HasField("verdict"):
            outcome = _suffix(judge_service_pb2.Preference.Name(label.verdict.preference), "PREFERENCE_")
            form, reason, flags = "compare", label.verdict.abstention_reason, label.verdict
            if label.verdict.responses_nearly_identical:
                self.nearly_identical.inc()
            self._count_votes(label.verdict.judge_votes)
            if outcome != "abstain" and not label.verdict.order_consistent:
                self.order_inconsistent.inc()
        else:
            outcome = "scored" if label.score.HasField("expected") else "abstain"
            form, reason, flags = "score", label.score.abstention_reason, label.score
        self.labels.labels(form=form, outcome=outcome).inc()
        if outcome == "abstain":
            name = _suffix(judge_service_pb2.AbstentionReason.Name(reason), _REASON)
            self.abstentions.labels(form=form, reason=name).inc()
        if flags.injection_suspected:
            self.injections.labels(form=form).inc()
        if flags.null_response_suspected:
            self.null_responses.labels(form=form).inc()

    def count_text(self, form: str, *, outcome: str) -> None:
        """Counts a text that was asked for: a critique, a revision or an audit."""
        self.texts.labels(form=form, outcome=outcome).inc()

    def _count_votes(self, votes: Iterable[judge_service_pb2.JudgeVote]) -> None:
        for vote in votes:
            if vote.judge:
                reason = vote.abstention_reason
                outcome = "voted" if not reason else _suffix(judge_service_pb2.AbstentionReason.Name(reason), _REASON)
                self.panel_votes.labels(judge=vote.judge, outcome=outcome).inc()


@cache
def judge_metrics() -> JudgeMetrics:
    """The judge's metrics, made once a process. What may be counted starts at 0, so that the first one is a rise."""
    metrics = _make()
    reasons = [_suffix(name, _REASON) for name in judge_service_pb2.AbstentionReason.keys()[1:]]
    for form, outcomes in _OUTCOMES.items():
        for outcome in outcomes:
            metrics.labels.labels(form=form, outcome=outcome)
        for reason in reasons:
            metrics.abstentions.labels(form=form, reason=reason)
        for counter in (metrics.injections, metrics.null_responses, metrics.ledger_hits):
            counter.labels(form=form)
    return metrics


def _make() -> JudgeMetrics:
    return JudgeMetrics(
        labels=Counter("rlaif_judge_labels_total", "Labels made.", ["form", "outcome"], registry=REGISTRY),
        abstentions=Counter(
            "rlaif_judge_abstentions_total", "Labels without a verdict.", ["form", "reason"], registry=REGISTRY
        ),
        order_inconsistent=Counter(
            "rlaif_judge_order_inconsistent_total",
            "Comparisons whose verdict changed with the order of presentation.",
            registry=REGISTRY,
        ),
        injections=Counter(
            "rlaif_judge_injections_suspected_total",
            "Labels on responses that address the judge.",
            ["form"],
            registry=REGISTRY,
        ),
        null_responses=Counter(
            "rlaif_judge_null_responses_suspected_total",
            "Labels on responses that say nothing or answer many different conversations.",
            ["form"],
            registry=REGISTRY,
        ),
        nearly_identical=Counter(
            "rlaif_judge_nearly_identical_total",
            "Comparisons of responses that differ in spacing, case or punctuation at most.",
            registry=REGISTRY,
        ),
        texts=Counter(
            "rlaif_judge_texts_total", "Critiques, revisions and audits.", ["form", "outcome"], registry=REGISTRY
        ),
        panel_votes=Counter(
            "rlaif_judge_panel_votes_total",
            "Votes of the panel's other judges: cast, or why not.",
            ["judge", "outcome"],
            registry=REGISTRY,
        ),
        ledger_hits=Counter(
            "rlaif_judge_ledger_hits_total", "Decisions answered from the ledger.", ["form"], registry=REGISTRY
        ),
        batch_prompts=Histogram(
            "rlaif_judge_batch_prompts",
            "Judge prompts in one engine batch: one a presentation order and principle.",
            buckets=_BATCH_BUCKETS,
            registry=REGISTRY,
        ),
        engine_seconds=Histogram(
            "rlaif_judge_engine_seconds",
            "Time of one engine batch.",
            buckets=SECONDS_BUCKETS,
            registry=REGISTRY,
        ),
        text_seconds=Histogram(
            "rlaif_judge_text_seconds",
            "Time in which the engine wrote one batch of texts.",
            buckets=SECONDS_BUCKETS,
            registry=REGISTRY,
        ),
        engine_gpus=Gauge(
            "rlaif_judge_engine_gpus", "GPUs of this replica that the engine computes on; 0 on CPUs.", registry=REGISTRY
        ),
        prompt_tokens=Counter(
            "rlaif_judge_prompt_tokens_total",
            "Tokens of all prompts, each counted for every question or text that follows it.",
            registry=REGISTRY,
        ),
        computed_prompt_tokens=Counter(
            "rlaif_judge_computed_prompt_tokens_total",
            "Prompt tokens that the model ran over; the others were shared with a prompt before.",
            registry=REGISTRY,
        ),
        completion_tokens=Counter(
            "rlaif_judge_completion_tokens_total",
            "Tokens written: rationales, critiques, revisions, audits.",
            registry=REGISTRY,
        ),
        queue_prompts=Gauge(
            "rlaif_judge_queue_prompts",
            "Presentations, or prompts of texts, that wait for an engine batch.",
            ["queue"],
            registry=REGISTRY,
        ),
        queue_limit=Gauge(
            "rlaif_judge_queue_limit_prompts", "Most that may wait in a queue.", ["queue"], registry=REGISTRY
        ),
        queue_wait_seconds=Histogram(
            "rlaif_judge_queue_wait_seconds",
            "How long a request, or a turn of a long one, waited for its engine batch.",
            ["queue"],
            buckets=SECONDS_BUCKETS,
            registry=REGISTRY,
        ),
    )


def _suffix(name: str, prefix: str) -> str:
    return name.removeprefix(prefix).lower()
