"""Two processes learn what one does, at every ZeRO stage, and go on from each other's checkpoints."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from model_fixtures import model_folder as model_folder
from training_fakes import GUARDS_OFF, label, prompt, write_lines
from training_processes import train

pytestmark = pytest.mark.slow

LORA = {"rank": 4, "alpha": 8}
VERBS = ("reward", "dpo", "rl")
TESTS = Path(__file__).parents[1]


@dataclass(frozen=True)
class Case:
    """One training, and the one whose checkpoint of step 2 of 4 it goes on from."""

    name: str
    verb: str
    engine: dict[str, Any]
    resumes: str = ""


TOGETHER = (
    *(Case(f"{verb}-{stage}", verb, {"zero_stage": stage}) for verb in VERBS for stage in (1, 2, 3)),
    *(
        Case(f"{verb}-lora-{stage}", verb, {"zero_stage": stage, "lora": LORA})
        for verb, stage in [("dpo", 3), ("rl", 2)]
    ),
    Case("reward-offload", "reward", {"zero_stage": 3, "offload": "optimizer_and_weights"}),
    Case("reward-from-one", "reward", {"zero_stage": 3}, resumes="reward"),
    Case("dpo-from-one", "dpo", {"zero_stage": 2}, resumes="dpo"),
    Case("rl-from-one", "rl", {"zero_stage": 1}, resumes="rl"),
)


class Workshop:
    """Where the trainings of this file are; each has four steps and a checkpoint after the second."""

    def __init__(self, root: Path, model: Path) -> None:
        self.root = root
        self._model = model
        self._labels = write_lines(root / "labels.jsonl", [label(n) for n in range(27)])
        self._prompts = write_lines(root / "prompts.jsonl", [prompt(n) for n in range(8)])

    def values(self, case: Case) -> dict[str, Any]:
        common: dict[str, Any] = {
            "out": str(self.root / case.name),
            "policy": str(self._model),
            "engine": {"num_threads": 1, "attention": "eager", "micro_batch_tokens": 512} | case.engine,
            "optimizer": {"learning_rate": 1e-3},
            "checkpoint_every": 2,
        }
        if case.verb == "rl":
            publish = {"artifact_root": str(self.root / case.name / "artifacts"), "policy": "policies/test"}
            return common | {
                "publish": publish,
                "prompts": str(self._prompts),
                "sampler": {"target": "unused"},
                "rewards": {"target": "unused"},
                "reward": {"name": "rewardModels/fake"},
                "num_steps": 4,
                "prompts_per_step": 4,
                "group_size": 4,
                "quorum": 2,
                "max_tokens": 12,
                "guards": GUARDS_OFF,
            }
        # Of 25 pairs to train on, the last batch of an epoch holds one: fewer than there are processes.
        pairs = {"labels": str(self._labels), "batch_pairs": 24, "num_epochs": 2, "held_out_fraction": 0.2}
        return common | pairs

    def prepare(self, case: Case) -> dict[str, Any]:
        """What the training is told; what it goes on from lies where it looks."""
        out = self.root / case.name
        out.mkdir()
        if case.resumes:
            found = self.root / case.resumes / "checkpoints"
            for folder in found.rglob("step-00000002"):
                shutil.copytree(folder, out / "checkpoints" / folder.relative_to(found))
        return self.values(case)

    def losses(self, name: str) -> list[float]:
        """Of every step, then of the held-out pairs."""
        lines = [json.loads(line) for line in (self.root / name / "metrics.jsonl").read_text().splitlines()]
        held_out = json.loads((self.root / name / "training.json").read_text())["results"].get("loss")
        return [line["loss"] for line in lines] + ([] if held_out is None else [held_out])


@pytest.fixture(scope="module")
def workshop(tmp_path_factory: pytest.TempPathFactory, model_folder: Path) -> Workshop:
    """Trainings by one process, then those by two, all two in one start."""
    workshop = Workshop(tmp_path_factory.mktemp("trainings"), model_folder)
    alone = [Case(verb, verb, {}) for verb in VERBS] + [
        Case(f"{verb}-lora", verb, {"lora": LORA}) for verb in ("dpo", "rl")
    ]
    for case in alone:
        train(case.verb, workshop.prepare(case))
    cases = [{"verb": case.verb, "values": workshop.prepare(case)} for case in TOGETHER]
    path = workshop.root / "cases.json"
    path.write_text(json.dumps(cases))
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    done = subprocess.run(
        [*command, str(TESTS / "training_processes.py"), str(path)],
        capture_output=True,
        text=True,
        # As Kubeflow's operator tells torchrun how many.
        env={**os.environ, "OMP_NUM_THREADS": "1", "PET_NPROC_PER_NODE": "2"},
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return workshop


@pytest.mark.parametrize("case", TOGETHER, ids=lambda case: case.name)
def test_two_processes_learn_what_one_does(case: Case, workshop: Workshop) -> None:
    alone = f"{case.verb}-lora" if "lora" in case.engine else case.verb
    ours, theirs = workshop.losses(case.name), workshop.losses(alone)
    # A training that went on has the lines of its own steps only.
    assert ours == pytest.approx(theirs[-len(ours) :], abs=1e-4)
    assert len(ours) == len(theirs) - (2 if case.resumes else 0)


@pytest.mark.parametrize(
    "case",
    [
        Case("reward-from-two", "reward", {}, resumes="reward-3"),
        Case("dpo-from-two", "dpo", {"zero_stage": 1}, resumes="dpo-2"),
        Case("rl-from-two", "rl", {"zero_stage": 3}, resumes="rl-1"),
        Case("dpo-lora-from-two", "dpo", {"lora": LORA}, resumes="dpo-lora-3"),
    ],
    ids=lambda case: case.name,
)
def test_one_process_goes_on_from_what_two_left(case: Case, workshop: Workshop) -> None:
    train(case.verb, workshop.prepare(case))
    alone = f"{case.verb}-lora" if "lora" in case.engine else case.verb
    ours, theirs = workshop.losses(case.name), workshop.losses(alone)
    assert ours == pytest.approx(theirs[2:], abs=1e-4)
