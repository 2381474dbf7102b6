"""Label quality and the ledger that keeps the labels."""

from __future__ import annotations

from monitoring import limits
from monitoring.boards import common
from monitoring.boards.board import HEALTH, HERE, WINDOW, Board, Variable
from monitoring.boards.common import bars, lines, spread
from monitoring.boards.panel import GREEN, ORANGE, RED, Panel, Query
from monitoring.catalogue import quality, quality_fact
from rlaif.oversight.metrics import ledger_metrics

UID = "rlaif-labels"
_OVERSIGHT = HERE.where(job="rlaif-oversight")
_BOUNDS = {"low": "low", "value": "", "high": "high"}


def labels() -> Board:
    """Whether labels are any good, over all and slice by slice, and whether the ledger holds."""
    return Board(
        uid=UID,
        title="RLAIF / Label quality",
        description="Over the labels of the last week: agreement with people, biases, calibration; definitions are in "
        "docs/label-quality.md.",
        sections={
            HEALTH: _health(),
            "Do people agree with the judge?": _agreement(),
            "Is the judge biased?": _biases(),
            "Do its probabilities mean what they say?": _calibration(),
            "Is everything kept?": _ledger(),
            "Do callers get answers?": common.calls_section("oversight", _OVERSIGHT),
        },
        variables=(Variable.of("slice", "slice", quality("order_inconsistency"), "slice"),),
    )


def _overall(statistic: str, bound: str = "value") -> str:
    # Each replica of oversight computes the same from the same ledger.
    return HERE.largest(HERE.select(quality(statistic), slice="", bound=bound))


def _interval(statistic: str) -> tuple[Query, ...]:
    """The value of all labels and both ends of its interval."""
    return tuple(Query(_overall(statistic, bound), words or "value") for bound, words in _BOUNDS.items())


def _by_slice(key: str, question: str, description: str, statistic: str, *, limit: float, low: bool = False) -> Panel:
    """A share of each slice, red on the wrong side of its limit."""
    shares = HERE.select(quality(statistic), slice="=~$slice", bound="value")
    return bars(
        key,
        question,
        description,
        Query(HERE.keep("slice").largest(shares), "{{slice}}"),
        unit="percentunit",
        base=RED if low else GREEN,
        steps=((limit, GREEN if low else RED),),
        most=1,
    )


def _health() -> tuple[Panel, ...]:
    return (
        common.agreement("Do people agree with it?"),
        common.number(
            "reviewed",
            "On how many labels?",
            HERE.largest(HERE.select(quality_fact("reviewed_labels"))),
            "Labels of the window that people voted on. With few of them intervals are wide and alerts stay silent.",
            base=ORANGE,
            steps=((100, GREEN),),
        ),
        common.bad_share(
            "inconsistency",
            "Does order change its mind?",
            _overall("order_inconsistency"),
            "Decided comparisons on which the two presentation orders disagree.",
            orange=limits.INCONSISTENT_LEAST,
            red=limits.INCONSISTENT,
        ),
        common.number(
            "longer",
            "Does it prefer the longer?",
            _overall("longer_preferred"),
            "Comparisons of different length won by the longer response; one half is no preference.",
            unit="percentunit",
            base=ORANGE,
            steps=((0.3, GREEN), (limits.LONGER_PREFERRED, RED)),
        ),
        common.bad_share(
            "abstentions",
            "How often does it not decide?",
            _overall("abstention_rate"),
            "Comparisons of the window without a verdict.",
            orange=limits.ABSTENTIONS / 2,
            red=limits.ABSTENTIONS,
        ),
        common.ledger(),
    )


def _agreement() -> tuple[Panel, ...]:
    return (
        lines(
            "agreement_interval",
            "How sure is the agreement?",
            "Agreement with people and its 95 % interval. The alert fires when even the upper end is below the line.",
            *_interval("human_agreement"),
            unit="percentunit",
            red=limits.HUMAN_AGREEMENT,
            least=None,
            most=1,
        ),
        _by_slice(
            "agreement_slices",
            "Where do people disagree?",
            "Agreement by slice: a mean can hide chance level in one category.",
            "human_agreement",
            limit=limits.HUMAN_AGREEMENT_IN_SLICE,
            low=True,
        ),
        lines(
            "kappas",
            "How much of what is possible does it reach?",
            "Kappa of judge and people beside that among people, which is what can be asked for; among a panel's "
            "judges; and agreement with ties counted, and of the judge asked in one order only.",
            Query(_overall("human_kappa"), "judge and people"),
            Query(_overall("people_kappa"), "among people"),
            Query(_overall("panel_kappa"), "among the panel"),
            Query(_overall("human_agreement_with_ties"), "agreement with ties"),
            Query(_overall("single_order_agreement"), "agreement, one order"),
            unit="percentunit",
            least=None,
        ),
    )


