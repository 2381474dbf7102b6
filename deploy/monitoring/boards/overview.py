"""The whole installation on one page."""

from __future__ import annotations

from monitoring import catalogue, limits, objectives
from monitoring.boards.board import HEALTH, HERE, WINDOW, Board, Variable
from monitoring.boards.panel import GREEN, ORANGE, RED, Panel, Query, stat_panel
from monitoring.promql import either
from monitoring.rules import recording
from rlaif.oversight.metrics import ledger_metrics, run_metrics
from rlaif.runtime.reloading import reload_metrics
from rlaif.runtime.telemetry import build_info

UID = "rlaif-overview"
_SERVICE = HERE.where(job="=~$job")
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
            Variable("job", "service", 'label_values(up{namespace="$namespace",job=~"rlaif-.*"}, job)', many=True),
        ),
    )


def _health() -> tuple[Panel, ...]:
    ready = either(*(HERE.select(catalogue.requests(service).ready) for service in catalogue.SERVICES))
    up = HERE.select(catalogue.UP, job="=~rlaif-.*")
    return (
        stat_panel(
            "up",
            "Are all replicas up?",
            f"sum({up}) / count({up})",
            "Share of the targets that Prometheus can read. Below 1 a process is gone or its metrics port is closed.",
            unit="percentunit",
            base=RED,
            steps=((1, GREEN),),
        ),
        stat_panel(
            "ready",
            "Do all of them take calls?",
            f"min({ready})",
            "Lowest readiness of any replica: its health says SERVING. A model that loads is not ready yet.",
            words={1: ("yes", GREEN), 0: ("not all", RED)},
            base=RED,
            steps=((1, GREEN),),
        ),
        stat_panel(
            "errors",
            "How many calls fail?",
            f"max({HERE.select(recording.request_errors('5m'))})",
            "Worst service: share of its calls of the last 5 minutes that it failed. What callers get wrong does not "
            "count.",
            unit="percentunit",
            steps=((1 - objectives.AVAILABILITY, ORANGE), (0.05, RED)),
        ),
        stat_panel(
            "alerts",
            "How many alerts fire?",
            f"count({HERE.select(catalogue.ALERTS, alertname='=~Rlaif.*', alertstate='firing')})",
            "Alerts of this installation that fire now; the list is in Alertmanager, what to do in the runbooks.",
            steps=((1, RED),),
            nothing="0",
        ),
        stat_panel(
            "ledger",
            "Is the ledger whole?",
            f"min({HERE.select(ledger_metrics().intact)})",
            "What the last verification of every hash found.",
            base=ORANGE,
            steps=((0, RED), (1, GREEN)),
            words={1: ("whole", GREEN), 0: ("BROKEN", RED), -1: ("not verified yet", ORANGE)},
        ),
        stat_panel(
            "agreement",
            "Do people agree with the judge?",
            HERE.least(HERE.select(catalogue.quality("human_agreement"), slice="", bound="value")),
            "Share of people's votes that the judge's labels equal; chance is one half. Nothing is shown without "
            "votes.",
            unit="percentunit",
            base=RED,
            steps=((limits.HUMAN_AGREEMENT, GREEN),),
            nothing="no votes",
        ),
    )


def _calls() -> tuple[Panel, ...]:
    requests = [catalogue.requests(service) for service in catalogue.SERVICES]
    in_flight = either(*(_SERVICE.select(each.in_flight) for each in requests))
    return (
        Panel(
            "calls",
            "How many calls does each service answer?",
            "Calls a second, over 5 minutes.",
            (Query(_SERVICE.select(recording.REQUESTS), "{{job}}"),),
            "reqps",
        ),
        Panel(
            "error_ratio",
            "Which service fails calls?",
            "Share of calls over an hour that ended in a fault of the service. The line is what the objective allows.",
            (Query(_SERVICE.select(recording.request_errors("1h")), "{{job}}"),),
            "percentunit",
            steps=((1 - objectives.AVAILABILITY, RED),),
            least=0,
        ),
        Panel(
            "slow_ratio",
            "Which service is slow?",
            "Share of calls over an hour that took longer than their objective. The line is what the objective allows.",
            (Query(_SERVICE.select(recording.request_slow("1h")), "{{job}}"),),
            "percentunit",
            steps=((1 - objectives.LATENCY, RED),),
            least=0,
        ),
        Panel(
            "in_flight",
            "How many calls are being served?",
            "Calls that came and are not answered yet. A line that only rises means that nothing is answered.",
            (Query(_JOBS.total(in_flight), "{{job}}"),),
            "short",
            least=0,
        ),
        Panel(
            "queues",
            "Is a queue filling up?",
            "Share of the places of the fullest queue of each service. Full queues refuse calls.",
            (Query(_SERVICE.select(recording.QUEUE_USED), "{{job}}"),),
            "percentunit",
            steps=((limits.QUEUE_USED, RED),),
            least=0,
        ),
        Panel(
            "refused",
            "Are calls refused?",
            "Share of calls turned away because a queue was full; clients come back after a pause.",
            (Query(_SERVICE.select(recording.REFUSED), "{{job}}"),),
            "percentunit",
            steps=((limits.CALLS_REFUSED, RED),),
            least=0,
        ),
    )


