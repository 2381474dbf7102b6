"""Rules are what the code generates, Prometheus takes them, and each alert fires when it should and only then."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

from monitoring import objectives
from monitoring.files import CHART, generated_files, rule_files
from monitoring.rules.groups import alerts, recordings
from monitoring.timing import Timing
from monitoring_cases import CASES, Case

RULES = CHART / "rules"
needs_promtool = pytest.mark.skipif(
    shutil.which("promtool") is None, reason="promtool is not installed; Debian's package prometheus has it"
)


def test_the_charts_dashboards_and_rules_are_what_the_code_generates() -> None:
    files = generated_files()
    committed = {path for folder in ("dashboards", "rules") for path in (CHART / folder).glob("*")}
    assert committed == set(files)
    for path, text in files.items():
        assert path.read_text(encoding="utf-8") == text, f"{path.name} is not what `make monitoring` writes"


@needs_promtool
def test_prometheus_takes_the_rules(tmp_path: Path) -> None:
    for name, text in rule_files(Timing(scale=1 / 120)).items():
        (tmp_path / name).write_text(text, encoding="utf-8")
    promtool("check", "rules", *map(str, (*RULES.glob("*.yaml"), *tmp_path.glob("*.yaml"))))


@needs_promtool
@pytest.mark.parametrize("name", sorted({case.alert for case in CASES}))
def test_an_alert_fires_when_it_should_and_only_then(name: str, tmp_path: Path) -> None:
    (tmp_path / "rules.yaml").write_text(yaml.safe_dump(rules_of(name)), encoding="utf-8")
    tests = [test for case in CASES if case.alert == name for test in promtool_tests(case)]
    document = {"rule_files": ["rules.yaml"], "evaluation_interval": "1m", "tests": tests}
    path = tmp_path / "cases.yaml"
    path.write_text(yaml.safe_dump(document, sort_keys=False, width=1000), encoding="utf-8")
    promtool("test", "rules", str(path))


def test_every_alert_has_a_case() -> None:
    rules = [alert for group in alerts(Timing()).values() for alert in group]
    assert {case.alert for case in CASES} == {alert.name for alert in rules}
    tried = {(case.alert, case.labels["window"]) for case in CASES if "window" in case.labels}
    burns = [(alert.name, alert.window) for alert in rules if alert.name.endswith("BudgetBurn")]
    assert set(burns) <= tried
    assert len(burns) == 2 * len(objectives.BURNS)


def test_alerts_say_how_bad_what_and_what_to_do() -> None:
    for group in alerts(Timing()).values():
        for alert in group:
            assert alert.severity in ("critical", "warning")
            assert alert.summary
            assert len(alert.summary) <= 120
            assert alert.description.endswith((".", "%."))
            assert "$labels.namespace" in alert.description


def test_scaled_rules_differ_in_times_alone() -> None:
    nominal, scaled = (
        yaml.safe_load(rule_files(Timing())["alerts.yaml"]),
        yaml.safe_load(rule_files(Timing(scale=1 / 60))["alerts.yaml"]),
    )
    for group, other in zip(nominal["groups"], scaled["groups"], strict=True):
        for rule, scaled_rule in zip(group["rules"], other["rules"], strict=True):
            assert _without_times(rule) == _without_times(scaled_rule)
    assert Timing(scale=1 / 60)("5m") == "5s"
    assert Timing(scale=1 / 120)("5m") == "2500ms"
    assert Timing()("90m") == "90m"


def test_records_are_named_by_level_metric_and_operation() -> None:
    for rule in recordings(Timing())["groups"][0]["rules"]:
        level, metric, operation = rule["record"].split(":")
        assert (level, bool(metric), bool(operation)) == ("rlaif", True, True)


def rules_of(name: str) -> dict[str, Any]:
    """Of the chart's rules, the alerts of that name and the recordings that they rest on: all would take minutes."""
    read = [yaml.safe_load(path.read_text(encoding="utf-8"))["groups"] for path in sorted(RULES.glob("*.yaml"))]
    rules = [rule for groups in read for group in groups for rule in group["rules"]]
    chosen = [rule for rule in rules if rule.get("alert") == name]
    asked = " ".join(rule["expr"] for rule in chosen)
    records = [rule for rule in rules if "record" in rule and rule["record"] in asked]
    return {"groups": [{"name": "records", "rules": records}, {"name": "alerts", "rules": chosen}]}


def promtool_tests(case: Case) -> list[dict[str, Any]]:
    labels = {"alertname": case.alert, "alertstate": "firing", "namespace": "rlaif", **case.labels}
    firing = f"ALERTS{_matchers(labels)}"
    fired = {"expr": f"count({firing})", "eval_time": case.at, "exp_samples": [{"labels": "{}", "value": 1}]}
    silent = f"ALERTS{_matchers({'alertname': case.alert, 'alertstate': 'firing'} | _window(case))}"
    quiet = [{"expr": silent, "eval_time": case.quiet_until, "exp_samples": []}] if case.quiet_until else []
    never = [{"expr": silent, "eval_time": at, "exp_samples": []} for at in ("20m", "40m", case.at)]
    return [
        {"interval": "1m", "input_series": _series(case.bad), "promql_expr_test": [*quiet, fired]},
        {"interval": "1m", "input_series": _series(case.good), "promql_expr_test": never},
    ]


def _window(case: Case) -> dict[str, str]:
    return {"window": case.labels["window"]} if "window" in case.labels else {}


def _series(series: Mapping[str, str]) -> list[dict[str, str]]:
    return [{"series": name, "values": values} for name, values in series.items()]


def _matchers(labels: Mapping[str, str]) -> str:
    return "{" + ",".join(f'{name}="{value}"' for name, value in labels.items()) + "}"


def _without_times(value: Any) -> Any:
    import re

    if isinstance(value, dict):
        return {key: _without_times(inner) for key, inner in value.items() if key != "for"}
    # Windows in brackets and after offset, and the one age.
    return re.sub(r"(\[|offset )\d+[a-z]+\]?|, \d+(\.\d+)?\)", "", value) if isinstance(value, str) else value


def promtool(*arguments: str) -> None:
    done = subprocess.run(["promtool", *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
