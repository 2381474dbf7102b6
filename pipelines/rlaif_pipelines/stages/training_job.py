"""Run one training as a job and read what it left."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rlaif.core.errors import InvalidInputError, RlaifError, SettingsError
from rlaif_pipelines.context import RunContext, read_json, write_json
from rlaif_pipelines.jobs.launch import launch
from rlaif_pipelines.jobs.settings import JobSettings
from rlaif_pipelines.jobs.spec import JobResult, JobSpec
from rlaif_pipelines.training.config.verbs import SETTINGS, Verb

RECORD_FILE = "training.json"
_WRONG_INPUT, _GUARDED = 2, 3
_METRICS_ADDRESS = "0.0.0.0:9090"


class TrainingFailedError(RlaifError, RuntimeError):
    """A training job ended without what it was to make; the message is its last words, the reason says of which kind.

    The reason is that of the job, such as OUT_OF_MEMORY, or TRAINING_FAILED where the training itself gave up.
    """

    reason = "TRAINING_FAILED"


def train_model(context: RunContext, stage: str, *, verb: Verb, config: Mapping[str, Any]) -> dict[str, Any]:
    """Train, or go on from the last checkpoint, and return the models made, the results, and why a guard stopped it.

    The job's own output goes to logs/<stage>.log. Where it runs is up to the run's `jobs` settings.
    """
    jobs = context.settings.jobs
    settings = SETTINGS[verb].model_validate(_placed(config, jobs))
    if jobs.on_cluster and settings.engine.device == "cuda" and not jobs.pod.gpus:
        raise SettingsError("engine.device is cuda, but jobs.pod.gpus is 0; raise it", field="jobs.pod.gpus")
    config_path = context.stage_folder(stage) / "config.json"
    write_json(config_path, settings.model_dump(mode="json"))
    log_path = context.root / "logs" / f"{stage}.log"
    spec = JobSpec(verb, config_path, log_path, num_processes=jobs.num_processes, name=stage)
    result = launch(spec, jobs)
    if result.exit_code == _WRONG_INPUT:
        raise InvalidInputError(f"{stage}: {result.last_words}", field="training")
    if result.exit_code not in (0, _GUARDED):
        raise _failure(stage, result)
    record = read_json(Path(settings.out) / RECORD_FILE)
    return {
        "members": record["models"],
        "results": record["results"],
        "stopped_by": result.last_words if result.exit_code == _GUARDED else None,
    }


def _placed(config: Mapping[str, Any], jobs: JobSettings) -> dict[str, Any]:
    """The configuration with checkpoints to go on from, and in a pod with figures for Prometheus."""
    in_pod = {"metrics_address": _METRICS_ADDRESS} if jobs.on_cluster else {}
    return {"checkpoint_every": jobs.checkpoint_every, **in_pod, **config}


def _failure(stage: str, result: JobResult) -> TrainingFailedError:
    how = f"exit code {result.exit_code}" if result.reason == "ENDED" else result.reason
    tries = f" in attempt {result.attempts}" if result.attempts > 1 else ""
    return TrainingFailedError(
        f"{stage} ended with {how}{tries}: {result.last_words} (see {result.log_path})",
        reason=None if result.reason == "ENDED" else result.reason,
    )
