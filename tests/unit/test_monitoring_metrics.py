"""What the code tells Prometheus: well named, and all of it known to dashboards and rules."""

from __future__ import annotations

import re

from monitoring.catalogue import TARGET_LABELS, all_series
from rlaif.reward.metrics import reward_metrics
from rlaif.reward.scoring import Reward
from rlaif.runtime.telemetry import OTHER, REGISTRY, BoundedValues, Follower

UNITS = ("seconds", "bytes", "ratio", "nats", "bits", "tokens", "prompts", "completions", "inputs", "gpus", "score")
PLAIN = re.compile(
    r"rlaif_(build_info|\w+_requests_in_flight|training_\w+|sampler_(desired_)?policy_version)|rlaif_label_quality_\w+"
)


def test_names_say_whose_they_are_and_in_which_unit() -> None:
    for name, series in all_series().items():
        assert re.fullmatch(r"rlaif_[a-z]+(_[a-z]+)*", name), name
        assert (series.kind == "counter") == name.endswith("_total"), name
        if series.kind != "counter" and not PLAIN.fullmatch(name):
            assert name.endswith(UNITS), name


def test_no_label_has_the_name_of_one_that_prometheus_sets() -> None:
    for name, series in all_series().items():
        assert not series.labels & TARGET_LABELS, name


def test_every_metric_that_is_registered_is_known_to_dashboards_and_rules() -> None:
    known = set(all_series())
    told = {f"{each.name}_total" if each.type == "counter" else each.name for each in REGISTRY.collect()}
    # Tests of the server serve services of other names.
    whose = re.compile(r"rlaif_(sampler|judge|reward|oversight|training|runtime|label_quality|build)_")
    assert {name for name in told if whose.match(name)} <= known


def test_failures_of_rewards_are_told_by_the_names_in_the_settings() -> None:
    def told() -> float:
        labels = {"component": "judge", "outcome": "abstained"}
        return REGISTRY.get_sample_value("rlaif_reward_rewards_total", labels) or 0.0

    before = told()
    reward_metrics().count([Reward((), failure_reason="ABSTAINED", failed_component="judge")])
    assert told() == before + 1


def test_values_that_others_write_are_bounded() -> None:
    value = BoundedValues(2, pattern=re.compile(r"[a-z]+"))
    assert [value(each) for each in ("one", "two", "three", "one", "no value!", None, 5)] == [
        "one",
        "two",
        OTHER,
        "one",
        OTHER,
        OTHER,
        OTHER,
    ]


def test_a_counter_follows_a_total_that_is_kept_elsewhere() -> None:
    from prometheus_client import CollectorRegistry, Counter

    registry, total = CollectorRegistry(), 5.0
    follow = Follower(Counter("followed", "Test.", registry=registry), lambda: total)
    follow()
    total = 7.5
    follow()
    follow()
    assert registry.get_sample_value("followed_total") == 7.5
