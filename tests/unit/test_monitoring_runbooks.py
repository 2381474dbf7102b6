"""Alerts, runbooks and panels belong together: none without the others."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from monitoring import objectives
from monitoring.files import CHART
from monitoring.rules.alert import RUNBOOKS
from monitoring.rules.groups import alerts
from monitoring.timing import Timing

TEXT = (Path(__file__).parents[2] / "docs" / "runbooks.md").read_text(encoding="utf-8")
SECTIONS = dict(re.findall(r"^## (Rlaif\w+)\n(.*?)(?=^#{1,2} |\Z)", TEXT, flags=re.MULTILINE | re.DOTALL))
ALERTS = [alert for group in alerts(Timing()).values() for alert in group]


def test_every_alert_has_a_runbook_and_every_runbook_an_alert() -> None:
    assert set(SECTIONS) == {alert.name for alert in ALERTS}
    assert len(re.findall(r"^## ", TEXT, flags=re.MULTILINE)) == len(SECTIONS)
    # GitHub's anchor of a heading of one word is the word in small letters.
    assert {alert.runbook for alert in ALERTS} == {f"{RUNBOOKS}#{name.lower()}" for name in SECTIONS}


def test_a_runbook_says_what_it_means_where_to_look_why_and_what_to_do() -> None:
    for name, text in SECTIONS.items():
        assert re.findall(r"^\*\*(\w[\w ]*)\.\*\*", text, flags=re.MULTILINE) == [
            "Means",
            "Look first",
            "Likely",
            "Fix",
        ], name
    assert "amtool silence add" in TEXT


def test_runbooks_name_alerts_and_panels_that_there_are() -> None:
    assert set(re.findall(r"\bRlaif\w+", TEXT)) == set(SECTIONS)
    pages = [json.loads(path.read_text(encoding="utf-8")) for path in (CHART / "dashboards").glob("*.json")]
    titles = {panel["title"] for page in pages for panel in page["panels"]}
    assert set(re.findall(r'"([^"]+\?)"', TEXT)) <= titles


def test_every_alert_leads_to_a_panel_that_there_is() -> None:
    for alert in ALERTS:
        match = re.fullmatch(r"/d/([\w-]+)\?viewPanel=(\d+)", alert.panel)
        assert match is not None, alert.panel
        page = json.loads((CHART / "dashboards" / f"{match[1]}.json").read_text(encoding="utf-8"))
        assert [panel for panel in page["panels"] if panel["id"] == int(match[2]) and panel["type"] != "row"]


def test_operations_names_the_objectives_and_panels_that_there_are() -> None:
    manual = (Path(__file__).parents[2] / "docs" / "operations.md").read_text(encoding="utf-8")
    for bound in objectives.LATENCY_BOUNDS:
        methods = ", ".join(method.rpartition("/")[2] for method in bound.methods) or "a request's wait for the engine"
        assert f"| {bound.seconds:g} s for {objectives.LATENCY:.0%} | {methods} |".replace("95%", "95 %") in manual
    assert f"{objectives.AVAILABILITY:.1%}".replace("%", " %") in manual
    assert all(code in manual for code in objectives.ERROR_CODES)
    pages = [json.loads(path.read_text(encoding="utf-8")) for path in (CHART / "dashboards").glob("*.json")]
    titles = {panel["title"] for page in pages for panel in page["panels"]}
    assert set(re.findall(r'"([^"]+\?)"', manual)) <= titles
    assert {page["title"].removeprefix("RLAIF / ") for page in pages} == set(
        re.findall(r"^\| ([A-Z][a-z ]+) \| [A-Z]", manual, flags=re.MULTILINE)
    )


@pytest.mark.parametrize("name", ["runbooks.md", "operations.md"])
def test_commands_in_the_manual_are_those_that_there_are(name: str) -> None:
    import typer.main

    from rlaif.cli.main import app

    manual = (Path(__file__).parents[2] / "docs" / name).read_text(encoding="utf-8")
    commands = re.findall(r"(?:`|^)rlaif ([a-z][^`\n#|]*)", manual, flags=re.MULTILINE)
    assert len(commands) >= 3
    for command in commands:
        words, found = command.split(), typer.main.get_command(app)
        while words and hasattr(found, "commands") and words[0] in found.commands:
            found = found.commands[words.pop(0)]
        assert not hasattr(found, "commands"), f"rlaif {command}: no such verb"
        options = {option for parameter in found.params for option in parameter.opts}
        assert {word for word in words if word.startswith("--")} <= options, f"rlaif {command}"
