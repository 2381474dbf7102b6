"""Alerts on labels and the ledger: made, recorded, whole, and any good."""

from __future__ import annotations

from monitoring import catalogue, limits
from monitoring.boards.board import Board
from monitoring.catalogue import quality, quality_fact
from monitoring.promql import Scope
from monitoring.rules import recording
from monitoring.rules.alert import Alert
from monitoring.timing import Timing
from rlaif.judge.metrics import judge_metrics
from rlaif.oversight.metrics import ledger_metrics
from rlaif.reward.metrics import reward_metrics


def label_alerts(scope: Scope, timing: Timing, *, judge: Board, reward: Board, labels: Board) -> list[Alert]:
    """From labels that do not come to labels that people would not give."""
    return [
        *_flow(scope, timing, judge, labels),
        *_doubts(scope, timing, judge),
        *_rewards(scope, timing, reward),
        *_quality(scope, timing, labels),
        *_ledger(scope, timing, labels),
    ]


def _flow(scope: Scope, timing: Timing, judge: Board, labels: Board) -> list[Alert]:
    metrics, ledger = judge_metrics(), ledger_metrics()
    jobs, window = scope.keep("job"), timing("10m")
    waiting = f"min_over_time({scope.select(catalogue.requests('judge').in_flight)}[{window}])"
    made = " or ".join(
        f"{jobs.rate(counter, window)} > 0" for counter in (metrics.labels, metrics.ledger_hits, metrics.texts)
    )
    kept = " or ".join(
        f"{scope.rate(counter, window)} > 0" for counter in (ledger.labels_recorded, ledger.labels_answered)
    )
    return [
        Alert(
            "RlaifLabelFlowStopped",
            f"{jobs.total(waiting)} > 0 unless on (namespace, job) ({made})",
            timing("5m"),
            "critical",
            "{{ $labels.job }} has calls and makes no labels",
            "Calls have been waiting at {{ $labels.job }} in {{ $labels.namespace }} for ten minutes and more, and "
            "none was answered: its engine is stuck.",
            judge.path_to("labels"),
        ),
        Alert(
            "RlaifLabelsNotRecorded",
            f"{scope.rate(metrics.labels, window)} > 0 unless on (namespace) ({kept})",
            timing("10m"),
            "critical",
            "Labels are made and not recorded",
            "Judges in {{ $labels.namespace }} make labels, and the ledger records none: they must not be trained on.",
            labels.path_to("recorded"),
        ),
    ]


def _doubts(scope: Scope, timing: Timing, judge: Board) -> list[Alert]:
    def labels(window: str, **matchers: str) -> str:
        return _enough(scope, scope.select(judge_metrics().labels, **matchers), timing(window))

    inconsistent = scope.select(recording.INCONSISTENT)
    usual = scope.largest(scope.select(quality("order_inconsistency"), slice="", bound="high"))
    risen = f"{inconsistent} > on (namespace) group_left () ({limits.INCONSISTENT_RISE} * {usual})"
    return [
        Alert(
            "RlaifAbstentionsHigh",
            f"{scope.select(recording.ABSTENTIONS)} > {limits.ABSTENTIONS} and {labels('30m')}",
            timing("15m"),
            "warning",
            "{{ $labels.job }} does not decide {{ $value | humanizePercentage }} of its labels",
            "{{ $labels.job }} in {{ $labels.namespace }} abstains more than it should: it no longer fits what it is "
            "asked. The panel says why it abstains.",
            judge.path_to("abstention_ratio"),
        ),
        Alert(
            "RlaifOrderInconsistent",
            f"({inconsistent} > {limits.INCONSISTENT} or {inconsistent} > {limits.INCONSISTENT_LEAST} and {risen}) "
            f"and {labels('30m', form='compare', outcome='!=abstain')}",
            timing("15m"),
            "warning",
            "Order decides {{ $value | humanizePercentage }} of the verdicts of {{ $labels.job }}",
            "Verdicts of {{ $labels.job }} in {{ $labels.namespace }} depend on which response is shown first, more "
            "than the gate allows or half as often again as in the last week.",
            judge.path_to("order"),
        ),
        Alert(
            "RlaifInjectionSpike",
            f"{scope.select(recording.INJECTIONS)} > {limits.INJECTIONS} and {labels('10m')}",
            timing("5m"),
            "warning",
            "{{ $value | humanizePercentage }} of the responses address {{ $labels.job }}",
            "Responses that {{ $labels.job }} in {{ $labels.namespace }} judges try to sway it: a policy that games "
            "its reward, or texts from outside.",
            judge.path_to("injections"),
        ),
    ]


