"""Reward and DPO training on tiny models: they learn, they repeat, they go on, and serving agrees with them."""

from __future__ import annotations

import asyncio
import json
import os
import random
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

from model_fixtures import model_folder as model_folder
from rlaif.core.conversation import Message
from rlaif.core.errors import InvalidInputError
from rlaif.engine.protocol import ModelIdentity
from rlaif.engine.reward_model import RewardModelEngine, RewardModelOptions
from rlaif.runtime.artifacts import folder_digest, read_desired
from rlaif_pipelines.jobs.local import JobSpec, run_job
from rlaif_pipelines.training import dpo, reward
from rlaif_pipelines.training.config.common import TrainingSettings
from rlaif_pipelines.training.config.dpo import DpoTraining
from rlaif_pipelines.training.config.reward import RewardTraining
from training_fakes import label, write_lines

ENGINE = {"num_threads": 1, "attention": "eager"}
ASK = (Message("user", "How do I boil water?"),)


@pytest.fixture(scope="module")
def labels(tmp_path_factory: pytest.TempPathFactory) -> Path:
    rows = [label(n) for n in range(96)] + [label(97, probability_first=None)]
    return write_lines(tmp_path_factory.mktemp("labels") / "labels.jsonl", rows)


def reward_settings(out: Path, *, model: Path, labels: Path, **changes: Any) -> RewardTraining:
    values = {
        "out": out,
        "policy": str(model),
        "labels": labels,
        "num_epochs": 4,
        "batch_pairs": 16,
        "held_out_fraction": 0.2,
        "engine": ENGINE,
        "optimizer": {"learning_rate": 3e-3},
    }
    return RewardTraining.model_validate(values | changes)


def record_of(out: Path) -> dict[str, Any]:
    return dict(json.loads((out / "training.json").read_text()))


def steps_of(out: Path) -> list[tuple[str, int]]:
    rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return [(row["stage"], row["step"]) for row in rows]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, model_folder: Path, labels: Path) -> Path:
    out = tmp_path_factory.mktemp("reward")
    reward.run(reward_settings(out, model=model_folder, labels=labels))
    return out


def test_a_reward_model_learns_what_the_judge_prefers(trained: Path) -> None:
    record = record_of(trained)
    results = record["results"]
    assert results["accuracy"] == 1.0
    assert results["brier"] < 0.05
    assert results["counts"] == {
        "trained": 91,
        "held_out": 5,
        "abstained": 1,
        "weightless": 0,
        "identical": 0,
        "merged": 0,
        "too_long": 0,
    }
    assert results["labels"][0]["num_pairs"] == 96
    assert results["slices"]["source=ai"]["num_pairs"] == 5
    assert record["models"] == [{"uri": str(trained / "model"), "digest": folder_digest(trained / "model")}]
    assert record["base"]["digest"] in (trained / "model" / "README.md").read_text()


def test_the_service_gives_the_rewards_that_training_had(trained: Path, labels: Path) -> None:
    assert_served_as_trained(trained / "model", labels)


def test_what_principles_taught_leaves_a_plain_reward_model(tmp_path: Path, model_folder: Path, labels: Path) -> None:
    rows = [json.loads(line) for line in labels.read_text().splitlines()]
    for row in rows:
        votes = {"good": row["probability_first"], "shy": None}
        row["votes"] = [
            {"principle_id": name, "probability_first": vote, "weight": 1.0} for name, vote in votes.items()
        ]
    voted = write_lines(tmp_path / "labels.jsonl", rows)
    out = tmp_path / "out"
    reward.run(reward_settings(out, model=model_folder, labels=voted, principle_loss_weight=2.0))
    assert record_of(out)["results"]["accuracy"] == 1.0
    assert load_file(out / "model" / "model.safetensors")["score.weight"].shape[0] == 1
    assert "LABEL_1" not in (out / "model" / "config.json").read_text()
    assert_served_as_trained(out / "model", labels)


