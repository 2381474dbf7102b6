"""A run's pipeline in this process, by kfp.local; each task is a child process in this process's group."""

from __future__ import annotations

import builtins
import contextlib
import logging
import os
import sys
import tempfile
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from rlaif_pipelines.context import RUN_FILE, read_json
from rlaif_pipelines.outcome import PipelineFailedError, RunOutcome, events_size, read_outcome
from rlaif_pipelines.settings import RunSettings


def run_local(run_root: Path) -> RunOutcome:
    """Run the pipeline that a run folder's run.json describes; PipelineFailedError when a stage fails.

    kfp.local prints what it does and what tasks print. A failure is told at once: on one machine nothing mends itself.
    """
    from rlaif_pipelines.flow import GraphOptions, build_pipeline
    from rlaif_pipelines.parameters import neutral, required
    from rlaif_pipelines.placement import Retries

    record = read_json(run_root / RUN_FILE)
    settings = RunSettings.model_validate(record["settings"])
    since_bytes = events_size(run_root)
    with kfp_local(run_root / "kfp"):
        options = GraphOptions(
            rounds=settings.rounds, constitutional=settings.constitutional_stage, retries=Retries(count=0)
        )
        told = _given(record["settings"])
        given = {"run_root": str(run_root), "settings": told, "services": _given(record["services"])}
        given |= required(settings.pipeline, told)
        build_pipeline(settings.pipeline, options)(**neutral(settings.pipeline) | given)
    outcome = read_outcome(run_root, since_bytes=since_bytes)
    if outcome.state == "failed":
        raise PipelineFailedError(outcome)
    return outcome


@contextlib.contextmanager
def kfp_local(folder: Path) -> Iterator[None]:
    """For as long as the block runs pipelines called in it run here, with this interpreter; their files go there."""
    # kfp.local tries `import docker` and survives its absence, but not a folder of that name in the working directory.
    sys.modules.setdefault("docker", None)  # type: ignore[arg-type]
    from kfp import local

    with _scratch(folder), _restored(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # kfp's own
        # Process-wide. use_venv=False runs every task with this interpreter, as it is installed.
        local.init(local.SubprocessRunner(use_venv=False), pipeline_root=str(folder), raise_on_error=False)
        try:
            yield
        finally:
            _remove_cut_off(folder)


def _remove_cut_off(folder: Path) -> None:
    """Removes what tasks could not write to its end, on a full disk say: kfp.local writes its files in place."""
    for path in folder.rglob("executor_output.json"):
        try:
            read_json(path)
        except ValueError:
            path.unlink()


@contextlib.contextmanager
def _scratch(folder: Path) -> Iterator[None]:
    """Temporary files of the tasks go under that folder for as long as the block runs: kfp.local leaves one a task."""
    folder.mkdir(exist_ok=True)
    before = os.environ.get("TMPDIR")
    with tempfile.TemporaryDirectory(dir=folder, prefix="scratch-") as scratch:
        os.environ["TMPDIR"] = scratch
        try:
            yield
        finally:
            os.environ.pop("TMPDIR")
            if before is not None:
                os.environ["TMPDIR"] = before


@contextlib.contextmanager
def _restored() -> Iterator[None]:
    """What kfp.local wraps while tasks run is unwrapped: side by side they restore each other's wrappers."""
    printing, logger = builtins.print, logging.getLogger()
    level, handlers = logger.level, logger.handlers[:]
    try:
        yield
    finally:
        builtins.print = printing
        logger.setLevel(level)
        logger.handlers[:] = handlers


def _given(values: Mapping[str, Any]) -> dict[str, Any]:
    """The values without nulls, at any depth: parameters of KFP have no null."""
    return {
        key: _given(value) if isinstance(value, Mapping) else value
        for key, value in values.items()
        if value is not None
    }
