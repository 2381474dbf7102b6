"""The words that boards are written in: numbers, lines, bars; and the panels that every service has."""

from __future__ import annotations

from typing import Any

from prometheus_client import Histogram

from monitoring import catalogue, limits, objectives
from monitoring.boards.board import HERE, WINDOW
from monitoring.boards.panel import GREEN, ORANGE, RED, Panel, Query
from monitoring.catalogue import Series
from monitoring.promql import Scope
from monitoring.rules import recording
from rlaif.oversight.metrics import ledger_metrics


def number(key: str, question: str, expr: str, description: str, **options: Any) -> Panel:
    """A number of the top row."""
    defaults: dict[str, Any] = {"kind": "stat", "width": 4, "height": 4, "least": None}
    return Panel(key, question, description, (Query(expr),), **(defaults | options))


def bad_share(key: str, question: str, expr: str, description: str, *, orange: float, red: float, **more: Any) -> Panel:
    """A number of the top row: a share, the less the better."""
    return number(key, question, expr, description, unit="percentunit", steps=((orange, ORANGE), (red, RED)), **more)


def lines(key: str, question: str, description: str, *queries: Query, red: float | None = None, **more: Any) -> Panel:
    """Lines over time, and a dashed one at `red`."""
    return Panel(key, question, description, queries, **({"steps": () if red is None else ((red, RED),)} | more))


def bars(key: str, question: str, description: str, *queries: Query, **more: Any) -> Panel:
    """How things stand now, side by side."""
    return lines(key, question, description, *queries, kind="bars", **more)


def share_of_jobs(key: str, question: str, description: str, series: Series, scope: Scope, *, red: float) -> Panel:
    """A share that is recorded for each job."""
    return lines(key, question, description, Query(scope.select(series), "{{job}}"), unit="percentunit", red=red)


def spread(scope: Scope, metric: Histogram, legend: str = "", *, unit: str = "") -> tuple[Query, Query]:
    """Median and 99 % of a histogram."""
    return tuple(  # type: ignore[return-value]
        Query(scope.quantile(part, metric, WINDOW), f"{legend} {words}".strip(), unit)
        for part, words in ((0.5, "median"), (0.99, "99 %"))
    )


def ready(service: str, scope: Scope, description: str = "Lowest readiness of any replica.") -> Panel:
    """Whether a service takes calls."""
    return takes_calls("Does it take calls?", scope.select(catalogue.requests(service).ready), description)


def takes_calls(question: str, readiness: str, description: str) -> Panel:
    """Whether all that have this readiness take calls."""
    words = {1: ("yes", GREEN), 0: ("not all", RED)}
    return number("ready", question, f"min({readiness})", description, words=words, base=RED, steps=((1, GREEN),))


def errors(scope: Scope, description: str) -> Panel:
    """What share of its calls a service fails."""
    worst = f"max({scope.select(recording.request_errors('5m'))})"
    return bad_share("errors", "How many calls fail?", worst, description, orange=1 - objectives.AVAILABILITY, red=0.05)


def queue(scope: Scope, **more: Any) -> Panel:
    """How full a service's queue is."""
    return bad_share(
        "queue",
        "How full is its queue?",
        f"max({scope.select(recording.QUEUE_USED)})",
        "Places in use of the fullest queue of any replica; at 100 % calls are refused.",
        orange=0.5,
        red=limits.QUEUE_USED,
        **more,
    )


def ledger() -> Panel:
    """Whether the ledger holds. A replica that found it broken is believed before one that has not looked yet."""
    intact = HERE.select(ledger_metrics().intact)
    return number(
        "ledger",
        "Is the ledger whole?",
        f"min({intact} == 0) or min({intact})",
        "What the last verification of every hash found.",
        base=ORANGE,
        steps=((0, RED), (1, GREEN)),
        words={1: ("whole", GREEN), 0: ("BROKEN", RED), -1: ("not verified yet", ORANGE)},
    )


def agreement(question: str) -> Panel:
    """Whether people agree with the judge, over all labels of the window."""
    return number(
        "agreement",
        question,
        # Each replica of oversight computes the same from the same ledger.
        HERE.largest(HERE.select(catalogue.quality("human_agreement"), slice="", bound="value")),
        "Share of people's votes that the judge's labels equal, ties left out. Chance is one half.",
        unit="percentunit",
        base=RED,
        steps=((limits.HUMAN_AGREEMENT, GREEN),),
        nothing="no votes",
    )


def calls_section(service: str, scope: Scope) -> tuple[Panel, ...]:
    """Rate, errors and duration of a service's calls: how many, how they end, how long they take."""
    metrics, methods = catalogue.requests(service), scope.keep("method")
    bounds = sorted(bound.seconds for bound in objectives.LATENCY_BOUNDS if bound.metric() is metrics.seconds)
    return (
        lines(
            "calls",
            "Which calls come?",
            "Calls answered a second, by method, and those being served.",
            Query(methods.rate(metrics.requests, WINDOW), "{{method}}"),
            Query(scope.total(scope.select(metrics.in_flight)), "being served", "short"),
            unit="reqps",
        ),
        lines(
            "codes",
            "How do calls end?",
            "Calls a second by gRPC status. Faults of the service are "
            f"{', '.join(objectives.ERROR_CODES[:-1])} and {objectives.ERROR_CODES[-1]}.",
            Query(scope.keep("code").rate(metrics.requests, WINDOW), "{{code}}"),
            unit="reqps",
        ),
        lines(
            "latency",
            "How long do calls take?",
            "From a call's arrival to its last byte handed over, by method. Lines are where objectives end; bulk "
            "calls have a later one.",
            *spread(methods, metrics.seconds, "{{method}}"),
            unit="s",
            steps=tuple((seconds, RED) for seconds in bounds),
        ),
    )
