"""The benchmark of training keeps up with the trainers: both sides are given the same pairs, and settings that hold."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import ClassVar

import pytest

from rlaif_pipelines.training import metrics
from rlaif_pipelines.training.config.rl import RlTraining


@pytest.mark.slow
def test_both_sides_of_the_benchmark_are_given_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", [str(Path(__file__).parents[1] / "bench"), *sys.path])
    import train_ours
    import train_trl
    from train_workload import Workload, write_inputs

    workload = Workload(folder=str(tmp_path), steps=1, repetitions=1, batch_pairs=4, prompts_per_step=2)
    write_inputs(workload)
    pairs, prompts = train_trl.pairs_in_our_order(workload), train_trl.prompts_in_our_order(workload)
    assert (len(pairs), len(prompts)) == (8, 4)
    chosen = [train_trl.as_row(pair)["chosen"][0]["content"] for pair in pairs]
    assert chosen == [pair.first if pair.probability_first == 1.0 else pair.second for pair in pairs]
    values = {"out": tmp_path, "policy": "unused"} | train_ours.rl_values(workload, sampler="unused")
    assert RlTraining.model_validate(values).num_steps == 2


@pytest.mark.slow
def test_the_trainers_write_to_the_log_that_takes_turns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", [str(Path(__file__).parents[1] / "bench"), *sys.path])
    monkeypatch.setattr(metrics, "MetricsLog", metrics.MetricsLog)  # restored afterwards
    import train_ours
    from train_workload import Workload

    class Turns:
        told: ClassVar[list[object]] = []

        def begin(self) -> None:
            self.told.append("begin")

        def end(self, loss: float | None) -> None:
            self.told.append(loss)

    train_ours.log_with_turns(Turns())
    values = {"out": tmp_path, "policy": "unused"} | train_ours.rl_values(
        Workload(folder=str(tmp_path), steps=1, repetitions=1), sampler="unused"
    )
    log = metrics.open_metrics(RlTraining.model_validate(values), stage="rl", num_steps=2, resume_step=0)
    log.write(1, {"loss": 0.5})
    assert Turns.told == ["begin", 0.5, "begin"]