def _biases() -> tuple[Panel, ...]:
    return (
        lines(
            "order",
            "Does the place decide?",
            "Comparisons whose orders disagree, with the interval; of those, the share that prefer whatever is shown "
            "first.",
            *_interval("order_inconsistency"),
            Query(_overall("shown_first_share"), "first place preferred"),
            unit="percentunit",
            red=limits.INCONSISTENT,
            most=1,
        ),
        lines(
            "length_preferred",
            "Does length decide?",
            "Comparisons of different length won by the longer response, with the interval; and the same of people, "
            "which is no bias.",
            *_interval("longer_preferred"),
            Query(_overall("human_longer_preferred"), "people"),
            unit="percentunit",
            red=limits.LONGER_PREFERRED,
            most=1,
        ),
        lines(
            "length_slope",
            "What does twice the length win?",
            "Log-odds of being preferred for each doubling of length, of judge and people. No line: the longer always "
            "wins.",
            Query(_overall("verbosity_slope"), "judge"),
            Query(_overall("human_verbosity_slope"), "people"),
            least=None,
            nothing="not known",
        ),
        _by_slice(
            "slices_order",
            "Where does order decide?",
            "Comparisons whose orders disagree, by slice.",
            "order_inconsistency",
            limit=limits.INCONSISTENT,
        ),
        _by_slice(
            "slices_abstention",
            "Where does it not decide?",
            "Comparisons without a verdict, by slice.",
            "abstention_rate",
            limit=limits.ABSTENTIONS,
        ),
        _by_slice(
            "slices_longer",
            "Where does length decide?",
            "Comparisons of different length won by the longer response, by slice.",
            "longer_preferred",
            limit=limits.LONGER_PREFERRED,
        ),
    )


def _calibration() -> tuple[Panel, ...]:
    return (
        lines(
            "brier",
            "How far are its probabilities from people's votes?",
            "Brier score (0 perfect, .25 a coin) and log-loss in nats (.693 a coin), before and after calibration.",
            Query(_overall("brier"), "Brier"),
            Query(_overall("raw_brier"), "Brier before calibration"),
            Query(_overall("nll"), "log-loss"),
            Query(_overall("raw_nll"), "log-loss before calibration"),
        ),
        lines(
            "ece",
            "Is it as often right as it is sure?",
            "Expected calibration error, before and after calibration; 0 means that nine of ten labels at 90 % are "
            "right.",
            Query(_overall("ece"), "error"),
            Query(_overall("raw_ece"), "before calibration"),
            unit="percentunit",
        ),
        lines(
            "entropy",
            "How undecided is it?",
            "Mean entropy of its probabilities, bits: 0 always certain, 1 never. Falling with the same agreement is "
            "overconfidence.",
            Query(_overall("entropy_bits"), "entropy"),
            most=1,
        ),
    )


def _ledger() -> tuple[Panel, ...]:
    metrics = ledger_metrics()

    def newest(select: str) -> str:
        return _OVERSIGHT.largest(select)

    human = _OVERSIGHT.select(metrics.labels_recorded, source="human")
    computed = _OVERSIGHT.select(quality_fact("compute_timestamp_seconds"))
    return (
        lines(
            "recorded",
            "Are labels recorded?",
            "Labels a second appended, of the judge and of people; asked for again and answered from the ledger; and "
            "events.",
            Query(_OVERSIGHT.keep("source").rate(metrics.labels_recorded, WINDOW), "recorded, {{source}}"),
            Query(_OVERSIGHT.rate(metrics.labels_answered, WINDOW), "answered"),
            Query(_OVERSIGHT.keep("kind").rate(metrics.events_recorded, WINDOW), "events, {{kind}}"),
        ),
        bars(
            "reviews",
            "How many labels did people give?",
            "People's labels imported in the last week.",
            Query(_OVERSIGHT.total(f"increase({human}[7d])"), "people"),
        ),
        lines(
            "append",
            "How long does recording take?",
            "Time to append a batch, waiting for other writers included.",
            *spread(_OVERSIGHT, metrics.append_seconds),
            unit="s",
        ),
        lines(
            "verified",
            "When was the ledger verified?",
            "Time since every hash was last recomputed, and how often that is done.",
            Query(f"time() - {newest(f'({_OVERSIGHT.select(metrics.verify_time)} > 0)')}", "ago"),
            Query(newest(_OVERSIGHT.select(metrics.verify_interval)), "done every"),
            unit="s",
            nothing="not yet",
        ),
        lines(
            "work",
            "How long do checks of the ledger take?",
            "Seconds of the last verification and of the last computation of these statistics. Both read all of it.",
            Query(newest(_OVERSIGHT.select(metrics.verify_seconds)), "verification"),
            Query(newest(_OVERSIGHT.select(quality_fact("compute_seconds"))), "label quality"),
            unit="s",
        ),
        lines(
            "window",
            "How many labels do the statistics rest on, and how old are they?",
            "Comparisons of the window, those that people voted on; on the right, time since they were computed.",
            Query(newest(_OVERSIGHT.select(quality_fact("labels"))), "comparisons"),
            Query(newest(_OVERSIGHT.select(quality_fact("reviewed_labels"))), "voted on"),
            Query(f"time() - {newest(computed)}", "computed ago", "s"),
        ),
    )