def assert_served_as_trained(model: Path, labels: Path) -> None:
    rows = [json.loads(line) for line in labels.read_text().splitlines()][:12]

    async def score() -> list[float]:
        engine = RewardModelEngine(RewardModelOptions(), num_threads=1)
        ensemble = await engine.load([ModelIdentity(uri=str(model), digest="")])
        inputs = [((Message(**row["messages"][0]),), row[side]) for row in rows for side in ("first", "second")]
        values = await engine.score(await engine.encode(ensemble, inputs), repeatable=True)
        engine.close()
        return [value for (value,) in values]

    rewards = asyncio.run(score())
    agreeing = [(rewards[2 * n] > rewards[2 * n + 1]) == (row["probability_first"] > 0.5) for n, row in enumerate(rows)]
    assert all(agreeing)


def test_the_same_settings_give_the_same_weights(
    trained: Path, tmp_path: Path, model_folder: Path, labels: Path
) -> None:
    reward.run(reward_settings(tmp_path, model=model_folder, labels=labels))
    assert folder_digest(tmp_path / "model") == folder_digest(trained / "model")


def test_members_of_an_ensemble_differ(tmp_path: Path, model_folder: Path, labels: Path) -> None:
    settings = reward_settings(
        tmp_path, model=model_folder, labels=labels, num_members=2, num_epochs=2, bootstrap=True, margin=0.5
    )
    results = reward.run(settings)
    models = record_of(tmp_path)["models"]
    assert [Path(model["uri"]).name for model in models] == ["model-0", "model-1"]
    assert models[0]["digest"] != models[1]["digest"]
    assert len(results["members"]) == 2
    assert 0.0 <= results["disagreement"] <= 1.0
    assert {stage for stage, _ in steps_of(tmp_path)} == {"reward_model_0", "reward_model_1"}


def start_training(verb: str, settings: TrainingSettings, *, folder: Path) -> subprocess.Popen[str]:
    config = folder / "config.json"
    config.write_text(settings.model_dump_json())
    command = [sys.executable, "-m", "rlaif_pipelines.training", verb, "--config", str(config)]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)


def wait_for(condition: Callable[[], bool], *, process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 300
    while not condition():
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.005)


def test_a_training_killed_at_any_step_goes_on_to_the_same_weights(
    trained: Path, tmp_path: Path, model_folder: Path, labels: Path
) -> None:
    settings = reward_settings(tmp_path / "out", model=model_folder, labels=labels, checkpoint_every=4)
    step = random.randint(4, 20)
    killed = start_training("reward", settings, folder=tmp_path)
    metrics = tmp_path / "out" / "metrics.jsonl"
    wait_for(lambda: metrics.exists() and metrics.read_text().count("\n") >= step, process=killed)
    killed.send_signal(signal.SIGKILL)
    killed.communicate()
    reward.run(settings)
    assert folder_digest(tmp_path / "out" / "model") == folder_digest(trained / "model"), f"killed at step {step}"
    assert steps_of(tmp_path / "out") == [("reward_model", step) for step in range(1, 25)]


def test_a_disk_that_fills_up_ends_a_training_in_a_sentence_and_it_goes_on_later(
    trained: Path, tmp_path: Path, model_folder: Path, labels: Path
) -> None:
    settings = reward_settings(tmp_path / "out", model=model_folder, labels=labels, checkpoint_every=4)
    filling = start_training("reward", settings, folder=tmp_path)
    checkpoints = tmp_path / "out" / "checkpoints" / "member-0"
    wait_for(lambda: (checkpoints / "step-00000004").exists(), process=filling)
    # From here on the kernel refuses it files of more than 64 KiB, as it refuses all on a disk that is full.
    resource.prlimit(filling.pid, resource.RLIMIT_FSIZE, (64 * 1024, 64 * 1024))
    _, said = filling.communicate(timeout=300)
    assert filling.returncode == 1
    last = said.strip().splitlines()[-1]
    assert last.startswith(str(tmp_path / "out"))
    assert "cannot be written: files may not grow that large; make room and start again, and training goes on" in last
    assert "Traceback" not in said
    assert {path.name for path in checkpoints.iterdir()} <= {f"step-{step:08d}" for step in range(4, 24, 4)}
    reward.run(settings)
    assert folder_digest(tmp_path / "out" / "model") == folder_digest(trained / "model")


