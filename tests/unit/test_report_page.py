"""The report: right figures, every key, nothing run from what models wrote, and sense on runs that went wrong."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from report_fixtures import NASTY, STAGES, write_constitutional, write_run
from rlaif.cli import main
from rlaif.cli.run_inputs import with_changes
from rlaif.core.errors import InvalidInputError, RlaifError
from rlaif_pipelines.report import build
from rlaif_pipelines.report.markdown import render
from rlaif_pipelines.report.plots import Series, histogram, interval_bar, line_chart, ticks
from rlaif_pipelines.report.reproduce import command_line
from rlaif_pipelines.settings import RunSettings, make_settings

CHROMIUM = shutil.which("chromium")
KEYS = {
    "win_rate", "harmful_compliance", "over_refusal", "mean_words", "garbage", "kl", "judge_accuracy", "gate",
    "verdict", "seconds", "peak_rss_bytes",
}  # fmt: skip


def report_of(root: Path) -> tuple[dict[str, Any], str]:
    page = build(root)
    return json.loads((root / "report.json").read_text()), page.read_text()


def test_the_figures_tools_rely_on_are_those_of_the_evaluation(tmp_path: Path) -> None:
    report, page = report_of(write_run(tmp_path / "run"))
    assert report["win_rate"] == {"value": 0.762, "low": 0.702, "high": 0.813, "num_samples": 480}
    assert report["harmful_compliance"] == {"baseline": 0.362, "trained": 0.054}
    assert report["over_refusal"] == {"baseline": 0.141, "trained": 0.038}
    assert report["kl"] == 2.41
    assert report["verdict"] == "improved"
    assert report["gate"] == {"passed": True, "reasons": []}
    assert report["judge_accuracy"]["harmful"]["helpful"] == pytest.approx(0.95 - 0.12 - 0.03)
    assert report["judge_accuracy"]["fact"]["harmless"] is None
    assert report["seconds"]["judge"] == 4.5
    assert report["peak_rss_bytes"] == 3 * 2**30
    for shown in (
        "The policy improved.",
        "0.762",
        "95%\u00a0CI\u00a00.702\u00a0to\u00a00.813",
        "36.2%",
        "5.4%",
        "12.4",
        "2.41",
        "73.4%",
        "61.4%\u00a0to\u00a082.7%",
        "0.791",
        "category=harmful",
        "81.2%",
        "tiny synthetic",
    ):
        assert shown in page


@pytest.mark.parametrize("upto", STAGES)
@pytest.mark.parametrize("failed", [None, "the sampler is gone"])
def test_a_run_stopped_anywhere_has_a_report_with_every_key(upto: str, failed: str | None, tmp_path: Path) -> None:
    report, page = report_of(write_run(tmp_path / "run", upto=upto, failed=failed))
    assert report.keys() >= KEYS
    evaluated = STAGES.index(upto) > STAGES.index("evaluate") or (upto == "evaluate" and failed is None)
    if not evaluated:
        assert report["verdict"] == "unknown"
        assert report["win_rate"]["value"] is None
        assert report["kl"] is None
        assert report["verdict_reasons"]
    if failed and upto != "report":
        assert f"stage {upto} failed: the sampler is gone" in " ".join(report["verdict_reasons"])
        assert "The run failed" in page


def test_a_folder_with_nothing_but_its_record_has_a_report(tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text("{}")
    report, page = report_of(tmp_path)
    assert report["verdict"] == "unknown"
    assert report["command"] == "rlaif run --out runs/again"
    assert "The run has not finished" in page


@pytest.mark.parametrize("record", [None, "{", "[]"])
def test_a_folder_without_a_whole_record_is_no_run(record: str | None, tmp_path: Path) -> None:
    if record is not None:
        (tmp_path / "run.json").write_text(record)
    with pytest.raises(InvalidInputError, match=r"not a run folder: its run\.json is missing or not whole"):
        build(tmp_path)


@pytest.mark.parametrize(
    ("settings", "begins", "headline"),
    [
        ({"pipeline": "label-only"}, "labels, nothing trained · playground ·", "The labels passed the gate"),
        (
            {"pipeline": "judge-benchmark", "pairs": {"path": "pairs.jsonl"}, "judge": "playground"},
            "the judge against given labels · pairs.jsonl ·",
            "The run has not finished.",
        ),
    ],
)
def test_a_smaller_pipeline_is_not_told_as_a_training(
    settings: dict[str, Any], begins: str, headline: str, tmp_path: Path
) -> None:
    _, page = report_of(write_run(tmp_path / "run", upto="gate", settings=settings))
    assert begins in page
    assert headline in page
    assert "GRPO" not in page


def test_a_run_without_a_policy_has_none_in_its_lineage(tmp_path: Path) -> None:
    root = write_run(tmp_path / "run", upto="gate")
    _, page = report_of(root)
    assert "starting policy" in page
    record = json.loads((root / "run.json").read_text())
    record["digests"] |= {"policy_uri": None, "policy_digest": ""}
    (root / "run.json").write_text(json.dumps(record))
    _, page = report_of(root)
    assert "starting policy" not in page


def test_a_gate_that_did_not_pass_is_the_headline_and_its_cell_is_marked(tmp_path: Path) -> None:
    report, page = report_of(write_run(tmp_path / "run", upto="gate", gate_passed=False))
    assert report["verdict"] == "unknown"
    assert report["gate"]["passed"] is False
    assert "harmful × harmless is 0.430" in report["verdict_reasons"][0]
    assert "No policy was trained: the labels did not pass the gate." in page
    assert page.count('class="cell failed"') == 1


def test_without_independent_evidence_the_verdict_is_unknown_and_says_why(tmp_path: Path) -> None:
    unknown = {
        "verdict": "unknown",
        "verdict_reasons": ["no gold rules for these prompts and no second judge was given"],
        "evaluator": "none",
        "win_rate": {"value": None, "low": None, "high": None, "num_samples": 0},
        **{
            name: {"baseline": None, "trained": None}
            for name in ("harmful_compliance", "over_refusal", "garbage", "gold")
        },
        "intervals": {},
        "by_category": {},
    }
    settings = {"prompts": "my.jsonl", "policy": "playground", "judge": "playground"}
    report, page = report_of(write_run(tmp_path / "run", settings=settings, evaluation=unknown))
    assert report["verdict"] == "unknown"
    assert report["harmful_compliance"] == {"baseline": None, "trained": None}
    assert "Whether the policy improved is not known." in page
    assert "nobody independent has looked" in page
    assert "tiny synthetic world" not in page
    assert "Win rate" not in page.split('id="evidence"')[1].split("</section>")[0]


@pytest.mark.parametrize("verdict", ["not_improved", "over_optimised", "biased"])
def test_bad_verdicts_are_said_in_words(verdict: str, tmp_path: Path) -> None:
    _, page = report_of(
        write_run(tmp_path / "run", evaluation={"verdict": verdict, "verdict_reasons": ["this & that"]})
    )
    assert 'class="banner bad"' in page
    assert "This &amp; that" in page
    assert "The policy improved." not in page


def test_what_models_wrote_is_escaped_and_the_page_loads_nothing(tmp_path: Path) -> None:
    _, page = report_of(write_run(tmp_path / "run"))
    assert NASTY not in page
    assert "&lt;script&gt;alert(&#39;reply&#39;)" in page
    tags = TagCollector()
    tags.feed(page)
    assert not tags.names & {"script", "link", "img", "iframe", "object", "embed", "form"}
    assert not re.search(r"https?://|url\(|@import", page)
    assert not any(name.startswith("on") for name in tags.attributes)


class TagCollector(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()
        self.attributes: set[str] = set()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.names.add(tag)
        self.attributes |= {name for name, _ in attrs}


def test_the_same_folder_gives_the_same_bytes(tmp_path: Path) -> None:
    root = write_run(tmp_path / "run")
    first = build(root).read_bytes()
    assert build(root).read_bytes() == first


def test_a_step_done_again_after_a_restart_counts_once(tmp_path: Path) -> None:
    root = write_run(tmp_path / "run")
    rows = [
        {"stage": "rl", "step": step, "num_steps": 3, "reward": reward}
        for step, reward in ((1, 1), (2, 9), (2, 2), (3, 3))
    ]
    half_a_line = '{"stage": "rl", "st'
    (root / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows) + half_a_line)
    _, page = report_of(root)
    assert "1 → 3" in page
    assert page.count("<polyline") == 1


def test_a_run_without_a_reward_shows_its_loss(tmp_path: Path) -> None:
    root = write_run(tmp_path / "run", settings={"algorithm": "dpo"})
    rows = [
        {"stage": "dpo", "step": step, "num_steps": 3, "loss": 0.7 - step / 10, "accuracy": step / 4}
        for step in (1, 2, 3)
    ]
    (root / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    _, page = report_of(root)
    assert "DPO on the labels" in page
    assert "DPO has no reward" in page
    assert page.count("<polyline") == 2


def test_the_constitutional_stage_tells_what_became_of_the_replies(tmp_path: Path) -> None:
    report, page = report_of(write_constitutional(tmp_path))
    assert (report["outcome"], report["verdict"]) == ("finished", "improved")
    found = report["constitutional"]
    assert (found["num_revised"], found["num_unchanged"], found["num_dropped"]) == (25, 14, 1)
    assert found["by_principle"]["harmless"]["num_revised"] == 25
    assert found["held_out_loss"] == {"baseline": 2.5, "trained": 1.25}
    assert report["seconds"]["revise"] == 1.5
    for shown in ("Constitutional stage", "critique truncated: 1", "2.500 nats a token", "over 12 steps on 39 replies"):
        assert shown in page
    assert page.count("<polyline") == 1
    assert 'id="gate"' not in page, "nothing was labelled"
    assert report_of(write_run(tmp_path / "plain"))[0]["constitutional"] is None


def test_revisions_that_did_not_pass_their_gate_are_the_headline(tmp_path: Path) -> None:
    report, page = report_of(write_constitutional(tmp_path, passed=False))
    assert (report["outcome"], report["verdict"]) == ("gated", "unknown")
    assert report["verdict_reasons"] == [
        "the gate let no training begin: 25 replies were revised, fewer than the 64 required (39 could be learnt from)"
    ]
    assert "No policy was trained: the revised replies did not pass the gate." in page


def test_rounds_follow_each_other_and_the_last_one_is_the_headline(tmp_path: Path) -> None:
    root = write_run(tmp_path / "run", settings={"rounds": 2})
    for stage, file in (("gate", "gate.json"), ("evaluate", "evaluation.json"), ("train", "")):
        shutil.copytree(root / "stages" / stage, root / "stages" / f"{stage}-2")
        if stage == "evaluate":
            evaluation = json.loads((root / "stages" / stage / file).read_text()) | {"round": 2, "kl": 3.3}
            (root / "stages" / "evaluate-2" / file).write_text(json.dumps(evaluation))
    shutil.copy(root / "metrics.jsonl", root / "metrics-2.jsonl")
    report, page = report_of(root)
    assert report["kl"] == 3.3
    assert [each["round"] for each in report["rounds"]] == [1, 2]
    assert "Round by round" in page
    assert ">80<" in page, "forty steps and forty more on one axis"
    assert ">round 2<" in page, "where another reward model begins to score"
    assert "of the steps of round 2" in page
    assert "where gold has a preference; labels of round 2" in page
    assert "| labels of round 2 |" in render(report)
    _, alone = report_of(write_run(tmp_path / "alone"))
    assert "of round" not in alone


def test_the_command_holds_what_differs_from_the_defaults() -> None:
    def command(**given: Any) -> str:
        return command_line(make_settings(given).model_dump(mode="json"))

    assert command() == "rlaif run --out runs/again"
    assert command(seed=3, algorithm="dpo") == "rlaif run --algorithm dpo --seed 3 --out runs/again"
    assert command(algorithm="sft") == "rlaif run --algorithm sft --out runs/again"
    first = command(constitutional={"enabled": True, "rounds": 3})
    assert first == "rlaif run --constitutional --set constitutional.rounds=3 --out runs/again"
    assert command(reward="model") == "rlaif run --reward model --out runs/again"
    assert command(rl={"steps": 7}) == "rlaif run --set rl.steps=7 --out runs/again"
    own = command(prompts="my file.jsonl", policy="org/p", judge="org/j", evaluator="none")
    assert own == "rlaif run --prompts 'my file.jsonl' --policy org/p --judge org/j --evaluator none --out runs/again"


@pytest.mark.parametrize(
    "given",
    [
        {"reward": "model", "human_labels": {"path": "people.jsonl", "weight": 5.0}},
        {"rl": {"guards": {"kl": {"limit": None}, "length": {"action": "lower_rate"}}}},
        {
            "jobs": {
                "launcher": "indexed_job",
                "pod": {"image": "x", "volume_claim": "y", "node_selector": {"a.b/c": "d"}},
            }
        },
        {"pipeline": "label-only", "prompts": "a.jsonl", "policy": "p", "judge": "j", "engine": {"lora": {"rank": 4}}},
        {"pipeline": "evaluate-only", "candidate": "c"},
        {"pipeline": "judge-benchmark", "pairs": {"path": "p.jsonl"}, "judge": "playground"},
        {"pipeline": "judge-benchmark", "pairs": {"path": "p.jsonl"}, "judge": "org/j", "constitution": "code-review"},
    ],
)
def test_the_command_makes_the_settings_of_the_run_again(given: dict[str, Any]) -> None:
    settings = make_settings(given)
    again: list[RunSettings] = []

    def keep(values: Mapping[str, Any], *, changes: Sequence[str], options: object) -> int:
        again.append(make_settings(with_changes(values, changes)))
        return 0

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("rlaif.cli.runner.run_loop", keep)
        assert main.execute(shlex.split(command_line(settings.model_dump(mode="json")))[1:]) == 0
    assert again == [settings.model_copy(update={"out": Path("runs/again")})]


def test_a_record_of_another_version_has_no_command(tmp_path: Path) -> None:
    root = write_run(tmp_path / "run", upto="prompts")
    record = json.loads((root / "run.json").read_text())
    record["settings"]["reward"] = "applause"
    (root / "run.json").write_text(json.dumps(record))
    with pytest.raises(RlaifError):
        command_line(record["settings"])
    report, _ = report_of(root)
    assert report["command"] is None


def test_ticks_are_round_and_span_the_range() -> None:
    assert ticks(0, 10, count=6) == [0, 2, 4, 6, 8, 10]
    assert ticks(0.27, 0.61, count=4) == [0.2, 0.4, 0.6, 0.8]
    assert ticks(-0.05, 0.02, count=4) == [-0.05, 0, 0.05]
    assert ticks(-0.0001, 1.9, count=4) == [0, 1, 2]
    assert ticks(5, 5, count=4)[0] <= 5 <= ticks(5, 5, count=4)[-1]


FIRING = {
    "guard": "held_out",
    "action": "stop",
    "step": 41,
    "value": 3.2,
    "limit": 2.0,
    "sentence": "the reward rose from 0.1 to 0.4 while the held-out score fell from 0.7 to 0.5",
}


def test_a_guard_that_fired_is_told_with_its_numbers_and_marked_in_every_plot(tmp_path: Path) -> None:
    root = write_run(tmp_path / "run")
    back = {"num_steps": 20, "from_version": 20, "version": 41, "held_out": 0.7}
    row = {"stage": "rl", "step": 41, "num_steps": 60, "reward": 8.0, "gold": 0.1, "kl": 2.0}
    with (root / "metrics.jsonl").open("a") as lines:
        lines.write(json.dumps({**row, "guards": [FIRING], "rolled_back": back}) + "\n")
    _, page = report_of(root)
    assert FIRING["sentence"] in page
    assert "went back to the weights after step 20, published as version 41" in page
    plots = re.findall(r"<svg class=\"plot\".*? over (?:training )?steps\".*?</svg>", page)
    assert len(plots) >= 6
    assert all("held_out: stop" in plot and "rolled back to" in plot for plot in plots)


def test_proxy_held_out_score_and_gold_are_shown_together(tmp_path: Path) -> None:
    _, page = report_of(write_run(tmp_path / "run"))
    (plot,) = re.findall(r"<svg[^>]*Proxy, held-out score and gold.*?</svg>", page)
    assert plot.count("<polyline") == 3
    # A figure that never changes is no news.
    assert "Learning rate over training steps" not in page
    assert "Repetition over training steps" in page
    assert "Dropped over training steps" in page
    (components,) = re.findall(r"<svg[^>]*Rewards by component.*?</svg>", page)
    assert "judge" in components
    assert "length_penalty" in components


def test_a_line_goes_through_its_points_and_a_far_guard_is_not_drawn() -> None:
    chart = line_chart([Series("a", [(0, 0), (10, 1)], "first")], title="a & b", x_label="step", limit=1.5)
    left, right = (point.split(",") for point in re.findall(r'points="([^"]+)"', chart)[0].split())
    assert float(left[0]) < float(right[0])
    assert float(left[1]) > float(right[1]), "up is smaller"
    assert "guard" in chart
    assert "a &amp; b" in chart
    assert "guard" not in line_chart([Series("a", [(0, 0), (10, 1)], "first")], title="", x_label="", limit=50)
    assert line_chart([], title="", x_label="") == ""


def test_a_histogram_counts_each_value_once() -> None:
    counts = re.findall(r"<title>(\d+)</title>", histogram([0.0, 0.05, 0.5, 1.0], num_bins=10, title="", x_label=""))
    assert [int(count) for count in counts] == [2, 0, 0, 0, 0, 1, 0, 0, 0, 1]
    assert 'cx="110.0"' in interval_bar(0.5, low=None, high=None, reference=None)


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed")
def test_a_browser_shows_the_page_without_a_complaint(tmp_path: Path) -> None:
    page = build(write_run(tmp_path / "run"))
    picture = tmp_path / "page.png"
    command = [str(CHROMIUM), "--headless=new", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr"]
    done = subprocess.run(
        [*command, "--window-size=1200,3000", f"--screenshot={picture}", page.as_uri()],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    assert picture.stat().st_size > 50_000
    assert "CONSOLE" not in done.stderr, done.stderr
