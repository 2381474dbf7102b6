"""Rate, errors and duration of a service's calls, the same for each of them."""

from __future__ import annotations

from monitoring import catalogue, objectives
from monitoring.boards.board import WINDOW
from monitoring.boards.panel import RED, Panel, Query
from monitoring.promql import Scope


def calls_section(service: str, scope: Scope) -> tuple[Panel, ...]:
    """By method: how many, how they end, how long they take."""
    metrics = catalogue.requests(service)
    methods = scope.keep("method")
    bounds = [bound.seconds for bound in objectives.LATENCY_BOUNDS if bound.metric() is metrics.seconds]
    return (
        Panel(
            "calls",
            "Which calls come?",
            "Calls answered a second, by method, and those being served.",
            (
                Query(methods.rate(metrics.requests, WINDOW), "{{method}}"),
                Query(scope.total(scope.select(metrics.in_flight)), "being served"),
            ),
            "short",
            least=0,
        ),
        Panel(
            "codes",
            "How do calls end?",
            "Calls a second by gRPC status. Faults of the service are "
            f"{', '.join(objectives.ERROR_CODES[:-1])} and {objectives.ERROR_CODES[-1]}.",
            (Query(scope.keep("code").rate(metrics.requests, WINDOW), "{{code}}"),),
            "short",
            least=0,
        ),
        Panel(
            "latency",
            "How long do calls take?",
            "From a call's arrival to its last byte handed over, by method. Lines are where objectives end; bulk calls "
            "have a later one.",
            (
                Query(methods.quantile(0.5, metrics.seconds, WINDOW), "{{method}} median"),
                Query(methods.quantile(0.99, metrics.seconds, WINDOW), "{{method}} 99 %"),
            ),
            "s",
            steps=tuple((seconds, RED) for seconds in sorted(bounds)),
            least=0,
        ),
    )
