"""Trainings as a job's pods run them, and the pipeline compiled where its tasks run: run by `make images-test`."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

from images.containers import run, running

QUESTIONS = [f"How do I clean {number} windows?" for number in range(16)]
SHORT, LONG = "With water and a cloth.", "First, take some water. Then rub with a cloth. Last, dry it."
TORCHRUN = ("python", "-m", "torch.distributed.run", "--nproc-per-node=2", "-m", "rlaif_pipelines.training")
PLAIN = ("python", "-m", "rlaif_pipelines.training")
ENGINE = {"num_threads": 1, "attention": "eager"}
START_SECONDS = 120.0
STOP_SECONDS = 30.0


@pytest.fixture(scope="module")
def policy(images: dict[str, str]) -> str:
    """Where the image has the playground's policy."""
    found = run(images["trainer"], "python", "-c", "from rlaif.playground.paths import POLICY_DIR; print(POLICY_DIR)")
    assert found.exit_code == 0, found.stderr
    return found.stdout.strip()


@pytest.fixture
def shared(tmp_path: Path) -> Path:
    """A volume that the images' user may write to, with something to learn from."""
    conversations = [{"prompt": question, "response": SHORT} for question in QUESTIONS]
    pairs = [
        {"prompt": [{"role": "user", "content": question}], "first": SHORT, "second": LONG, "probability_first": share}
        for question in QUESTIONS
        for share in (0.9, 0.2)
    ]
    for name, rows in (("conversations", conversations), ("labels", pairs)):
        (tmp_path / f"{name}.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    tmp_path.chmod(0o755)
    os.chown(tmp_path, 65532, 65532)
    return tmp_path


def write_config(shared: Path, verb: str, **values: Any) -> str:
    """The file of a training's settings; its path in containers."""
    (shared / f"{verb}.yaml").write_text(yaml.safe_dump({"out": f"/rlaif/{verb}", "engine": ENGINE, **values}))
    return f"/rlaif/{verb}.yaml"


def test_a_policy_is_tuned_by_two_processes(images: dict[str, str], policy: str, shared: Path) -> None:
    config = write_config(
        shared, "sft", policy=policy, conversations="/rlaif/conversations.jsonl", num_epochs=1, batch_conversations=8
    )
    found = run(images["trainer"], *TORCHRUN, "sft", "--config", config, mounts={str(shared): "/rlaif:rw"})
    assert found.exit_code == 0, found.stderr[-4000:]
    assert (shared / "sft/model/model.safetensors").stat().st_uid == 65532
    record = json.loads((shared / "sft/training.json").read_text())
    assert record["results"]
    assert "Read-only" not in found.stderr


def test_a_reward_model_is_trained(images: dict[str, str], policy: str, shared: Path) -> None:
    config = write_config(shared, "reward", policy=policy, labels="/rlaif/labels.jsonl", num_epochs=1, batch_pairs=8)
    found = run(images["trainer"], *PLAIN, "reward", "--config", config, mounts={str(shared): "/rlaif:rw"})
    assert found.exit_code == 0, found.stderr[-4000:]
    assert json.loads((shared / "reward/training.json").read_text())["models"]


def test_wrong_settings_end_a_training_with_a_sentence(images: dict[str, str], shared: Path) -> None:
    config = write_config(shared, "sft", policy="/nowhere", conversations="/rlaif/conversations.jsonl")
    found = run(images["trainer"], *PLAIN, "sft", "--config", config, mounts={str(shared): "/rlaif:rw"})
    assert found.exit_code == 2
    assert "/nowhere" in found.stderr


def test_told_to_stop_a_training_ends_at_once(images: dict[str, str], policy: str, shared: Path) -> None:
    config = write_config(
        shared,
        "sft",
        policy=policy,
        conversations="/rlaif/conversations.jsonl",
        num_epochs=100_000,
        batch_conversations=8,
    )
    mounts = {str(shared): "/rlaif:rw"}
    with running(
        images["trainer"], *TORCHRUN, "sft", "--config", config, name="rlaif-images-trainer", mounts=mounts
    ) as job:
        await_file(shared / "sft/metrics.jsonl")
        began = time.monotonic()
        assert job.terminate() != 0
        assert time.monotonic() - began < STOP_SECONDS


def test_the_pipeline_is_compiled_where_its_tasks_run(images: dict[str, str], shared: Path) -> None:
    found = run(images["pipelines"], "rlaif", "compile", "-o", "/rlaif/rlaif.yaml", mounts={str(shared): "/rlaif:rw"})
    assert found.exit_code == 0, found.stderr
    pipeline, platform = yaml.safe_load_all((shared / "rlaif.yaml").read_text())
    assert pipeline["pipelineInfo"]["name"] == "rlaif"
    assert platform["platforms"]["kubernetes"]


def await_file(path: Path) -> None:
    """Returns once the file is there."""
    deadline = time.monotonic() + START_SECONDS
    while not path.exists():
        assert time.monotonic() < deadline, f"{path.name} was not written"
        time.sleep(0.2)
