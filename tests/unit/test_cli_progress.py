"""Progress from files: what stages do, rates, curves, and how both displays look."""

from __future__ import annotations

import io
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from rlaif.cli.display import LiveDisplay, PlainDisplay, duration, summary_panel
from rlaif.cli.progress import JsonTail, RunProgress, planned_stages, sparkline


def event(stage: str, state: str, second: float, **more: Any) -> dict[str, Any]:
    time = datetime.fromtimestamp(1_700_000_000 + second, UTC).isoformat()
    return {"time": time, "stage": stage, "state": state, "done": None, "total": None, "message": "", **more}


def step(number: int, reward: float, *, stage: str = "train") -> dict[str, Any]:
    return {
        "time": 1_700_000_000 + number,
        "stage": stage,
        "step": number,
        "num_steps": 40,
        "reward": reward,
        "gold": reward / 2,
        "kl": number / 10,
    }


def test_rounds_after_the_first_are_numbered() -> None:
    assert planned_stages(rounds=2, trains_reward_model=False) == [
        "prepare", "prompts", "baseline",
        "sample", "judge", "gate", "train", "evaluate",
        "sample-2", "judge-2", "gate-2", "train-2", "evaluate-2",
        "promote", "report",
    ]  # fmt: skip
    assert "reward_model" in planned_stages(rounds=1, trains_reward_model=True)


def test_the_constitutional_stage_is_planned_before_the_rounds_or_in_their_place() -> None:
    first = planned_stages(rounds=1, trains_reward_model=False, constitutional="first")
    assert first[:7] == ["prepare", "prompts", "baseline", "revise", "revision_gate", "sft", "sample"]
    assert planned_stages(rounds=1, trains_reward_model=False, constitutional="only") == [
        "prepare", "prompts", "baseline", "revise", "revision_gate", "sft", "evaluate", "promote", "report",
    ]  # fmt: skip


def test_rate_and_time_left_come_from_this_attempt_alone() -> None:
    progress = RunProgress.of(["judge"])
    progress.apply_event(event("judge", "started", 0))
    progress.apply_event(event("judge", "progress", 10, done=300, total=640))  # 300 found in the ledger at once
    stage = progress.apply_event(event("judge", "progress", 20, done=400, total=640))
    assert stage.rate == pytest.approx(10.0)
    assert stage.remaining_seconds == pytest.approx(24.0)
    assert stage.elapsed_seconds(1_700_000_030) == pytest.approx(30.0)
    stage = progress.apply_event(event("judge", "finished", 44))
    assert stage.state == "done"
    assert stage.elapsed_seconds(1_800_000_000) == pytest.approx(44.0)
    assert stage.remaining_seconds is None


def test_skipped_and_failed_stages_keep_their_message() -> None:
    progress = RunProgress.of(["sample"])
    assert progress.apply_event(event("sample", "skipped", 0, message="finished before")).state == "skipped"
    progress.apply_event(event("new", "started", 0))
    assert progress.apply_event(event("new", "failed", 1, message="no route")).message == "no route"
    assert list(progress.stages) == ["sample", "new"]


def test_training_steps_make_the_curves_and_count_as_progress() -> None:
    progress = RunProgress.of(["reward_model", "train"])
    progress.apply_metrics(step(1, 9.0, stage="reward_model"))
    progress.apply_event(event("train", "started", 0))
    for number in (1, 2, 3):
        progress.apply_metrics(step(number, float(number)))
    assert progress.series["reward"] == [1.0, 2.0, 3.0]
    assert progress.latest("gold") == 1.5
    assert progress.latest("reward_model") is None
    assert (progress.stages["train"].done, progress.stages["train"].total) == (3, 40)


def test_the_smaller_pipelines_have_plans_of_their_own() -> None:
    assert planned_stages(rounds=1, trains_reward_model=True, pipeline="label-only") == [
        "prepare", "prompts", "sample", "judge", "gate", "report",
    ]  # fmt: skip


def test_parts_count_together_in_their_stage_which_ends_when_they_are_put_together() -> None:
    progress = RunProgress.of(["sample"])
    progress.apply_event(event("sample.part-1-of-2", "started", 0))
    progress.apply_event(event("sample.part-1-of-2", "progress", 2, done=5, total=10))
    progress.apply_event(event("sample.part-2-of-2", "progress", 4, done=2, total=8))
    stage = progress.stages["sample"]
    assert (stage.state, stage.done, stage.total, stage.rate) == ("running", 7, 18, 1.0)
    progress.apply_event(event("sample.part-1-of-2", "finished", 5))
    assert progress.stages["sample"].state == "running"
    progress.apply_event(event("sample", "started", 6))
    stage = progress.apply_event(event("sample", "finished", 7))
    assert (stage.state, stage.elapsed_seconds(0)) == ("done", 7.0)
    assert list(progress.stages) == ["sample"]


def test_sparkline_runs_from_low_to_high_and_averages_long_series() -> None:
    assert sparkline([0, 1, 2, 3, 4, 5, 6, 7], width=20) == "▁▂▃▄▅▆▇█"
    assert sparkline([5, 5], width=20) == "▁▁"
    assert sparkline([], width=20) == ""
    assert sparkline([0, 0, 1, 1], width=2) == "▁█"