@pytest.mark.parametrize("zero_stage", [1, 2, 3])
def test_zero_changes_where_things_are_and_not_what_is_learnt(
    zero_stage: int, trained: Path, tmp_path: Path, model_folder: Path, labels: Path
) -> None:
    reward.run(reward_settings(tmp_path, model=model_folder, labels=labels, engine=ENGINE | {"zero_stage": zero_stage}))
    ours, theirs = record_of(tmp_path)["results"], record_of(trained)["results"]
    assert ours["loss"] == pytest.approx(theirs["loss"], abs=1e-4)


@pytest.mark.parametrize("precision", ["bfloat16_autocast", "bfloat16"])
def test_training_by_bfloat16_learns_as_well(precision: str, tmp_path: Path, model_folder: Path, labels: Path) -> None:
    settings = reward_settings(tmp_path, model=model_folder, labels=labels, engine=ENGINE | {"precision": precision})
    assert reward.run(settings)["accuracy"] == 1.0


@pytest.mark.slow
def test_wrong_input_is_told_through_torchrun(tmp_path: Path, model_folder: Path) -> None:
    settings = reward_settings(tmp_path / "out", model=model_folder, labels=tmp_path / "none.jsonl")
    config = tmp_path / "config.json"
    config.write_text(settings.model_dump_json())
    result = run_job(JobSpec("reward", config, tmp_path / "job.log", num_processes=2))
    assert result.exit_code == 2
    assert result.last_words == f"cannot read {tmp_path / 'none.jsonl'}: No such file or directory"


def dpo_settings(out: Path, *, model: Path, labels: Path, **changes: Any) -> DpoTraining:
    values = {
        "out": out / "job",
        "policy": str(model),
        "labels": labels,
        "num_epochs": 3,
        "batch_pairs": 16,
        "held_out_fraction": 0.2,
        "engine": ENGINE,
        "optimizer": {"learning_rate": 1e-3},
        "publish": {"artifact_root": out / "artifacts", "policy": "policies/test", "base_version": 5},
    }
    return DpoTraining.model_validate(values | changes)


def test_dpo_moves_the_policy_to_what_is_preferred_and_publishes_it(
    tmp_path: Path, model_folder: Path, labels: Path
) -> None:
    results = dpo.run(dpo_settings(tmp_path, model=model_folder, labels=labels))
    assert results["accuracy"] == 1.0
    published = read_desired(tmp_path / "artifacts", "policies/test")
    assert published is not None
    assert (published.version, published.digest) == (5 + results["num_steps"], results["digest"])
    assert published.digest == folder_digest(tmp_path / "job" / "model")
    steps = [json.loads(line) for line in (tmp_path / "job" / "metrics.jsonl").read_text().splitlines()]
    assert (steps[0]["accuracy"], steps[0]["margin"]) == (0.5, 0.0), "before the first step it is its own reference"
    assert steps[-1]["accuracy"] > 0.9
    assert steps[-1]["margin"] > 0.0


@pytest.mark.parametrize("loss", ["sigmoid_norm", "ipo", "hinge", "simpo"])
def test_every_loss_learns_what_is_preferred(loss: str, tmp_path: Path, model_folder: Path, labels: Path) -> None:
    settings = dpo_settings(tmp_path, model=model_folder, labels=labels, loss=loss, publish=None)
    results = dpo.run(settings)
    assert results["accuracy"] == 1.0
    assert (results["brier"] is None) == (loss != "sigmoid_norm")
    assert (results["preferred_logprob_change"] is None) == (loss == "simpo")


def test_the_sft_term_keeps_the_preferred_response_likely(tmp_path: Path, model_folder: Path, labels: Path) -> None:
    changes = []
    for sft_weight in (0.0, 1.0):
        settings = dpo_settings(
            tmp_path / str(sft_weight), model=model_folder, labels=labels, sft_weight=sft_weight, publish=None
        )
        changes.append(dpo.run(settings)["preferred_logprob_change"])
    assert changes[1] > changes[0]


