"""Counters of rare events, as a scraper sees them."""

from __future__ import annotations

from prometheus_client import CollectorRegistry

from rlaif.runtime.telemetry import RisingCounter


def test_what_happened_before_the_first_scrape_is_a_rise_at_the_second() -> None:
    registry = CollectorRegistry()
    stops = RisingCounter("stops", "Test.", ["guard"], registry=registry)
    alone = RisingCounter("alone", "Test.", registry=registry)

    def scrape() -> dict[str, float]:
        samples = [sample for metric in registry.collect() for sample in metric.samples]
        return {sample.labels.get("guard", ""): sample.value for sample in samples}

    stops.labels(guard="kl").inc()
    alone.inc(2)
    assert scrape() == {"kl": 0, "": 0}
    stops.labels(guard="length").inc()
    assert scrape() == {"kl": 1, "length": 0, "": 2}
    stops.labels(guard="kl").inc()
    assert scrape() == {"kl": 2, "length": 1, "": 2}
