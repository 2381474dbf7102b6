"""Alerts on the services: there, ready, answering, in time, with room left."""

from __future__ import annotations

from typing import Final

from monitoring import catalogue, limits, objectives
from monitoring.boards.board import Board
from monitoring.catalogue import JOBS, SERVICES, requests
from monitoring.promql import Scope
from monitoring.rules import recording
from monitoring.rules.alert import Alert, Severity
from monitoring.timing import Timing
from rlaif.runtime.reloading import reload_metrics
from rlaif.sampler.metrics import sampler_metrics

_DAY: Final = 86_400
_CERTIFICATE_SEVERITIES: Final[tuple[tuple[int, Severity], ...]] = (
    (limits.CERTIFICATE_DAYS, "warning"),
    (limits.CERTIFICATE_LAST_DAYS, "critical"),
)


def service_alerts(scope: Scope, timing: Timing, *, overview: Board, sampler: Board) -> list[Alert]:
    """From the process that is gone to the certificate that will be."""
    return [
        *_availability(scope, timing, overview),
        *_burns(scope, timing, overview),
        *_saturation(scope, timing, overview),
        *_certificates(scope, timing, overview),
        *_policy(scope, timing, sampler),
    ]


def _availability(scope: Scope, timing: Timing, overview: Board) -> list[Alert]:
    up = scope.select(catalogue.UP, job=(*JOBS, "rlaif-evaluator"))
    lately = f"max_over_time({up}[{timing('1h')}])"
    jobs = scope.keep("job")
    missing = " or ".join(f"absent({scope.select(catalogue.UP, job=job)})" for job in JOBS)
    ready = scope.select_any([requests(service).ready for service in SERVICES])
    return [
        Alert(
            "RlaifServiceDown",
            # A pod that is gone, or waits for a node, is no target. Not every installation has an evaluator: it is
            # missed for an hour.
            f"{jobs.largest(up)} == 0 or ({jobs.largest(lately)} unless {jobs.largest(up)}) or {missing}",
            timing("2m"),
            "critical",
            "{{ $labels.job }} is down",
            "No replica of {{ $labels.job }} in {{ $labels.namespace }} can be read by Prometheus. Its callers fail "
            "or wait.",
            overview.path_to("up"),
        ),
        Alert(
            "RlaifReplicaDown",
            f"{jobs.total(f'{up} == bool 0')} > 0",
            timing("5m"),
            "warning",
            "{{ $value }} replicas of {{ $labels.job }} are down",
            "Prometheus cannot read {{ $value }} replicas of {{ $labels.job }} in {{ $labels.namespace }}; others may "
            "serve.",
            overview.path_to("up"),
        ),
        Alert(
            "RlaifServiceNotReady",
            f"{jobs.largest(ready)} == 0",
            timing("15m"),
            "critical",
            "No replica of {{ $labels.job }} takes calls",
            "{{ $labels.job }} in {{ $labels.namespace }} runs, but its health has not said SERVING for a quarter of "
            "an hour.",
            overview.path_to("ready"),
        ),
    ]


def _burns(scope: Scope, timing: Timing, overview: Board) -> list[Alert]:
    alerts = []
    for burn in objectives.BURNS:
        for name, series, misses, allowed, what, panel in (
            (
                "RlaifErrorBudgetBurn",
                recording.request_errors,
                recording.failed_requests,
                1 - objectives.AVAILABILITY,
                "failed",
                "error_ratio",
            ),
            (
                "RlaifLatencyBudgetBurn",
                recording.request_slow,
                recording.slow_requests,
                1 - objectives.LATENCY,
                "were too slow",
                "slow_ratio",
            ),
        ):
            limit = f"{burn.factor * allowed:g}"
            over = [f"{scope.select(series(window))} > {limit}" for window in (burn.long, burn.short)]
            over.append(f"{scope.select(misses(burn.long))} >= {limits.MISSES_LEAST}")
            alerts.append(
                Alert(
                    name,
                    " and ".join(over),
                    timing("2m"),
                    burn.severity,
                    f"{{{{ $value | humanizePercentage }}}} of the calls of {{{{ $labels.job }}}} {what}",
                    f"Over {burn.long}, {{{{ $value | humanizePercentage }}}} of the calls of {{{{ $labels.job }}}} in "
                    f"{{{{ $labels.namespace }}}} {what}, and it goes on; the objective allows {allowed:.1%}.",
                    overview.path_to(panel),
                    window=burn.long,
                )
            )
    return alerts


