"""A step's figures reach the console, TensorBoard, Prometheus and pictures as they stand in metrics.jsonl."""

from __future__ import annotations

import io
import urllib.request
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from rlaif.core.errors import SettingsError
from rlaif_pipelines.training.config.reward import RewardTraining
from rlaif_pipelines.training.metrics import MetricsLog, open_metrics
from rlaif_pipelines.training.monitors import Console, RemainingTime, TensorBoard
from rlaif_pipelines.training.plots import write_plots
from rlaif_pipelines.training.prometheus import Prometheus


def line(step: int, **figures: Any) -> dict[str, Any]:
    return {"time": 1.0 + step, "stage": "rl", "step": step, "num_steps": 100} | figures


def test_a_log_gets_the_first_line_the_last_and_few_between() -> None:
    stream = io.StringIO()
    console = Console(stream)
    for step in range(1, 101):
        console(line(step, reward=0.51234, kl=None, tokens_per_second=1234.5, loss=0.1))
    lines = stream.getvalue().splitlines()
    assert lines == [
        "rl 1/100  loss 0.1  reward 0.5123  tokens/s 1234",
        "rl 100/100  loss 0.1  reward 0.5123  tokens/s 1234",
    ]


def test_remaining_time_counts_from_where_this_start_began(monkeypatch: pytest.MonkeyPatch) -> None:
    remaining = RemainingTime()
    now = iter([100.0, 110.0])
    monkeypatch.setattr("time.monotonic", lambda: next(now))
    assert remaining.seconds(40, 100) is None
    assert remaining.seconds(45, 100) == 110.0  # 2 s a step, 55 to go


def test_tensorboard_reads_what_was_written_and_forgets_what_is_done_again(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    first = TensorBoard(tmp_path, resume_step=0)
    for step in (1, 2, 3):
        first(line(step, reward=step / 10, seconds={"train": 2.0}, guard=None))
    TensorBoard(tmp_path, resume_step=1)(line(2, reward=0.9))
    events = EventAccumulator(str(tmp_path)).Reload()
    assert set(events.Tags()["scalars"]) == {"reward", "seconds/train"}
    assert [(event.step, round(event.value, 3)) for event in events.Scalars("reward")] == [(1, 0.1), (2, 0.9)]


def test_prometheus_reads_the_last_step(unused_tcp_port: int) -> None:
    prometheus = Prometheus(f"127.0.0.1:{unused_tcp_port}")
    told = {
        "reward": 0.25,
        "kl": 0.5,
        "loss": None,
        "clip_fraction": 0.125,
        "guards": [{"guard": "kl"}],
        "guards_used": {"kl": 1.5, "length": 0.25},
        "num_sequences": 60,
        "skipped": False,
        "seconds": {"step": 4.0, "sample": 3.0, "told by nobody": 1.0},
    }
    prometheus(line(7, dropped={"ABSTAINED": 3, "groups_below_quorum": 1}, **told))
    prometheus(line(8, dropped={f"REASON_{'ABCDEFGHIJ'[i % 10]}{'ABCDEFGHIJ'[i // 10]}": 1 for i in range(99)}))
    prometheus(line(9, dropped={"said '<script>'": 2}, skipped=True, seconds=2.5))
    with urllib.request.urlopen(f"http://127.0.0.1:{unused_tcp_port}/metrics") as page:
        text = page.read().decode()
    assert 'rlaif_training_step{stage="rl"} 9.0' in text
    assert 'rlaif_training_steps_planned{stage="rl"} 100.0' in text
    assert 'rlaif_training_reward{stage="rl"} 0.25' in text
    assert 'rlaif_training_kl_nats{stage="rl"} 0.5' in text
    assert 'rlaif_training_clip_ratio{stage="rl"} 0.125' in text
    assert 'rlaif_training_last_step_timestamp_seconds{stage="rl"} 10.0' in text
    assert 'rlaif_training_guards_total{guard="kl",stage="rl"} 1.0' in text
    assert 'rlaif_training_guard_used_ratio{guard="length",stage="rl"} 0.25' in text
    assert 'rlaif_training_samples_total{stage="rl"} 60.0' in text
    assert 'rlaif_training_skipped_steps_total{stage="rl"} 1.0' in text
    assert 'rlaif_training_part_seconds{part="sample",stage="rl"} 3.0' in text
    assert 'rlaif_training_part_seconds{part="step",stage="rl"} 2.5' in text
    assert 'rlaif_training_dropped_total{reason="abstained",stage="rl"} 3.0' in text
    assert text.count("rlaif_training_part_seconds{") == 2
    # Twenty reasons are told apart, whatever a reward service says.
    assert text.count("rlaif_training_dropped_total{") == 21
    assert 'rlaif_training_dropped_total{reason="too_long",stage="rl"} 0.0' in text
    assert 'rlaif_training_dropped_total{reason="other",stage="rl"} 85.0' in text
    assert 'rlaif_training_loss{stage="rl"}' not in text


def test_a_port_in_use_is_told_with_its_setting() -> None:
    import socket

    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        with pytest.raises(SettingsError, match=rf"metrics_address {address} cannot be listened on"):
            Prometheus(address)


def test_settings_say_who_is_told(tmp_path: Path) -> None:
    settings = RewardTraining(out=tmp_path, policy="model", labels=tmp_path / "labels.jsonl", tensorboard=True)
    open_metrics(settings, stage="reward_model", num_steps=2, resume_step=0).write(1, {"loss": 0.5})
    assert (tmp_path / "metrics.jsonl").is_file()
    assert list((tmp_path / "tensorboard" / "reward_model").glob("events.*"))


def test_each_figure_is_a_picture_on_its_own(tmp_path: Path) -> None:
    log = MetricsLog(tmp_path / "metrics.jsonl", stage="rl", num_steps=3)
    for step in (1, 2, 3):
        log.write(step, {"loss": 1 / step, "kl": None, "reward": 0.5})
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"stage"')
    written = write_plots(tmp_path / "plots", metrics=tmp_path / "metrics.jsonl")
    assert [path.name for path in written] == ["rl-loss.svg", "rl-reward.svg"]
    root = ElementTree.fromstring(written[0].read_text())
    assert root.tag == "{http://www.w3.org/2000/svg}svg"
    assert root.find("{http://www.w3.org/2000/svg}polyline") is not None
