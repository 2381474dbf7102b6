"""What a stage hands to the job that trains for it, and how it tells that the job failed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from rlaif.core.errors import InvalidInputError, SettingsError
from rlaif_pipelines.context import RunContext
from rlaif_pipelines.jobs.settings import JobSettings
from rlaif_pipelines.jobs.spec import JobResult, JobSpec
from rlaif_pipelines.settings import ServiceAddresses, make_settings
from rlaif_pipelines.stages import training_job
from rlaif_pipelines.stages.training_job import TrainingFailedError, train_model

POD: dict[str, Any] = {"image": "trainer:1", "volume_claim": "runs"}


def train(
    root: Path, monkeypatch: pytest.MonkeyPatch, *, jobs: dict[str, Any], engine: dict[str, Any], result: JobResult
) -> tuple[JobSpec, dict[str, Any]]:
    """What the job was told, after a job that ended like this."""
    seen: list[JobSpec] = []

    def launch(spec: JobSpec, settings: JobSettings) -> JobResult:
        seen.append(spec)
        return result

    monkeypatch.setattr(training_job, "launch", launch)
    context = RunContext(root, make_settings({"jobs": jobs}), ServiceAddresses())
    out = context.stage_folder("sft") / "job"
    out.mkdir(parents=True)
    (out / "training.json").write_text(json.dumps({"models": [], "results": {}}))
    config = {"out": out, "policy": "p", "conversations": "c.jsonl", "engine": engine}
    train_model(context, "sft", verb="sft", config=config)
    (spec,) = seen
    return spec, json.loads(spec.config_path.read_text())


def ended(exit_code: int, words: str = "", **more: Any) -> JobResult:
    return JobResult(exit_code, words, 1.0, Path("sft.log"), **more)


def test_in_a_pod_a_training_writes_checkpoints_and_shows_prometheus_its_figures(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    jobs = {"launcher": "indexed_job", "pod": POD | {"gpus": 4}, "checkpoint_every": 7}
    spec, config = train(tmp_path, monkeypatch, jobs=jobs, engine={"device": "cuda"}, result=ended(0))
    assert (spec.name, spec.num_processes) == ("sft", 4)
    assert (config["checkpoint_every"], config["metrics_address"]) == (7, "0.0.0.0:9090")


def test_here_it_writes_checkpoints_too_and_shows_nothing_unless_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, config = train(tmp_path, monkeypatch, jobs={}, engine={}, result=ended(0))
    assert (config["checkpoint_every"], config["metrics_address"]) == (50, None)


def test_a_gpu_that_no_pod_asks_for_is_told_before_anything_is_started(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(SettingsError, match=r"engine.device is cuda, but jobs.pod.gpus is 0"):
        train(
            tmp_path,
            monkeypatch,
            jobs={"launcher": "indexed_job", "pod": POD},
            engine={"device": "cuda"},
            result=ended(0),
        )


def test_a_failed_job_is_told_with_its_kind_attempts_and_log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    result = ended(137, "pod a was out of memory", reason="OUT_OF_MEMORY", attempts=2)
    with pytest.raises(TrainingFailedError) as caught:
        train(tmp_path, monkeypatch, jobs={}, engine={}, result=result)
    assert caught.value.reason == "OUT_OF_MEMORY"
    assert caught.value.message == "sft ended with OUT_OF_MEMORY in attempt 2: pod a was out of memory (see sft.log)"


def test_a_trainings_own_failure_keeps_its_exit_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(TrainingFailedError, match="sft ended with exit code 1: the disk is full"):
        train(tmp_path, monkeypatch, jobs={}, engine={}, result=ended(1, "the disk is full"))
    with pytest.raises(InvalidInputError, match="sft: no such file"):
        train(tmp_path / "b", monkeypatch, jobs={}, engine={}, result=ended(2, "no such file"))
