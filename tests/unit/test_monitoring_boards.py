"""Dashboards: every query can be asked, every metric is shown or alerted on, and a page can be read at a glance."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from monitoring.boards import boards
from monitoring.boards.board import HEALTH, Board
from monitoring.catalogue import FOREIGN, all_series
from monitoring.files import CHART
from monitoring.rules.groups import alert_file, recordings
from monitoring.timing import Timing
from monitoring_cases import JUDGE, OTHERS_UP, OVERSIGHT, RUN

BOARDS = boards()
UNITS = {"short", "s", "percentunit", "bytes", "reqps", "ops"}
NAME = re.compile(r"\b(?:rlaif[a-z_]*:[a-z_0-9:]+|rlaif_[a-z_]+|process_[a-z_]+|up|ALERTS)\b(?=[{|\"\[])")


def page(board: Board) -> dict[str, Any]:
    return json.loads((CHART / "dashboards" / f"{board.uid}.json").read_text(encoding="utf-8"))


def panels(board: Board) -> list[dict[str, Any]]:
    return [panel for panel in page(board)["panels"] if panel["type"] != "row"]


def expressions(board: Board) -> Iterator[str]:
    for panel in panels(board):
        yield from (target["expr"] for target in panel["targets"])


def names_in(expression: str) -> set[str]:
    return set(NAME.findall(expression))


def family(name: str, known: set[str]) -> str:
    """The metric of a series: a histogram has several."""
    stem = re.sub(r"_(bucket|sum|count)$", "", name)
    return stem if stem in known else name


@pytest.mark.skipif(
    shutil.which("promtool") is None, reason="promtool is not installed; Debian's package prometheus has it"
)
def test_prometheus_parses_every_expression_of_every_dashboard(tmp_path: Path) -> None:
    asked = [expression for board in BOARDS for expression in expressions(board)]
    asked += [f"count({selector(query)})" for board in BOARDS for query in variable_queries(board)]
    rules = [
        {"record": f"panel:{number}", "expr": re.sub(r"\$__rate_interval", "5m", expression)}
        for number, expression in enumerate(asked)
    ]
    path = tmp_path / "panels.yaml"
    path.write_text(yaml.safe_dump({"groups": [{"name": "panels", "rules": rules}]}), encoding="utf-8")
    done = subprocess.run(["promtool", "check", "rules", str(path)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{len(asked)} rules found" in done.stdout
    assert len(asked) > 150


_OTHER_OVERSIGHT = OVERSIGHT.replace("oversight-0", "oversight-1")
_OTHER_RUN = RUN.replace("run-0", "run-1")
ANSWERS = [
    # A service without any target is not up.
    ("rlaif-overview", "up", OTHERS_UP, 0.75),
    ("rlaif-overview", "up", OTHERS_UP | {f"up{{{JUDGE}}}": "1x100"}, 1),
    # Who found it broken is believed before who has not looked yet.
    (
        "rlaif-overview",
        "ledger",
        {
            f"rlaif_oversight_intact_ratio{{{OVERSIGHT}}}": "0x100",
            f"rlaif_oversight_intact_ratio{{{_OTHER_OVERSIGHT}}}": "-1x100",
        },
        0,
    ),
    ("rlaif-labels", "ledger", {f"rlaif_oversight_intact_ratio{{{OVERSIGHT}}}": "-1x100"}, -1),
    # The first stage that finishes is the first sample of its series.
    (
        "rlaif-overview",
        "stages",
        {f'rlaif_oversight_stages_finished_total{{{OVERSIGHT},stage="train"}}': "_x20 1x80"},
        1,
    ),
    # Two trainings: one is done with a step just now, the other has not been for twice as long as it may.
    (
        "rlaif-training",
        "last_step",
        {
            f"rlaif_training_last_step_timestamp_seconds{{{RUN}}}": "0+60x100",
            f'rlaif_training_part_seconds{{{RUN},part="step"}}': "10x100",
            f"rlaif_training_last_step_timestamp_seconds{{{_OTHER_RUN}}}": "0x100",
            f'rlaif_training_part_seconds{{{_OTHER_RUN},part="step"}}': "10x100",
        },
        2,
    ),
    ("rlaif-training", "dropped", {f"rlaif_training_samples_total{{{RUN}}}": "5x100"}, None),
]
"""(page, panel, series, what it shows after half an hour)"""


@pytest.mark.skipif(
    shutil.which("promtool") is None, reason="promtool is not installed; Debian's package prometheus has it"
)
def test_panels_answer_their_question(tmp_path: Path) -> None:
    tests = []
    for uid, key, series, shown in ANSWERS:
        [board] = [board for board in BOARDS if board.uid == uid]
        asked = board.panels[key][1].queries[0].expr.replace("$namespace", "rlaif")
        expression = f"sum({re.sub('[$][a-z]+', '.*', asked)})"
        samples = [] if shown is None else [{"labels": "{}", "value": shown}]
        tests.append(
            {
                "interval": "1m",
                "input_series": [{"series": name, "values": values} for name, values in series.items()],
                "promql_expr_test": [{"expr": expression, "eval_time": "30m", "exp_samples": samples}],
            }
        )
    path = tmp_path / "answers.yaml"
    path.write_text(yaml.safe_dump({"tests": tests}), encoding="utf-8")
    done = subprocess.run(["promtool", "test", "rules", str(path)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_lines_of_different_units_have_scales_of_their_own() -> None:
    for board in BOARDS:
        for panel in panels(board):
            units = {own["matcher"]["options"] for own in panel["fieldConfig"]["overrides"]}
            left = {target["expr"] for target in panel["targets"] if target["refId"] not in units}
            assert left, f"{board.title}: {panel['title']}"
            if panel["fieldConfig"]["defaults"]["unit"] == "s":
                assert all("seconds" in each for each in left), f"{board.title}: {panel['title']}"


def test_every_metric_of_the_code_is_on_a_dashboard_or_in_a_rule_and_no_other_is() -> None:
    groups = [*recordings(Timing())["groups"], *alert_file(Timing())["groups"]]
    rules = [rule for group in groups for rule in group["rules"]]
    asked = [expression for board in BOARDS for expression in (*expressions(board), *variable_queries(board))]
    used = {name for expression in (*asked, *(rule["expr"] for rule in rules)) for name in names_in(expression)}
    records = {rule["record"] for rule in rules if "record" in rule}
    known = set(all_series())
    foreign = {series.name for series in FOREIGN}
    used = {family(name, known) for name in used}
    assert used - known - records == foreign
    assert known - used == set(), "these are told and nobody looks at them"
    assert records - used == set(), "these are recorded and nobody looks at them"


def test_a_page_begins_with_whether_it_is_healthy() -> None:
    for board in BOARDS:
        rows = [panel for panel in page(board)["panels"] if panel["type"] == "row"]
        assert rows[0]["title"] == HEALTH
        assert all(row["title"].endswith("?") for row in rows)
        top = [panel for panel in panels(board) if panel["gridPos"]["y"] < 5]
        assert {panel["type"] for panel in top} == {"stat"}
        assert sum(panel["gridPos"]["w"] for panel in top) == 24


def test_titles_are_questions_and_everything_is_explained() -> None:
    for board in BOARDS:
        numbers = [panel["id"] for panel in page(board)["panels"]]
        assert len(set(numbers)) == len(numbers)
        titles = [panel["title"] for panel in panels(board)]
        assert len(set(titles)) == len(titles)
        for panel in panels(board):
            where = f"{board.title}: {panel['title']}"
            assert panel["title"].endswith("?"), where
            # A title that is cut off asks nothing: about 60 characters fit in a third of a page, 30 in a sixth.
            assert len(panel["title"]) <= (32 if panel["gridPos"]["w"] == 4 else 70), where
            assert len(panel["description"]) > 20, where
            assert panel["description"].endswith("."), where
            defaults = panel["fieldConfig"]["defaults"]
            assert defaults["unit"] in UNITS, where
            assert defaults["noValue"], where
            assert panel["datasource"] == {"type": "prometheus", "uid": "${datasource}"}, where
            assert len({target["refId"] for target in panel["targets"]}) == len(panel["targets"]), where


def test_numbers_of_the_top_row_turn_red_but_where_any_number_is_well() -> None:
    plain = {"How many labels a second?", "How many tokens a second?", "How many rewards a second?", "How far is it?"}
    plain |= {"When will it be done?", "What reward does it get?", "How full is its cache?", "On how many labels?"}
    for board in BOARDS:
        for panel in panels(board):
            if panel["gridPos"]["y"] < 5 and panel["title"] not in plain:
                colors = {step["color"] for step in panel["fieldConfig"]["defaults"]["thresholds"]["steps"]}
                assert "red" in colors, f"{board.title}: {panel['title']}"


def test_panels_fill_their_rows_and_none_lies_on_another() -> None:
    for board in BOARDS:
        taken: set[tuple[int, int]] = set()
        for panel in page(board)["panels"]:
            place = panel["gridPos"]
            assert place["x"] + place["w"] <= 24
            across, down = (range(place[at], place[at] + place[size]) for at, size in (("x", "w"), ("y", "h")))
            cells = {(x, y) for x in across for y in down}
            assert not cells & taken, f"{board.title}: {panel['title']}"
            taken |= cells
        # What matters most is on the first screen of 1080 lines, 22 units high: the top row and two rows below it.
        assert sum(panel["gridPos"]["y"] < 22 for panel in panels(board)) >= 9


def test_pages_lead_to_each_other_with_the_namespace_chosen() -> None:
    for board in BOARDS:
        described = page(board)
        [link] = described["links"]
        assert (link["type"], link["tags"]) == ("dashboards", ["rlaif"])
        assert (link["includeVars"], link["keepTime"]) == (True, True)
        assert described["tags"] == ["rlaif"]
        names = [variable["name"] for variable in described["templating"]["list"]]
        assert names[:2] == ["datasource", "namespace"]
        asked = {name for expression in expressions(board) for name in re.findall(r"\$(\w+)", expression)}
        assert asked - {"__rate_interval"} == set(names) - {"datasource"}
        for expression in expressions(board):
            selectors = len(re.findall(r"\{[^}]*[=~]", expression))
            assert expression.count('namespace="$namespace"') == selectors, expression


def variable_queries(board: Board) -> list[str]:
    return [variable["query"] for variable in page(board)["templating"]["list"] if variable["type"] == "query"]


def selector(query: str) -> str:
    match = re.fullmatch(r"label_values\((.+), \w+\)", query)
    assert match is not None, query
    return match[1]