def test_people_s_labels_outweigh_the_judge_s_where_told(tmp_path: Path, model_folder: Path, labels: Path) -> None:
    rows = [json.loads(line) for line in labels.read_text().splitlines()]
    contrary = [row | {"probability_first": 1.0 - row["probability_first"]} for row in rows[:96]]
    people = write_lines(tmp_path / "people.jsonl", contrary)
    files = [labels, {"path": people, "weight": 50.0, "source": "human"}]
    out = tmp_path / "out"
    results = reward.run(reward_settings(out, model=model_folder, labels=files))
    assert results["slices"]["source=human"]["accuracy"] == 1.0
    assert results["slices"]["source=ai"]["accuracy"] == 0.0
    record = record_of(out)
    assert [each["weight"] for each in record["results"]["labels"]] == [1.0, 50.0]
    assert set(record["inputs"]) == {"labels", "labels_1"}
    card = (out / "model" / "README.md").read_text()
    assert "labels 2 | 96 pairs at weight 50" in card
    assert "… source=human | 1.000" in card


def test_pairs_beyond_the_context_are_counted_and_all_of_them_refused(
    tmp_path: Path, model_folder: Path, labels: Path
) -> None:
    rows = [json.loads(line) for line in labels.read_text().splitlines()]
    long = [row | {"first": "water " * 300} for row in rows[:8]]
    mixed = write_lines(tmp_path / "mixed.jsonl", [*long, *rows[8:]])
    settings = reward_settings(tmp_path / "out", model=model_folder, labels=mixed, num_epochs=1)
    assert reward.run(settings)["counts"]["too_long"] == 8
    only = write_lines(tmp_path / "only.jsonl", long)
    for train in (
        lambda: reward.run(reward_settings(tmp_path / "r", model=model_folder, labels=only)),
        lambda: dpo.run(dpo_settings(tmp_path / "d", model=model_folder, labels=only)),
    ):
        with pytest.raises(InvalidInputError, match="every pair is longer than the model's context of 256 tokens"):
            train()


def test_dpo_killed_at_any_step_goes_on_to_the_same_weights(tmp_path: Path, model_folder: Path, labels: Path) -> None:
    changes: dict[str, Any] = {"checkpoint_every": 3, "publish": None}
    dpo.run(dpo_settings(tmp_path / "whole", model=model_folder, labels=labels, **changes))
    settings = dpo_settings(tmp_path / "killed", model=model_folder, labels=labels, **changes)
    step = random.randint(3, 14)
    killed = start_training("dpo", settings, folder=tmp_path)
    metrics = settings.metrics_file
    wait_for(lambda: metrics.exists() and metrics.read_text().count("\n") >= step, process=killed)
    killed.send_signal(signal.SIGKILL)
    killed.communicate()
    dpo.run(settings)
    whole, gone_on = (folder_digest(tmp_path / name / "job" / "model") for name in ("whole", "killed"))
    assert gone_on == whole, f"killed at step {step}"


def test_dpo_in_micro_batches_is_dpo(tmp_path: Path, model_folder: Path, labels: Path) -> None:
    losses = []
    for name, tokens in (("whole", 100_000), ("cut", 128)):
        settings = dpo_settings(
            tmp_path / name,
            model=model_folder,
            labels=labels,
            num_epochs=1,
            engine=ENGINE | {"micro_batch_tokens": tokens},
            publish=None,
        )
        losses.append(dpo.run(settings)["loss"])
    assert losses[0] == pytest.approx(losses[1], abs=1e-5)


def drop_tensor(folder: Path, name: str) -> None:
    tensors = load_file(folder / "model.safetensors")
    del tensors[name]
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


@pytest.mark.parametrize(
    ("spoil", "sentence"),
    [
        (lambda folder: (folder / "config.json").unlink(), "holds no config.json: it is not a model folder"),
        (lambda folder: (folder / "model.safetensors").unlink(), "holds no .safetensors file"),
        (lambda folder: (folder / "model.safetensors").write_bytes(b"no weights"), "the model cannot be loaded"),
        (lambda folder: (folder / "tokenizer.json").unlink(), "the tokenizer cannot be loaded"),
        (lambda folder: drop_tensor(folder, "model.norm.weight"), "the weights lack 1 tensors .* model.norm.weight"),
    ],
)
def test_a_spoilt_model_folder_is_refused_in_a_sentence(
    spoil: Any, sentence: str, tmp_path: Path, model_folder: Path, labels: Path
) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    for path in model_folder.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    spoil(folder)
    with pytest.raises(InvalidInputError, match=sentence):
        reward.run(reward_settings(tmp_path / "out", model=folder, labels=labels))
    assert not (tmp_path / "out").exists() or not any(os.scandir(tmp_path / "out"))