def _resources() -> tuple[Panel, ...]:
    reloads = reload_metrics()
    files = f"{_SERVICE.select(catalogue.OPEN_FILES)} / {_SERVICE.select(catalogue.MAX_FILES)}"
    left = f"{_SERVICE.select(reloads.expiry)} - time()"
    day = 86_400
    by_source = _SERVICE.keep("job", "source")
    return (
        Panel(
            "cpu",
            "How much does each service compute?",
            "Cores in use, all replicas together.",
            (Query(_JOBS.rate(catalogue.CPU_SECONDS, WINDOW), "{{job}}"),),
            "short",
            least=0,
        ),
        Panel(
            "memory",
            "How much memory does each replica hold?",
            "Resident memory of the largest replica of each service.",
            (Query(_JOBS.largest(_SERVICE.select(catalogue.MEMORY_BYTES)), "{{job}}"),),
            "bytes",
            least=0,
        ),
        Panel(
            "files",
            "How many open files are left?",
            "Share of the file descriptors in use. Connections that are not closed use them up.",
            (Query(_JOBS.largest(files), "{{job}}"),),
            "percentunit",
            steps=((0.8, RED),),
            least=0,
            most=1,
        ),
        Panel(
            "certificates",
            "How long do certificates last?",
            "Time until the certificate in use ends. Renewed files are taken up without a restart.",
            (Query(_SERVICE.keep("job", "certificate").least(left), "{{job}} {{certificate}}"),),
            "s",
            kind="bars",
            base=RED,
            steps=((limits.CERTIFICATE_LAST_DAYS * day, ORANGE), (limits.CERTIFICATE_DAYS * day, GREEN)),
            nothing="no TLS",
        ),
        Panel(
            "reloads",
            "Are changed certificates and tokens taken up?",
            "Files that changed and were taken up, and looks at files that cannot be used: then the old ones stay.",
            (
                Query(by_source.rate(reloads.reloads, WINDOW), "{{job}} {{source}} taken up"),
                Query(by_source.rate(reloads.failures, WINDOW), "{{job}} {{source}} refused"),
            ),
            "ops",
            least=0,
            nothing="nothing to take up",
        ),
        Panel(
            "revisions",
            "Which code runs where?",
            "Replicas by revision. Two revisions of one service are an upgrade that has not ended.",
            (
                Query(_SERVICE.keep("job", "revision").total(_SERVICE.select(build_info())), "{{job}} {{revision}}"),
                Query(
                    f"time() - {_JOBS.largest(_SERVICE.select(catalogue.START_TIME))}", "{{job}} seconds since a start"
                ),
            ),
            "short",
            kind="table",
        ),
    )


def _runs() -> tuple[Panel, ...]:
    runs, day = run_metrics(), "1d"
    failures = HERE.keep("stage", "launcher", "reason")
    return (
        Panel(
            "stages",
            "Which stages of runs finish?",
            "Stages finished in the last day, as runs recorded them in the ledger.",
            (Query(HERE.keep("stage").total(f"increase({HERE.select(runs.stages_finished)}[{day}])"), "{{stage}}"),),
            "short",
            kind="bars",
        ),
        Panel(
            "stage_failures",
            "Which stages fail, where and why?",
            "Stages failed in the last day by launcher and reason. A pod that was killed before it could tell is not "
            "here.",
            (
                Query(
                    failures.total(f"increase({HERE.select(runs.stage_failures)}[{day}])"),
                    "{{stage}} {{launcher}} {{reason}}",
                ),
            ),
            "short",
            kind="bars",
            steps=((1, RED),),
        ),
        Panel(
            "gates",
            "What do gates and guards decide?",
            "Decisions of the last day: labels let through or not, trainings stopped by a guard, policies published.",
            (
                Query(HERE.keep("outcome").total(f"increase({HERE.select(runs.gates)}[{day}])"), "gate {{outcome}}"),
                Query(HERE.keep("guard").total(f"increase({HERE.select(runs.guard_stops)}[{day}])"), "guard {{guard}}"),
                Query(HERE.total(f"increase({HERE.select(runs.policies_published)}[{day}])"), "policies published"),
            ),
            "short",
            kind="bars",
        ),
    )
