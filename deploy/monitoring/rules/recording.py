"""Recording rules: what alerts and panels ask again and again, over every service in one form.

Names are level:metric:operation; the window in a name is the nominal one.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

from monitoring import objectives
from monitoring.catalogue import SERVICES, Series, requests
from monitoring.promql import Scope, either, ratio, share
from monitoring.timing import Timing
from rlaif.judge.metrics import judge_metrics
from rlaif.reward.metrics import reward_metrics
from rlaif.sampler.metrics import sampler_metrics

_BY_JOB: Final = frozenset({"namespace", "job"})


def _recorded(name: str) -> Series:
    return Series(name, "gauge", _BY_JOB)


def request_errors(window: str) -> Series:
    """Share of calls that a service failed, over that window."""
    return _recorded(f"rlaif:request_errors:ratio_rate{window}")


def request_slow(window: str) -> Series:
    """Share of calls that took longer than their objective allows, over that window."""
    return _recorded(f"rlaif:request_slow:ratio_rate{window}")


def failed_requests(window: str) -> Series:
    """How many calls a service failed in that window."""
    return _recorded(f"rlaif:request_errors:increase{window}")


def slow_requests(window: str) -> Series:
    """How many calls took longer than their objective allows in that window."""
    return _recorded(f"rlaif:request_slow:increase{window}")


REQUESTS: Final = _recorded("rlaif:requests:rate5m")
REFUSED: Final = _recorded("rlaif:calls_refused:ratio_rate5m")
QUEUE_USED: Final = _recorded("rlaif:queue_used:ratio")
LABELS: Final = _recorded("rlaif:labels:rate5m")
ABSTENTIONS: Final = _recorded("rlaif:label_abstentions:ratio_rate30m")
INCONSISTENT: Final = _recorded("rlaif:order_inconsistent:ratio_rate30m")
INJECTIONS: Final = _recorded("rlaif:injections_suspected:ratio_rate10m")
REWARDS_FAILED: Final = _recorded("rlaif:rewards_failed:ratio_rate10m")
ENGINE_SECONDS_PER_LABEL: Final = _recorded("rlaif:engine_seconds_per_label:ratio_rate30m")
PROMPT_TOKENS_SHARED: Final = _recorded("rlaif:prompt_tokens_shared:ratio_rate30m")


@dataclass(frozen=True)
class Recording:
    """One recording rule."""

    series: Series
    expr: str

    def to_json(self) -> dict[str, Any]:
        """As a rules file has it."""
        return {"record": self.series.name, "expr": self.expr}


def recording_rules(scope: Scope, timing: Timing) -> list[Recording]:
    """All of them, each by namespace and job."""
    jobs = scope.keep("job")
    return [*_objectives(jobs, timing), *_queues(jobs, timing), *_labels(jobs, timing)]


def _objectives(jobs: Scope, timing: Timing) -> list[Recording]:
    rules = [Recording(REQUESTS, _calls(jobs, timing("5m")))]
    for window in objectives.WINDOWS:
        failed = _calls(jobs, timing(window), code=objectives.ERROR_CODES)
        rules.append(Recording(request_errors(window), share(failed, _calls(jobs, timing(window)))))
        in_time, counted = _bounded(jobs, "rate", timing(window))
        rules.append(Recording(request_slow(window), f"1 - {ratio(in_time, counted)}"))
    for window in dict.fromkeys(burn.long for burn in objectives.BURNS):
        failed = _calls(jobs, timing(window), "increase", code=objectives.ERROR_CODES)
        calls = _calls(jobs, timing(window), "increase")
        rules.append(Recording(failed_requests(window), f"{failed} or 0 * {calls}"))
        in_time, counted = _bounded(jobs, "increase", timing(window))
        rules.append(Recording(slow_requests(window), f"{counted} - {in_time}"))
    refused = _calls(jobs, timing("5m"), code="RESOURCE_EXHAUSTED")
    return [*rules, Recording(REFUSED, share(refused, _calls(jobs, timing("5m"))))]


def _calls(jobs: Scope, window: str, function: str = "rate", /, **matchers: Any) -> str:
    calls = jobs.select_any([requests(service).requests for service in SERVICES], **matchers)
    return jobs.total(f"{function}({calls}[{window}])")


def _bounded(jobs: Scope, function: str, window: str) -> tuple[str, str]:
    """(calls in time, all calls that have an objective)."""
    in_time, counted = [], []
    for bound in objectives.LATENCY_BOUNDS:
        methods = {"method": bound.methods} if bound.methods else {}
        in_time.append(f"{function}({jobs.select(bound.metric(), 'bucket', le=bound.le, **methods)}[{window}])")
        counted.append(f"{function}({jobs.select(bound.metric(), 'count', **methods)}[{window}])")
    # Series of different jobs or methods: side by side they are one vector.
    return jobs.total(" or ".join(in_time)), jobs.total(" or ".join(counted))


def _queues(jobs: Scope, timing: Timing) -> list[Recording]:
    judge, sampler, reward = judge_metrics(), sampler_metrics(), reward_metrics()
    used = either(
        *(
            jobs.largest(f"{jobs.select(queued)} / ({jobs.select(limit)} > 0)")
            for queued, limit in (
                (judge.queue_prompts, judge.queue_limit),
                (sampler.queue_completions, sampler.queue_limit),
                (reward.queue_tokens, reward.queue_limit),
            )
        )
    )
    window = timing("30m")
    given = either(jobs.rate(judge.prompt_tokens, window), jobs.rate(sampler.prompt_tokens, window))
    computed = either(
        jobs.rate(judge.computed_prompt_tokens, window), jobs.rate(sampler.computed_prompt_tokens, window)
    )
    return [Recording(QUEUE_USED, used), Recording(PROMPT_TOKENS_SHARED, f"1 - {ratio(computed, given)}")]


def _labels(jobs: Scope, timing: Timing) -> list[Recording]:
    judge, reward = judge_metrics(), reward_metrics()
    half_hour, ten_minutes = timing("30m"), timing("10m")
    labels = jobs.rate(judge.labels, half_hour)
    decided = jobs.rate(judge.labels, half_hour, form="compare", outcome="!=abstain")
    failed = jobs.rate(reward.rewards, ten_minutes, outcome="!=scored")
    return [
        Recording(LABELS, jobs.rate(judge.labels, timing("5m"))),
        Recording(ABSTENTIONS, ratio(jobs.rate(judge.abstentions, half_hour), labels)),
        Recording(INCONSISTENT, ratio(jobs.rate(judge.order_inconsistent, half_hour), decided)),
        Recording(INJECTIONS, ratio(jobs.rate(judge.injections, ten_minutes), jobs.rate(judge.labels, ten_minutes))),
        Recording(REWARDS_FAILED, share(failed, jobs.rate(reward.rewards, ten_minutes))),
        Recording(ENGINE_SECONDS_PER_LABEL, ratio(judge_busy(jobs, half_hour), labels)),
    ]


def judge_busy(jobs: Scope, window: str) -> str:
    """Seconds a second in which judges' engines compute verdicts or write texts."""
    judge = judge_metrics()
    verdicts = jobs.rate(judge.engine_seconds, window, "sum")
    return f"({verdicts} + {jobs.rate(judge.text_seconds, window, 'sum')})"
