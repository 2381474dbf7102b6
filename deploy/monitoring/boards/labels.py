"""Label quality and the ledger that keeps the labels."""

from __future__ import annotations

from monitoring import limits
from monitoring.boards.board import HEALTH, HERE, WINDOW, Board, Variable
from monitoring.boards.panel import GREEN, ORANGE, RED, Panel, Query, stat_panel
from monitoring.boards.service import calls_section
from monitoring.catalogue import quality, quality_fact
from rlaif.oversight.metrics import ledger_metrics

UID = "rlaif-labels"
_OVERSIGHT = HERE.where(job="rlaif-oversight")
_BOUNDS = {"low": "low", "value": "", "high": "high"}


def labels() -> Board:
    """Whether labels are any good, over all and slice by slice, and whether the ledger holds."""
    slices = f'label_values({quality("order_inconsistency").name}{{namespace="$namespace"}}, slice)'
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
            "Do callers get answers?": calls_section("oversight", _OVERSIGHT),
        },
        variables=(Variable("slice", "slice", slices, many=True),),
    )


def _overall(statistic: str, bound: str = "value") -> str:
    # Each replica of oversight computes the same from the same ledger.
    return HERE.largest(HERE.select(quality(statistic), slice="", bound=bound))


def _interval(statistic: str, legend: str = "") -> tuple[Query, ...]:
    """The value of all labels and both ends of its interval."""
    return tuple(
        Query(_overall(statistic, bound), f"{legend} {words}".strip() or "value") for bound, words in _BOUNDS.items()
    )


def _sliced(statistic: str, legend: str = "") -> Query:
    select = HERE.select(quality(statistic), slice="=~$slice", bound="value")
    return Query(HERE.keep("slice").largest(select), f"{legend} {{{{slice}}}}".strip())