def _enough(scope: Scope, counter: str, window: str) -> str:
    """Whether a share of what was counted in the window says something."""
    return f"{scope.keep('job').total(f'increase({counter}[{window}])')} >= {limits.LABELS_LEAST}"


def _rewards(scope: Scope, timing: Timing, reward: Board) -> list[Alert]:
    rewards = _enough(scope, scope.select(reward_metrics().rewards), timing("10m"))
    return [
        Alert(
            "RlaifRewardsFailing",
            f"{scope.select(recording.REWARDS_FAILED)} > {limits.REWARDS_FAILED} and {rewards}",
            timing("10m"),
            "warning",
            "{{ $value | humanizePercentage }} of the rewards are none",
            "Components of rewards in {{ $labels.namespace }} fail; completions without a reward are not trained on, "
            "and a training that misses too many stops.",
            reward.path_to("failed_ratio"),
        )
    ]


def _quality(scope: Scope, timing: Timing, labels: Board) -> list[Alert]:
    def overall(statistic: str, bound: str) -> str:
        # Replicas of oversight tell the same.
        return scope.largest(scope.select(quality(statistic), slice="", bound=bound))

    slices = scope.keep("slice").largest(scope.select(quality("human_agreement"), slice="!=", bound="high"))
    longer, people = overall("longer_preferred", "low"), overall("human_longer_preferred", "high")
    return [
        Alert(
            "RlaifHumanAgreementLow",
            f"{overall('human_agreement', 'high')} < {limits.HUMAN_AGREEMENT} "
            f"and {scope.largest(scope.select(quality_fact('reviewed_labels')))} >= {limits.REVIEWED_LEAST}",
            timing("10m"),
            "critical",
            "Judge and people agree at most {{ $value | humanizePercentage }}",
            "Even the upper end of the 95 % interval of agreement with people in {{ $labels.namespace }} is too low: "
            "do not train on these labels.",
            labels.path_to("agreement_interval"),
        ),
        Alert(
            "RlaifHumanAgreementLowInSlice",
            f"{slices} < {limits.HUMAN_AGREEMENT_IN_SLICE}",
            timing("10m"),
            "warning",
            "Judge and people agree at most {{ $value | humanizePercentage }} on {{ $labels.slice }}",
            "The upper end of the 95 % interval of agreement with people in {{ $labels.namespace }}, on {{ "
            "$labels.slice }}, is too low; the mean over all labels may hide it.",
            labels.path_to("agreement_slices"),
        ),
        Alert(
            "RlaifJudgePrefersLength",
            f"{longer} > {limits.LONGER_PREFERRED} unless on (namespace) {longer} <= on (namespace) {people}",
            timing("10m"),
            "warning",
            "The judge prefers the longer response at least {{ $value | humanizePercentage }} of the time",
            "Labels of the last week in {{ $labels.namespace }} prefer the longer response, and people do not as "
            "much: a policy trained on them learns to be long.",
            labels.path_to("length_preferred"),
        ),
    ]


def _ledger(scope: Scope, timing: Timing, labels: Board) -> list[Alert]:
    metrics = ledger_metrics()
    verified = scope.largest(scope.select(metrics.verify_time))
    interval = scope.largest(scope.select(metrics.verify_interval))
    return [
        Alert(
            "RlaifLedgerBroken",
            # Not the least: a replica that has not looked yet says -1.
            f"{scope.total(f'{scope.select(metrics.intact)} == bool 0')} > 0",
            "",
            "critical",
            "The ledger was altered",
            "The last verification of the ledger in {{ $labels.namespace }} found an event or label that is altered, "
            "missing or out of order. Stop training on it; keep the database as it is.",
            labels.path_to("ledger"),
        ),
        Alert(
            "RlaifLedgerVerificationLate",
            f"time() - {verified} > 2 * {interval}",
            timing("1h"),
            "warning",
            "The ledger was not verified for too long",
            "No verification of the ledger in {{ $labels.namespace }} has ended for more than twice the time between "
            "two.",
            labels.path_to("verified"),
        ),
    ]