def _saturation(scope: Scope, timing: Timing, overview: Board) -> list[Alert]:
    return [
        Alert(
            "RlaifQueueFilling",
            f"{scope.select(recording.QUEUE_USED)} > {limits.QUEUE_USED}",
            timing("10m"),
            "warning",
            "A queue of {{ $labels.job }} is {{ $value | humanizePercentage }} full",
            "{{ $labels.job }} in {{ $labels.namespace }} gets more than it computes. When the queue is full, calls "
            "are refused.",
            overview.path_to("queues"),
        ),
        Alert(
            "RlaifCallsRefused",
            f"{scope.select(recording.REFUSED)} > {limits.CALLS_REFUSED}",
            timing("10m"),
            "warning",
            "{{ $labels.job }} refuses {{ $value | humanizePercentage }} of its calls",
            "A queue of {{ $labels.job }} in {{ $labels.namespace }} is full, or a caller has more than its share of "
            "it.",
            overview.path_to("refused"),
        ),
    ]


def _certificates(scope: Scope, timing: Timing, overview: Board) -> list[Alert]:
    reloads, jobs = reload_metrics(), scope.keep("job", "certificate")
    left = f"{jobs.least(scope.select(reloads.expiry))} - time()"
    by_source = scope.keep("job", "source")
    return [
        *(
            Alert(
                "RlaifCertificateExpiring",
                f"{left} < {days * _DAY}",
                timing("10m"),
                severity,
                "A certificate of {{ $labels.job }} ends in {{ $value | humanizeDuration }}",
                "The {{ $labels.certificate }} certificate that {{ $labels.job }} in {{ $labels.namespace }} uses was "
                "not renewed. When it ends, every call fails.",
                overview.path_to("certificates"),
                window=f"{days}d",
            )
            for days, severity in _CERTIFICATE_SEVERITIES
        ),
        Alert(
            "RlaifReloadFailing",
            f"{by_source.rate(reloads.failures, timing('5m'))} > 0",
            timing("5m"),
            "warning",
            "{{ $labels.job }} cannot use changed {{ $labels.source }}",
            "Files with {{ $labels.source }} of {{ $labels.job }} in {{ $labels.namespace }} changed and cannot be "
            "used; the old ones are in force. Its log names the file and what is wrong.",
            overview.path_to("reloads"),
        ),
    ]


def _policy(scope: Scope, timing: Timing, sampler: Board) -> list[Alert]:
    metrics = sampler_metrics()
    pods = scope.keep("pod")
    behind = f"{scope.select(metrics.behind_seconds)} / {scope.select(metrics.sync_deadline)}"
    return [
        Alert(
            "RlaifPolicyStale",
            f"{pods.largest(behind)} > {limits.POLICY_BEHIND}",
            timing("1m"),
            "critical",
            "{{ $labels.pod }} serves an old policy",
            "Sampler {{ $labels.pod }} in {{ $labels.namespace }} does not serve the version that was published. Of "
            "the time after which it takes no calls, {{ $value | humanizePercentage }} are over; trainings wait for "
            "it.",
            sampler.path_to("behind_seconds"),
        ),
        Alert(
            "RlaifPolicySyncFailing",
            f"{scope.keep('pod', 'reason').rate(metrics.sync_failures, timing('10m'))} > 0",
            timing("10m"),
            "warning",
            "{{ $labels.pod }} cannot read or load the published policy",
            "Sampler {{ $labels.pod }} in {{ $labels.namespace }} fails with {{ $labels.reason }} when it looks for "
            "the published policy.",
            sampler.path_to("loading"),
        ),
    ]