def _health() -> tuple[Panel, ...]:
    return (
        stat_panel(
            "agreement",
            "Do people agree with it?",
            _overall("human_agreement"),
            "Share of people's votes that the judge's labels equal, ties left out. Chance is one half.",
            unit="percentunit",
            base=RED,
            steps=((limits.HUMAN_AGREEMENT, GREEN),),
            nothing="no votes",
        ),
        stat_panel(
            "reviewed",
            "On how many labels?",
            HERE.largest(HERE.select(quality_fact("reviewed_labels"))),
            "Labels of the window that people voted on. With few of them intervals are wide and alerts stay silent.",
            base=ORANGE,
            steps=((100, GREEN),),
        ),
        stat_panel(
            "inconsistency",
            "Does order change its mind?",
            _overall("order_inconsistency"),
            "Decided comparisons on which the two presentation orders disagree.",
            unit="percentunit",
            steps=((limits.INCONSISTENT_LEAST, ORANGE), (limits.INCONSISTENT, RED)),
        ),
        stat_panel(
            "longer",
            "Does it prefer the longer?",
            _overall("longer_preferred"),
            "Comparisons of different length won by the longer response; one half is no preference.",
            unit="percentunit",
            base=ORANGE,
            steps=((0.3, GREEN), (limits.LONGER_PREFERRED, RED)),
        ),
        stat_panel(
            "abstentions",
            "How often does it not decide?",
            _overall("abstention_rate"),
            "Comparisons of the window without a verdict.",
            unit="percentunit",
            steps=((limits.ABSTENTIONS / 2, ORANGE), (limits.ABSTENTIONS, RED)),
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
    )


def _agreement() -> tuple[Panel, ...]:
    return (
        Panel(
            "agreement_interval",
            "How sure is the agreement?",
            "Agreement with people and its 95 % interval. The alert fires when even the upper end is below the line.",
            _interval("human_agreement"),
            "percentunit",
            steps=((limits.HUMAN_AGREEMENT, RED),),
            most=1,
        ),
        Panel(
            "agreement_slices",
            "Where do people disagree?",
            "Agreement by slice: a mean can hide chance level in one category.",
            (_sliced("human_agreement"),),
            "percentunit",
            kind="bars",
            base=RED,
            steps=((limits.HUMAN_AGREEMENT_IN_SLICE, GREEN),),
            least=0,
            most=1,
        ),
        Panel(
            "kappas",
            "How much of what is possible does it reach?",
            "Kappa of judge and people beside that among people, which is what can be asked for; among a panel's "
            "judges; and "
            "agreement with ties counted, and of the judge asked in one order only.",
            (
                Query(_overall("human_kappa"), "judge and people"),
                Query(_overall("people_kappa"), "among people"),
                Query(_overall("panel_kappa"), "among the panel"),
                Query(_overall("human_agreement_with_ties"), "agreement with ties"),
                Query(_overall("single_order_agreement"), "agreement, one order"),
            ),
            "percentunit",
        ),
    )


def _biases() -> tuple[Panel, ...]:
    return (
        Panel(
            "order",
            "Does the place decide?",
            "Comparisons whose orders disagree, with the interval; of those, the share that prefer whatever is shown "
            "first.",
            (*_interval("order_inconsistency"), Query(_overall("shown_first_share"), "first place preferred")),
            "percentunit",
            steps=((limits.INCONSISTENT, RED),),
            least=0,
            most=1,
        ),
        Panel(
            "length_preferred",
            "Does length decide?",
            "Comparisons of different length won by the longer response, with the interval; and the same of people, "
            "which "
            "is no bias.",
            (*_interval("longer_preferred"), Query(_overall("human_longer_preferred"), "people")),
            "percentunit",
            steps=((limits.LONGER_PREFERRED, RED),),
            least=0,
            most=1,
        ),
        Panel(
            "length_slope",
            "What does twice the length win?",
            "Log-odds of being preferred for each doubling of length, of judge and people. No line: the longer always "
            "wins.",
            (
                Query(_overall("verbosity_slope"), "judge"),
                Query(_overall("human_verbosity_slope"), "people"),
            ),
            "short",
            nothing="not known",
        ),
        Panel(
            "slices_order",
            "Where does order decide?",
            "Comparisons whose orders disagree, by slice.",
            (_sliced("order_inconsistency"),),
            "percentunit",
            kind="bars",
            steps=((limits.INCONSISTENT, RED),),
            least=0,
            most=1,
        ),
        Panel(
            "slices_abstention",
            "Where does it not decide?",
            "Comparisons without a verdict, by slice.",
            (_sliced("abstention_rate"),),
            "percentunit",
            kind="bars",
            steps=((limits.ABSTENTIONS, RED),),
            least=0,
            most=1,
        ),
        Panel(
            "slices_longer",
            "Where does length decide?",
            "Comparisons of different length won by the longer response, by slice.",
            (_sliced("longer_preferred"),),
            "percentunit",
            kind="bars",
            steps=((limits.LONGER_PREFERRED, RED),),
            least=0,
            most=1,
        ),
    )


def _calibration() -> tuple[Panel, ...]:
    return (
        Panel(
            "brier",
            "How far are its probabilities from people's votes?",
            "Brier score (0 perfect, .25 a coin) and log-loss in nats (.693 a coin), before and after calibration.",
            (
                Query(_overall("brier"), "Brier"),
                Query(_overall("raw_brier"), "Brier before calibration"),
                Query(_overall("nll"), "log-loss"),
                Query(_overall("raw_nll"), "log-loss before calibration"),
            ),
            "short",
            least=0,
        ),
        Panel(
            "ece",
            "Is it as often right as it is sure?",
            "Expected calibration error, before and after calibration; 0 means that nine of ten labels at 90 % are "
            "right.",
            (Query(_overall("ece"), "error"), Query(_overall("raw_ece"), "before calibration")),
            "percentunit",
            least=0,
        ),
        Panel(
            "entropy",
            "How undecided is it?",
            "Mean entropy of its probabilities, bits: 0 always certain, 1 never. Falling with the same agreement is "
            "overconfidence.",
            (Query(_overall("entropy_bits"), "entropy"),),
            "short",
            least=0,
            most=1,
        ),
    )


def _ledger() -> tuple[Panel, ...]:
    metrics = ledger_metrics()
    return (
        Panel(
            "recorded",
            "Are labels recorded?",
            "Labels a second appended, of the judge and of people; asked for again and answered from the ledger; and "
            "events.",
            (
                Query(_OVERSIGHT.keep("source").rate(metrics.labels_recorded, WINDOW), "recorded, {{source}}"),
                Query(_OVERSIGHT.rate(metrics.labels_answered, WINDOW), "answered"),
                Query(_OVERSIGHT.keep("kind").rate(metrics.events_recorded, WINDOW), "events, {{kind}}"),
            ),
            "short",
            least=0,
        ),
        Panel(
            "reviews",
            "How many labels did people give?",
            "People's labels imported in the last week.",
            (
                Query(
                    _OVERSIGHT.total(f"increase({_OVERSIGHT.select(metrics.labels_recorded, source='human')}[7d])"),
                    "people",
                ),
            ),
            "short",
            kind="bars",
            least=0,
        ),
        Panel(
            "append",
            "How long does recording take?",
            "Time to append a batch, waiting for other writers included.",
            (
                Query(_OVERSIGHT.quantile(0.5, metrics.append_seconds, WINDOW), "median"),
                Query(_OVERSIGHT.quantile(0.99, metrics.append_seconds, WINDOW), "99 %"),
            ),
            "s",
            least=0,
        ),
        Panel(
            "verified",
            "When was the ledger verified?",
            "Time since every hash was last recomputed, and how often that is done.",
            (
                Query(f"time() - {_OVERSIGHT.largest(_OVERSIGHT.select(metrics.verify_time))}", "ago"),
                Query(_OVERSIGHT.largest(_OVERSIGHT.select(metrics.verify_interval)), "done every"),
            ),
            "s",
            least=0,
        ),
        Panel(
            "work",
            "How long do checks of the ledger take?",
            "Seconds of the last verification and of the last computation of these statistics. Both read all of it.",
            (
                Query(_OVERSIGHT.largest(_OVERSIGHT.select(metrics.verify_seconds)), "verification"),
                Query(_OVERSIGHT.largest(_OVERSIGHT.select(quality_fact("compute_seconds"))), "label quality"),
            ),
            "s",
            least=0,
        ),
        Panel(
            "window",
            "How many labels do the statistics rest on, and how old are they?",
            "Comparisons of the window, those that people voted on, and seconds since the statistics were computed.",
            (
                Query(_OVERSIGHT.largest(_OVERSIGHT.select(quality_fact("labels"))), "comparisons"),
                Query(_OVERSIGHT.largest(_OVERSIGHT.select(quality_fact("reviewed_labels"))), "voted on"),
                Query(
                    f"time() - {_OVERSIGHT.largest(_OVERSIGHT.select(quality_fact('compute_timestamp_seconds')))}",
                    "seconds ago",
                ),
            ),
            "short",
            least=0,
        ),
    )
