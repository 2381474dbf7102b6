"""The whole installation on one page."""

from __future__ import annotations

from monitoring import catalogue, limits, objectives
from monitoring.boards import common
from monitoring.boards.board import HEALTH, HERE, WINDOW, Board, Variable
from monitoring.boards.common import bars, lines, share_of_jobs
from monitoring.boards.panel import GREEN, ORANGE, RED, Panel, Query
from monitoring.promql import either, risen
from monitoring.rules import recording
from rlaif.oversight.metrics import run_metrics
from rlaif.runtime.reloading import reload_metrics
from rlaif.runtime.telemetry import build_info

UID = "rlaif-overview"
_SERVICE = HERE.where(job="=~$service")
_JOBS = _SERVICE.keep("job")


def overview() -> Board:
    """Up, ready, answering, in time, recorded; then each service beside the others."""
    return Board(
        uid=UID,
        title="RLAIF / Overview",
        description="Whether the services answer, in time, and whether what they label is kept. The other dashboards "
        "say why.",
        sections={
            HEALTH: _health(),
            "Do callers get what they ask for?": _calls(),
            "Is anything running out?": _resources(),
            "What did runs come to?": _runs(),
        },
        variables=(
            Variable("service", "service", 'label_values(up{namespace="$namespace",job=~"rlaif-.*"}, job)', many=True),
        ),
    )


def _health() -> tuple[Panel, ...]:
    up = HERE.select(catalogue.UP, job="=~rlaif-.*")
    missing = " or ".join(f"absent({HERE.select(catalogue.UP, job=job)})" for job in catalogue.JOBS)
    return (
        common.number(
            "up",
            "Are all replicas up?",
            f"sum({up}) / (count({up}) + (count({missing}) or vector(0)))",
            "Share of the targets that Prometheus can read; a service without any counts as one that it cannot. Below "
            "1 a process is gone or its metrics port is closed.",
            unit="percentunit",
            base=RED,
            steps=((1, GREEN),),
        ),
        common.takes_calls(
            "Do all of them take calls?",
            either(*(HERE.select(catalogue.requests(service).ready) for service in catalogue.SERVICES)),
            "Lowest readiness of any replica: its health says SERVING. A model that loads is not ready yet.",
        ),
        common.errors(
            HERE,
            "Worst service: share of its calls of the last 5 minutes that it failed. What callers get wrong does not "
            "count.",
        ),
        common.number(
            "alerts",
            "How many alerts fire?",
            f"count({HERE.select(catalogue.ALERTS, alertname='=~Rlaif.*', alertstate='firing')})",
            "Alerts of this installation that fire now; the list is in Alertmanager, what to do in the runbooks.",
            steps=((1, RED),),
            nothing="0",
        ),
        common.ledger(),
        common.agreement("Do people agree with the judge?"),
    )


def _calls() -> tuple[Panel, ...]:
    in_flight = either(*(_SERVICE.select(catalogue.requests(each).in_flight) for each in catalogue.SERVICES))
    return (
        lines(
            "calls",
            "How many calls does each service answer?",
            "Calls a second, over 5 minutes.",
            Query(_SERVICE.select(recording.REQUESTS), "{{job}}"),
            unit="reqps",
        ),
        share_of_jobs(
            "error_ratio",
            "Which service fails calls?",
            "Share of calls over an hour that ended in a fault of the service. The line is what the objective allows.",
            recording.request_errors("1h"),
            _SERVICE,
            red=1 - objectives.AVAILABILITY,
        ),
        share_of_jobs(
            "slow_ratio",
            "Which service is slow?",
            "Share of calls over an hour that took longer than their objective. The line is what the objective allows.",
            recording.request_slow("1h"),
            _SERVICE,
            red=1 - objectives.LATENCY,
        ),
        lines(
            "in_flight",
            "How many calls are being served?",
            "Calls that came and are not answered yet. A line that only rises means that nothing is answered.",
            Query(_JOBS.total(in_flight), "{{job}}"),
        ),
        share_of_jobs(
            "queues",
            "Is a queue filling up?",
            "Share of the places of the fullest queue of each service. Full queues refuse calls.",
            recording.QUEUE_USED,
            _SERVICE,
            red=limits.QUEUE_USED,
        ),
        share_of_jobs(
            "refused",
            "Are calls refused?",
            "Share of calls turned away because a queue was full; clients come back after a pause.",
            recording.REFUSED,
            _SERVICE,
            red=limits.CALLS_REFUSED,
        ),
    )


