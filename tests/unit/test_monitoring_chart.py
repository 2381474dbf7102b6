"""The chart installs rules that know their own namespace, and dashboards that Grafana's sidecar finds."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from chart_fixtures import CHART, changed, of_kind, read_profile, render
from monitoring.boards import boards
from monitoring.rules.groups import SCOPE, alerts
from monitoring.rules.thresholds import thresholds
from monitoring.timing import Timing
from rlaif.runtime.telemetry import SECONDS_BUCKETS

ON = {"monitoring.rules.enabled": True, "monitoring.dashboards.enabled": True}


def installed(*, namespace: str = "rlaif", **changes: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """(the PrometheusRule, the ConfigMap with the dashboards) of an installation."""
    values = changed(read_profile("trial-cpu"), ON | {f"monitoring.{key}": value for key, value in changes.items()})
    manifests = render(values, namespace=namespace)
    [rule] = of_kind(manifests, "PrometheusRule").values()
    return rule, of_kind(manifests, "ConfigMap")["rlaif-dashboards"]


def rules_in(rule: dict[str, Any]) -> list[dict[str, Any]]:
    return [each for group in rule["spec"]["groups"] for each in group["rules"]]


def shipped_rules() -> list[dict[str, Any]]:
    read = [yaml.safe_load(path.read_text(encoding="utf-8")) for path in (CHART / "rules").glob("*.yaml")]
    return [rule for each in read for group in each["groups"] for rule in group["rules"]]


def _name(rule: dict[str, Any]) -> str:
    parts = (rule.get("record"), rule.get("alert"), rule.get("labels", {}).get("window"))
    return " ".join(part for part in parts if part)


def test_rules_ask_about_their_own_namespace_alone() -> None:
    rule, _ = installed(namespace="team-a")
    for each in rules_in(rule):
        assert set(re.findall(r'namespace="([^"]*)"', each["expr"])) == {"team-a"}, each
    assert len(rules_in(rule)) == len(rules_in(installed()[0]))
    assert rule["metadata"]["labels"]["app.kubernetes.io/part-of"] == "rlaif"


@pytest.mark.skipif(
    shutil.which("promtool") is None, reason="promtool is not installed; Debian's package prometheus has it"
)
def test_prometheus_takes_the_rules_as_they_are_installed(tmp_path: Path) -> None:
    path = tmp_path / "rules.yaml"
    rule, _ = installed(namespace="team-a", **{"rules.grafanaUrl": "https://grafana.example.com/"})
    path.write_text(yaml.safe_dump(rule["spec"]), encoding="utf-8")
    done = subprocess.run(["promtool", "check", "rules", str(path)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_alerts_lead_to_ones_own_runbooks_and_grafana() -> None:
    rule, _ = installed(
        **{"rules.grafanaUrl": "https://grafana.example.com/", "rules.runbookUrl": "https://wiki/rlaif"}
    )
    [down] = [each for each in rules_in(rule) if each.get("alert") == "RlaifServiceDown"]
    assert down["annotations"]["runbook_url"] == "https://wiki/rlaif#rlaifservicedown"
    url = down["annotations"]["dashboard_url"]
    assert url.startswith("https://grafana.example.com/d/rlaif-overview?viewPanel=")
    assert url.endswith("&var-namespace={{ $labels.namespace }}")


def test_the_values_hold_where_alerts_fire_and_each_place_is_changed_alone() -> None:
    told = thresholds(SCOPE)
    values = yaml.safe_load((CHART / "values.yaml").read_text(encoding="utf-8"))["monitoring"]["rules"]["thresholds"]
    assert {name: float(value) for name, value in values.items()} == {
        name: float(each["default"]) for name, each in told.items()
    }
    before = {_name(rule): rule["expr"] for rule in rules_in(installed()[0])}
    assert before == {_name(rule): rule["expr"] for rule in shipped_rules()}
    values = {name: 0.5 if name.endswith("Seconds") else 0.123 for name in told}
    after = installed(**{f"rules.thresholds.{name}": value for name, value in values.items()})[0]
    expected, places = dict(before), {}
    for name, value in values.items():
        old, new = (told[name]["text"] % each for each in (told[name]["default"], value))
        places[name] = [rule for rule, expr in before.items() if old in expr]
        expected = {rule: expr.replace(old, new) for rule, expr in expected.items()}
    assert {_name(rule): rule["expr"] for rule in rules_in(after)} == expected
    assert all(places.values())
    assert places["queueUsed"] == ["RlaifQueueFilling"]
    assert places["judgeSeconds"] == [name for name in before if name.startswith("rlaif:request_slow:")]


def test_a_bound_is_one_that_can_be_counted_and_a_share_is_a_share() -> None:
    [rule] = [
        each
        for each in rules_in(installed(**{"rules.thresholds.judgeSeconds": 10})[0])
        if each.get("record") == "rlaif:request_slow:ratio_rate1h"
    ]
    assert 'le="10.0",method=~"JudgeService/CompareResponses|' in rule["expr"]
    schema = json.loads((CHART / "values.schema.json").read_text(encoding="utf-8"))
    assert schema["definitions"]["bound"]["enum"] == list(SECONDS_BUCKETS)
    for name, value in (("judgeSeconds", 7), ("queueUsed", 80), ("queueUsedUp", 0.5)):
        with pytest.raises(Exception, match="thresholds"):
            installed(**{f"rules.thresholds.{name}": value})


def test_an_alert_can_be_left_out_by_name_and_a_wrong_name_is_told() -> None:
    rule, _ = installed(**{"rules.disabled": ["RlaifQueueFilling"]})
    named = {each["alert"] for each in rules_in(rule) if "alert" in each}
    every = {alert.name for group in alerts(Timing()).values() for alert in group}
    assert named == every - {"RlaifQueueFilling"}
    with pytest.raises(Exception, match="there is no alert RlaifNoSuch"):
        installed(**{"rules.disabled": ["RlaifNoSuch"]})


def test_dashboards_arrive_whole_and_far_below_what_a_cluster_takes() -> None:
    _, found = installed(**{"dashboards.annotations": {"grafana_folder": "RLAIF"}})
    assert found["metadata"]["labels"]["grafana_dashboard"] == "1"
    assert found["metadata"]["annotations"] == {"grafana_folder": "RLAIF"}
    assert {name: json.loads(text) for name, text in found["data"].items()} == {
        f"{board.uid}.json": json.loads(board.to_json()) for board in boards()
    }
    # `kubectl apply` keeps a copy in an annotation, which may hold 262,144 bytes.
    assert len(json.dumps(found)) < 250_000


def test_rules_and_dashboards_are_off_unless_asked_for() -> None:
    manifests = render(read_profile("trial-cpu"))
    assert not of_kind(manifests, "PrometheusRule")
    assert "rlaif-dashboards" not in of_kind(manifests, "ConfigMap")
