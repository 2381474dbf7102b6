"""How label quality and calibrations look in a terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from rlaif.client.review import LabelQualityReport
from rlaif.core.calibration import Calibration
from rlaif.core.estimate import Estimate
from rlaif.core.reliability import ReliabilityBin

_TITLES: Final[Mapping[str, tuple[str, str]]] = {
    "human_agreement": ("agreement with people", "votes for one response; chance .5"),
    "human_agreement_with_ties": ("… ties counted", "a tie is an answer of its own"),
    "human_kappa": ("Cohen's κ with people", "0 chance, 1 always"),
    "people_kappa": ("Fleiss' κ among people", "what can be reached"),
    "panel_kappa": ("Fleiss' κ of the panel", "among its judges"),
    "single_order_agreement": ("agreement, one order", "what averaging the orders gains on"),
    "order_inconsistency": ("order inconsistency", "orders prefer different responses"),
    "shown_first_share": ("… that favour the first", ".5 no direction"),
    "abstention_rate": ("abstention", "comparisons without a verdict"),
    "entropy_bits": ("entropy", "bits; 0 certain, 1 undecided"),
    "brier": ("Brier score", "0 perfect, .25 a coin"),
    "nll": ("log-loss", "nats; .693 a coin"),
    "ece": ("calibration error", "confidence against agreement"),
    "raw_brier": ("… Brier before calibration", ""),
    "raw_nll": ("… log-loss before calibration", ""),
    "raw_ece": ("… error before calibration", ""),
    "verbosity_slope": ("verbosity slope", "log-odds per doubling of length"),
    "human_verbosity_slope": ("… of people", "no bias where both are alike"),
    "longer_preferred": ("longer preferred", "where lengths differ; .5 no preference"),
    "human_longer_preferred": ("… by people", "no bias where both are alike"),
}
_SLICE_COLUMNS: Final[Mapping[str, str]] = {
    "human_agreement": "agree",
    "human_kappa": "κ",
    "order_inconsistency": "order",
    "abstention_rate": "abstain",
    "ece": "ECE",
    "verbosity_slope": "length",
}


def quality_page(report: LabelQualityReport) -> RenderableType:
    """All statistics with their intervals, then the slices, then how reliable confidence is."""
    found: dict[str, dict[str, Estimate]] = {}
    for each in report.statistics.statistics:
        found.setdefault(each.slice, {})[each.statistic] = each.estimate
    head = Text(f"{report.num_labels} comparisons, {report.num_reviewed} of them voted on by people", "bold")
    parts: list[RenderableType] = [head, Text(""), _whole(found[""])]
    unknown = [name.replace("_", " ") for name, each in found[""].items() if each.value is None]
    if unknown:
        parts += [Text(f"not known: {', '.join(unknown)}", "dim")]
    if len(found) > 1:
        parts += [Text(""), _slices({name: each for name, each in found.items() if name})]
    for each_slice in report.statistics.reliability:
        if not each_slice.slice:
            parts += [Text(""), _reliability(each_slice.bins)]
    return Group(*parts)


def quality_json(report: LabelQualityReport) -> dict[str, Any]:
    """The report as plain values; null where it is not known."""
    return {
        "num_labels": report.num_labels,
        "num_reviewed": report.num_reviewed,
        "compute_time": report.compute_time.isoformat(),
        "statistics": [
            {
                "statistic": each.statistic,
                "slice": each.slice,
                "value": each.estimate.value,
                "low": each.estimate.low,
                "high": each.estimate.high,
                "num_labels": each.estimate.num_samples,
            }
            for each in report.statistics.statistics
        ],
        "reliability": [
            {
                "slice": each.slice,
                "low": held.low,
                "high": held.high,
                "num_labels": held.num_labels,
                "mean_confidence": held.mean_confidence,
                "accuracy": held.accuracy,
            }
            for each in report.statistics.reliability
            for held in each.bins
        ],
    }


def calibration_page(calibration: Calibration) -> RenderableType:
    """A calibration with its scores before and after."""
    fitted = f"temperature {calibration.temperature:.3f}" if calibration.method == "temperature" else "isotonic map"
    table = _table("", "before", "after")
    for title, name in (("Brier score", "brier"), ("log-loss", "nll"), ("calibration error", "ece")):
        before, after = getattr(calibration.before, name), getattr(calibration.after, name)
        table.add_row(title, f"{before:.4f}", f"{after:.4f}")
    return Group(
        Text(f"{calibration.constitution}, judge {calibration.key.judge_digest[:12]}", "bold"),
        Text(f"{fitted} on {calibration.num_labels} labels; {calibration.num_folds}-fold cross-validation:"),
        table,
    )


def _whole(estimates: Mapping[str, Estimate]) -> Table:
    table = _table("statistic", "value", "95 % interval", "pairs", "")
    for name, (title, meaning) in _TITLES.items():
        estimate = estimates[name]
        if estimate.value is not None:
            interval = "" if estimate.low is None else f"{estimate.low:.3f} to {estimate.high:.3f}"
            table.add_row(title, f"{estimate.value:.3f}", interval, str(estimate.num_samples), Text(meaning, "dim"))
    return table


def _slices(found: Mapping[str, Mapping[str, Estimate]]) -> Table:
    table = _table("slice", "labels", *_SLICE_COLUMNS.values())
    for name, estimates in found.items():
        cells = [_short(estimates[column]) for column in _SLICE_COLUMNS]
        table.add_row(Text(name), str(estimates["abstention_rate"].num_samples), *cells)
    return table


def _reliability(bins: Sequence[ReliabilityBin]) -> Table:
    table = _table("confidence", "pairs", "mean", "people agree")
    for held in bins:
        if held.mean_confidence is not None and held.accuracy is not None:
            table.add_row(
                f"{held.low:.2f} to {held.high:.2f}",
                str(held.num_labels),
                f"{held.mean_confidence:.3f}",
                f"{held.accuracy:.3f}",
            )
    return table


def _short(estimate: Estimate) -> str:
    return "" if estimate.value is None else f"{estimate.value:.3f}"


def _table(*titles: str) -> Table:
    table = Table(box=None, header_style="bold", pad_edge=False)
    for index, title in enumerate(titles):
        table.add_column(title, justify="left" if index == 0 or not title else "right")
    return table
