"""Run one training as a job and read what it left."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rlaif.core.errors import InvalidInputError, RlaifError
from rlaif_pipelines.context import RunContext, read_json, write_json
from rlaif_pipelines.jobs.local import JobSpec, run_job
from rlaif_pipelines.training.config.verbs import SETTINGS, Verb

RECORD_FILE = "training.json"
_WRONG_INPUT, _GUARDED = 2, 3


class TrainingFailedError(RlaifError, RuntimeError):
    """A training job ended without what it was to make; the message is its last words."""

    reason = "TRAINING_FAILED"


def train_model(context: RunContext, stage: str, *, verb: Verb, config: Mapping[str, Any]) -> dict[str, Any]:
    """Train, or go on from the last checkpoint, and return the models made, the results, and why a guard stopped it.

    The job's own output goes to logs/<stage>.log.
    """
    settings = SETTINGS[verb].model_validate(config)
    config_path = context.stage_folder(stage) / "config.json"
    write_json(config_path, settings.model_dump(mode="json"))
    log_path = context.root / "logs" / f"{stage}.log"
    result = run_job(JobSpec(verb=verb, config_path=config_path, log_path=log_path))
    if result.exit_code == _WRONG_INPUT:
        raise InvalidInputError(f"{stage}: {result.last_words}", field="training")
    if result.exit_code not in (0, _GUARDED):
        raise TrainingFailedError(
            f"{stage} ended with exit code {result.exit_code}: {result.last_words} (see {log_path})"
        )
    record = read_json(Path(settings.out) / RECORD_FILE)
    return {
        "members": record["models"],
        "results": record["results"],
        "stopped_by": result.last_words if result.exit_code == _GUARDED else None,
    }
