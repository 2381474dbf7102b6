"""Checkpoints are whole or absent, and metrics hold each step once."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from rlaif_pipelines.training.checkpoint import (
    checkpointed_steps,
    drop_checkpoints_after,
    latest_checkpoint,
    save_checkpoint,
)
from rlaif_pipelines.training.errors import DiskFullError, told_when_full
from rlaif_pipelines.training.metrics import MetricsLog


def save(root: Path, step: int, *, content: str = "weights", identity: str = "a", keep: int = 2) -> None:
    def write(folder: Path) -> None:
        (folder / "engine").mkdir()
        (folder / "engine" / "state.pt").write_text(f"{content} {step}")

    save_checkpoint(root, step=step, write=write, state={"rollouts": [step]}, identity=identity, keep=keep)


def test_the_newest_checkpoint_comes_back(tmp_path: Path) -> None:
    assert latest_checkpoint(tmp_path / "none", identity="a") is None
    for step in (5, 10, 15):
        save(tmp_path, step)
    found = latest_checkpoint(tmp_path, identity="a")
    assert found is not None
    assert (found.step, found.state) == (15, {"rollouts": [15]})
    assert (found.folder / "engine" / "state.pt").read_text() == "weights 15"
    assert checkpointed_steps(tmp_path) == [15, 10]


def test_a_crash_while_writing_leaves_the_one_before(tmp_path: Path) -> None:
    save(tmp_path, 5)

    def crash(folder: Path) -> None:
        (folder / "half").write_text("…")
        raise OSError(28, "No space left on device")

    with pytest.raises(DiskFullError, match="step-00000010 cannot be written: no space is left on the device"):
        save_checkpoint(tmp_path, step=10, write=crash, state={}, identity="a", keep=2)
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000005"]
    found = latest_checkpoint(tmp_path, identity="a")
    assert found is not None
    assert found.step == 5


@pytest.mark.parametrize(
    ("error", "why"),
    [
        (OSError(28, "No space left on device"), "no space is left on the device"),
        (OSError(122, "Disk quota exceeded"), "the quota is used up"),
        (RuntimeError("Error while serializing: I/O error: File too large (os error 27)"), "may not grow that large"),
    ],
)
def test_a_full_disk_is_told_however_a_library_says_it(error: Exception, why: str, tmp_path: Path) -> None:
    with pytest.raises(DiskFullError, match=f"{why}; make room and start again"), told_when_full(tmp_path):
        raise error
    with pytest.raises(PermissionError), told_when_full(tmp_path):
        raise PermissionError(13, "Permission denied")


def test_what_a_kill_leaves_is_never_loaded_and_later_overwritten(tmp_path: Path) -> None:
    save(tmp_path, 5)
    partial = tmp_path / ".step-00000010.partial"
    partial.mkdir()
    (partial / "checkpoint.json").write_text("{}")
    found = latest_checkpoint(tmp_path, identity="a")
    assert found is not None
    assert found.step == 5
    save(tmp_path, 10)
    assert not partial.exists()
    assert checkpointed_steps(tmp_path) == [10, 5]


@pytest.mark.parametrize("damage", ["truncate", "remove", "manifest"])
def test_a_damaged_checkpoint_is_passed_over(damage: str, tmp_path: Path) -> None:
    save(tmp_path, 5)
    save(tmp_path, 10)
    folder = tmp_path / "step-00000010"
    match damage:
        case "truncate":
            (folder / "engine" / "state.pt").write_text("weig")
        case "remove":
            (folder / "engine" / "state.pt").unlink()
        case "manifest":
            (folder / "checkpoint.json").write_text('{"step": 10')
    found = latest_checkpoint(tmp_path, identity="a")
    assert found is not None
    assert found.step == 5


def test_a_checkpoint_of_another_training_is_passed_over(tmp_path: Path) -> None:
    save(tmp_path, 5, identity="a")
    assert latest_checkpoint(tmp_path, identity="b") is None
    drop_checkpoints_after(tmp_path, step=0)
    assert checkpointed_steps(tmp_path) == []


def test_steps_done_again_are_logged_once_and_other_stages_stay(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    MetricsLog(path, stage="reward_model", num_steps=1).write(1, {"loss": 0.5})
    log = MetricsLog(path, stage="rl", num_steps=4)
    for step in (1, 2, 3):
        log.write(step, {"loss": 1.0 / step, "kl": float("nan"), "seconds": {"train": 1.23456789}})
    with path.open("a") as file:
        file.write('{"stage": "rl", "st')  # cut off by a kill
    MetricsLog(path, stage="rl", num_steps=4, resume_step=2).write(3, {"loss": 7.0})
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    assert [(row["stage"], row["step"]) for row in rows] == [("reward_model", 1), ("rl", 1), ("rl", 2), ("rl", 3)]
    assert (rows[1]["kl"], rows[1]["seconds"], rows[3]["loss"]) == (None, {"train": 1.23457}, 7.0)
    assert {"time", "stage", "step", "num_steps", "loss"} <= rows[0].keys()