def test_a_tail_reads_whole_lines_once_and_follows_a_replaced_file(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    tail = JsonTail(path)
    assert list(tail.read()) == []
    path.write_text('{"step": 1}\n{"step": 2')
    assert list(tail.read()) == [{"step": 1}]
    path.write_text('{"step": 1}\n{"step": 2}\n')
    assert list(tail.read()) == [{"step": 2}]
    path.write_text('{"a": 1}\n')
    assert list(tail.read()) == [{"a": 1}]
    assert list(JsonTail(path, from_end=True).read()) == []


def test_plain_lines_say_each_transition_and_every_tenth_step() -> None:
    out = io.StringIO()
    progress = RunProgress.of(["judge", "train"])
    display = PlainDisplay(title="rlaif run", console=Console(file=out, width=100))
    for each in (
        event("judge", "started", 0),
        *(event("judge", "progress", number, done=number, total=100) for number in range(100)),
        event("judge", "finished", 100),
        event("train", "failed", 101, message="the sampler is gone"),
    ):
        display.event(progress.apply_event(each), each["state"])
    for number in range(1, 41):
        display.metrics(step(number, 0.5))
    lines = [line[9:] for line in out.getvalue().splitlines()]
    assert lines[0] == "rlaif run"
    assert next(line for line in lines if line.startswith("judge")) == "judge          started"
    assert sum(line.startswith("judge") for line in lines) == 2 + 4
    assert "judge          finished in 1:40" in lines
    assert "train          failed: the sampler is gone" in lines
    assert sum("step" in line for line in lines) == 5
    assert "step 40/40  reward 0.500  gold 0.250  kl 4.000" in lines[-1]


def test_the_live_picture_shows_stages_curves_and_time_left() -> None:
    out = io.StringIO()
    progress = RunProgress.of(["sample", "train", "evaluate"])
    console = Console(file=out, width=110, force_terminal=True, color_system=None)
    display = LiveDisplay(progress, title="rlaif run", console=console)
    progress.apply_event(event("sample", "skipped", 0))
    progress.apply_event(event("train", "started", 0))
    for number in range(1, 11):
        progress.apply_metrics(step(number, number / 10))
    display.close()
    picture = out.getvalue().split("rlaif run")[-1]
    assert "↷ " in picture
    assert "10/40" in picture
    assert "left" in picture
    assert "▁" in picture
    assert "gold" in picture
    assert "1.000" in picture


def test_the_last_panel_tells_verdict_evidence_and_where_to_read() -> None:
    out = io.StringIO()
    report = {
        "verdict": "improved",
        "win_rate": {"value": 0.75, "low": 0.7, "high": 0.8},
        "harmful_compliance": {"baseline": 0.35, "trained": 0.05},
        "over_refusal": {"baseline": 0.1, "trained": None},
        "mean_words": {"baseline": 12.0, "trained": 9.5},
        "kl": 2.5,
        "peak_rss_bytes": 3 * 2**30,
    }
    Console(file=out, width=100).print(summary_panel(report, report_path=Path("runs/x/report.html"), seconds=125))
    text = out.getvalue()
    for part in (
        "improved",
        "0.750  (95 % CI 0.700 to 0.800)",
        "35.0% → 5.0%",
        "12.0 → 9.5",
        "2.50 nats",
        "2:05",
        "3.00 GiB",
    ):
        assert part in text
    assert "runs/x/report.html" in text
    assert "over-refusal" not in text, "half a comparison is none"


def test_the_last_panel_of_a_run_that_trains_nothing_tells_of_its_labels() -> None:
    def shown(pipeline: str, **report: Any) -> str:
        out = io.StringIO()
        values = {"outcome": "finished", "verdict": "unknown", "settings": {"pipeline": pipeline}} | report
        Console(file=out, width=100).print(summary_panel(values, report_path=Path("runs/x/report.html"), seconds=1))
        return out.getvalue()

    quality = {"num_labels": 640, "abstention_rate": 0.0, "order_inconsistency": 0.125}
    text = shown("label-only", label_quality=quality, label_accuracy=0.9)
    for part in ("labels passed the gate", "640", "agreement with gold  90.0%", "abstentions          0.0%", "12.5%"):
        assert part in text
    assert "unknown" not in text
    accuracy, rate = {"value": 0.95, "low": 0.9, "high": 0.975}, {"value": 0.25, "low": 0.2, "high": 0.3}
    measured = {"human_agreement": accuracy, "abstention_rate": rate, "order_inconsistency": rate | {"value": None}}
    text = shown("judge-benchmark", benchmark={"num_pairs": 200, "statistics": {"": measured}})
    for part in ("judge measured", "200", "0.950  (95 % CI 0.900 to 0.975)", "25.0%"):
        assert part in text
    assert "order" not in text, "what is not known is not told"
    undecided = measured | {"human_agreement": {"value": None, "low": None, "high": None}}
    assert "not known" in shown("judge-benchmark", benchmark={"num_pairs": 200, "statistics": {"": undecided}})
    assert "unknown" in shown("label-only", outcome="gated", label_quality=quality)


def test_durations_read_like_a_clock() -> None:
    assert [duration(seconds) for seconds in (0.04, 59.9, 65, 3723)] == ["0.0 s", "59.9 s", "1:05", "1:02:03"]
