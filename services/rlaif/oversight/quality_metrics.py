"""Label quality as Prometheus series: a scrape reads what was computed last and asks for what is newer."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Final

from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from rlaif.core.errors import RlaifError
from rlaif.oversight.quality import QualityAnswer, QualityQuery, QualityReader
from rlaif.oversight.records import now_us
from rlaif.oversight.settings import QualitySettings
from rlaif.runtime.logging import EventLogger
from rlaif.runtime.telemetry import REGISTRY

_log = EventLogger(__name__)

MAX_SLICES = 20
_DIMENSIONS = ("constitution", "category")
_PATIENCE = 10
_LONGEST_SECONDS = 3600.0

SERIES: Final = {
    "abstention_rate": ("rlaif_label_quality_abstention_ratio", "Comparisons without a verdict."),
    "brier": ("rlaif_label_quality_brier_score", "Mean squared error of P(first) against people's votes."),
    "ece": ("rlaif_label_quality_calibration_error_ratio", "Expected calibration error against people's votes."),
    "entropy_bits": ("rlaif_label_quality_entropy_bits", "Mean binary entropy of P(first)."),
    "human_agreement": ("rlaif_label_quality_human_agreement_ratio", "People's votes the judge agrees with, no ties."),
    "human_agreement_with_ties": (
        "rlaif_label_quality_human_agreement_with_ties_ratio",
        "People's votes the judge agrees with, a tie being an answer.",
    ),
    "human_kappa": ("rlaif_label_quality_human_kappa_ratio", "Cohen's kappa of the judge and people."),
    "human_longer_preferred": (
        "rlaif_label_quality_human_longer_preferred_ratio",
        "Pairs of different length on which people prefer the longer response.",
    ),
    "human_verbosity_slope": (
        "rlaif_label_quality_human_verbosity_slope_nats",
        "Log-odds that people prefer a response, per doubling of its length.",
    ),
    "longer_preferred": (
        "rlaif_label_quality_longer_preferred_ratio",
        "Decided comparisons of different length on which the judge prefers the longer response.",
    ),
    "nll": ("rlaif_label_quality_log_loss_nats", "Log-loss of P(first) against people's votes."),
    "order_inconsistency": (
        "rlaif_label_quality_order_inconsistency_ratio",
        "Decided comparisons on which the two presentation orders disagree.",
    ),
    "panel_kappa": ("rlaif_label_quality_panel_kappa_ratio", "Fleiss' kappa among the judges of a panel."),
    "people_kappa": ("rlaif_label_quality_people_kappa_ratio", "Fleiss' kappa among people."),
    "raw_brier": ("rlaif_label_quality_raw_brier_score", "Brier score before calibration."),
    "raw_ece": ("rlaif_label_quality_raw_calibration_error_ratio", "Calibration error before calibration."),
    "raw_nll": ("rlaif_label_quality_raw_log_loss_nats", "Log-loss before calibration."),
    "shown_first_share": (
        "rlaif_label_quality_shown_first_ratio",
        "Inconsistent comparisons that prefer whatever is shown first.",
    ),
    "single_order_agreement": (
        "rlaif_label_quality_single_order_agreement_ratio",
        "Agreement with people of the judge asked in one order only.",
    ),
    "verbosity_slope": (
        "rlaif_label_quality_verbosity_slope_nats",
        "Log-odds that the judge prefers a response, per doubling of its length.",
    ),
}
"""Series of each statistic, labelled by slice (bounded) and bound: value, low and high of the 95 % interval."""


class QualityCollector(Collector):
    """The series of the answer published last. What is not known has no series."""

    def __init__(self) -> None:
        self._answer: QualityAnswer | None = None
        self._waiting: set[asyncio.Event] = set()

    def publish(self, answer: QualityAnswer) -> None:
        """Shows this answer from now on."""
        self._answer = answer

    def subscribe(self, scraped: asyncio.Event) -> None:
        """Sets this event at every scrape; the series are there from the first subscription on."""
        if not self._waiting:
            REGISTRY.register(self)
        self._waiting.add(scraped)

    def unsubscribe(self, scraped: asyncio.Event) -> None:
        """Sets it no more; with the last subscription the series go."""
        self._waiting.discard(scraped)
        if not self._waiting:
            REGISTRY.unregister(self)
            self._answer = None

    def describe(self) -> Iterator[Metric]:
        yield from self._families().values()
        yield from _facts(None)

    def collect(self) -> Iterator[Metric]:
        for scraped in self._waiting:
            scraped.set()
        families = self._families()
        if self._answer is not None:
            for each in self._answer.statistics.statistics:
                bounds = {"value": each.estimate.value, "low": each.estimate.low, "high": each.estimate.high}
                for bound, value in bounds.items():
                    if value is not None:
                        families[each.statistic].add_metric([each.slice, bound], value)
        yield from families.values()
        yield from _facts(self._answer)

    @staticmethod
    def _families() -> dict[str, GaugeMetricFamily]:
        return {
            statistic: GaugeMetricFamily(name, text, labels=["slice", "bound"])
            for statistic, (name, text) in SERIES.items()
        }


collector = QualityCollector()


async def refresh(reader: QualityReader, settings: QualitySettings) -> None:
    """Publishes the label quality of the window, as long as somebody scrapes; returns only by cancellation."""
    scraped = asyncio.Event()
    collector.subscribe(scraped)
    head, computed_us, pause = -1, 0, settings.refresh_seconds
    try:
        while True:
            await scraped.wait()
            scraped.clear()
            try:
                newest = await reader.head()
                if newest == head and now_us() - computed_us < _LONGEST_SECONDS * 1e6:
                    continue
                answer = await reader.answer(_window(settings))
            except RlaifError as error:
                _log.warning("label quality cannot be computed", reason=error.reason)
            except Exception:  # noqa: BLE001 - what failed once must not end the looking
                _log.exception("label quality cannot be computed")
            else:
                collector.publish(answer)
                head, computed_us = newest, answer.compute_time_us
                pause = max(settings.refresh_seconds, _PATIENCE * answer.seconds)
            await asyncio.sleep(pause)
    finally:
        collector.unsubscribe(scraped)


def _window(settings: QualitySettings) -> QualityQuery:
    return QualityQuery(
        start_us=now_us() - int(settings.window_hours * 3600e6),
        dimensions=_DIMENSIONS,
        max_slices=MAX_SLICES,
        max_labels=settings.max_labels,
    )


def _facts(answer: QualityAnswer | None) -> Iterator[Metric]:
    labels = GaugeMetricFamily("rlaif_label_quality_labels", "Comparisons of the window that were looked at.")
    reviewed = GaugeMetricFamily("rlaif_label_quality_reviewed_labels", "Comparisons among them that people voted on.")
    seconds = GaugeMetricFamily("rlaif_label_quality_compute_seconds", "Time the last computation took.")
    moment = GaugeMetricFamily("rlaif_label_quality_compute_timestamp_seconds", "When it was done.")
    if answer is not None:
        labels.add_metric([], answer.num_labels)
        reviewed.add_metric([], answer.num_reviewed)
        seconds.add_metric([], answer.seconds)
        moment.add_metric([], answer.compute_time_us / 1e6)
    yield from (labels, reviewed, seconds, moment)