def _resources() -> tuple[Panel, ...]:
    reloads, day = reload_metrics(), 86_400
    files = f"{_SERVICE.select(catalogue.OPEN_FILES)} / {_SERVICE.select(catalogue.MAX_FILES)}"
    left = f"{_SERVICE.select(reloads.expiry)} - time()"
    by_source = _SERVICE.keep("job", "source")
    return (
        lines(
            "cpu",
            "How much does each service compute?",
            "Cores in use, all replicas together.",
            Query(_JOBS.rate(catalogue.CPU_SECONDS, WINDOW), "{{job}}"),
        ),
        lines(
            "memory",
            "How much memory does each replica hold?",
            "Resident memory of the largest replica of each service.",
            Query(_JOBS.largest(_SERVICE.select(catalogue.MEMORY_BYTES)), "{{job}}"),
            unit="bytes",
        ),
        lines(
            "files",
            "How many open files are left?",
            "Share of the file descriptors in use. Connections that are not closed use them up.",
            Query(_JOBS.largest(files), "{{job}}"),
            unit="percentunit",
            red=0.8,
            most=1,
        ),
        bars(
            "certificates",
            "How long do certificates last?",
            "Time until the certificate in use ends. Renewed files are taken up without a restart.",
            Query(_SERVICE.keep("job", "certificate").least(left), "{{job}} {{certificate}}"),
            unit="s",
            base=RED,
            steps=((limits.CERTIFICATE_LAST_DAYS * day, ORANGE), (limits.CERTIFICATE_DAYS * day, GREEN)),
            nothing="no TLS",
            width=6,
        ),
        lines(
            "reloads",
            "Are new certificates and tokens used?",
            "Files that changed and were taken up, and looks at files that cannot be used: then the old ones stay.",
            Query(by_source.rate(reloads.reloads, WINDOW), "{{job}} {{source}} taken up"),
            Query(by_source.rate(reloads.failures, WINDOW), "{{job}} {{source}} refused"),
            unit="ops",
            nothing="nothing to take up",
            width=6,
        ),
        lines(
            "restarts",
            "Does a replica restart again and again?",
            "Restarts within pods over an hour: processes that crashed, ran out of memory or were not alive.",
            Query(_JOBS.total(f"changes({_SERVICE.select(catalogue.START_TIME)}[1h])"), "{{job}}"),
            red=1,
            width=6,
        ),
        bars(
            "revisions",
            "Which code runs where?",
            "Replicas by revision. Two revisions of one service are an upgrade that has not ended.",
            Query(_SERVICE.keep("job", "revision").total(_SERVICE.select(build_info())), "{{job}} {{revision}}"),
            width=6,
        ),
    )


def _runs() -> tuple[Panel, ...]:
    runs, day = run_metrics(), "1d"
    failures = HERE.keep("stage", "launcher", "reason")
    return (
        bars(
            "stages",
            "Which stages of runs finish?",
            "Stages finished in the last day, as runs recorded them in the ledger.",
            Query(HERE.keep("stage").total(risen(HERE.select(runs.stages_finished), day)), "{{stage}}"),
        ),
        bars(
            "stage_failures",
            "Which stages fail, where and why?",
            "Stages failed in the last day by launcher and reason. A pod that was killed before it could tell is not "
            "here.",
            Query(failures.total(risen(HERE.select(runs.stage_failures), day)), "{{stage}} {{launcher}} {{reason}}"),
            steps=((1, RED),),
        ),
        bars(
            "gates",
            "What do gates and guards decide?",
            "Decisions of the last day: labels let through or not, trainings stopped by a guard, policies published.",
            Query(HERE.keep("outcome").total(risen(HERE.select(runs.gates), day)), "gate {{outcome}}"),
            Query(HERE.keep("guard").total(risen(HERE.select(runs.guard_stops), day)), "guard {{guard}}"),
            Query(HERE.total(risen(HERE.select(runs.policies_published), day)), "policies published"),
        ),
    )
