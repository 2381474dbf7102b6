"""Hooks for tasks under kfp.local, which are processes of their own: trainings that learn nothing, failures on demand.

RLAIF_TEST_FAIL names a stage that fails when its work is done and not yet written down; "*" is every stage, once.
RLAIF_TEST_HANG names one that stops there for ever. Critiques and revisions are those of pipeline_fakes' judge.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pipeline_fakes import FakeJudge
from rlaif.runtime.artifacts import folder_digest
from rlaif.runtime.store import open_store
from rlaif_pipelines.context import RunContext, StageOutput, read_json, write_rows
from rlaif_pipelines.evaluation import kl
from rlaif_pipelines.jobs.spec import JobResult, JobSpec
from rlaif_pipelines.stages import train, training_job
from rlaif_pipelines.training.config.reward import HELD_OUT_FILE

STEPS = 7
HANGING = "hanging"
"""File of the run folder that says that the stage hangs."""


def install() -> None:
    """In this process."""
    training_job.launch = launch  # type: ignore[assignment]
    train._serve_reward_model = lambda context, round_number: None
    kl.kl_to_base = lambda rows, *, base: 0.25
    run_stage, record = RunContext.run_stage, RunContext.record

    def interrupted(self: RunContext, stage: str, body: Callable[[Path], StageOutput], **more: Any) -> Any:
        if stage == "revise":
            RunContext.judge = lambda self: FakeJudge()  # type: ignore[assignment,method-assign,return-value]

        def done(folder: Path) -> StageOutput:
            output = body(folder)
            _interrupt(self.root, stage)
            return output

        return run_stage(self, stage, done, **more)

    def recorded(self: RunContext, stage: str, state: Any, **more: Any) -> None:
        record(self, stage, state, **more)
        if (stage, state) == ("report", "started"):
            _interrupt(self.root, stage)

    RunContext.run_stage = interrupted  # type: ignore[method-assign]
    RunContext.record = recorded  # type: ignore[method-assign]


def launch(spec: JobSpec, settings: Any, *, on_line: Any = None) -> JobResult:
    """Leaves what a training leaves: the policy's weights under another digest, and what is said of them."""
    del settings, on_line
    config = read_json(spec.config_path)
    out = Path(config["out"])
    published = config.get("publish")
    version = STEPS + (published or {}).get("base_version", 0)

    def write(folder: Path) -> None:
        shutil.copytree(config["policy"], folder, dirs_exist_ok=True)
        model = read_json(folder / "config.json")
        (folder / "config.json").write_text(json.dumps({**model, "trained": f"{spec.verb} {version}"}))

    shutil.rmtree(out / "model", ignore_errors=True)
    (out / "model").mkdir(parents=True)
    write(out / "model")
    if published is not None:
        open_store(published["artifact_root"]).publish_version(published["policy"], version=version, write=write)
    write_rows(out / HELD_OUT_FILE, [{"margin": m, "probability_first": p} for m, p in ((2, 1), (1, 0), (-1, 0))])
    record = {
        "models": [{"uri": str(out / "model"), "digest": folder_digest(out / "model")}],
        "results": {"num_steps": STEPS, "loss": 0.5, "before": {"loss": 0.75}, "accuracy": None},
    }
    (out / training_job.RECORD_FILE).write_text(json.dumps(record))
    return JobResult(0, "", 0.1, spec.log_path)


def _interrupt(root: Path, stage: str) -> None:
    if os.environ.get("RLAIF_TEST_HANG") == stage:
        (root / HANGING).touch()
        signal.pause()
    wanted, once = os.environ.get("RLAIF_TEST_FAIL"), root / f"failed-{stage}"
    if wanted == stage or (wanted == "*" and not once.exists()):
        once.touch()
        raise RuntimeError(f"forced failure of {stage}")
