"""`python -m rlaif_pipelines --config FILE`: one run, to its end, on services that are there; no Kubeflow Pipelines."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from pydantic import Field

from rlaif.core.errors import RlaifError, SettingsError
from rlaif.runtime.settings import SettingsModel, settings_from_command_line
from rlaif_pipelines.outcome import EXIT_FAILED, PipelineFailedError, RunOutcome
from rlaif_pipelines.settings import ServiceAddresses, make_settings

_EXIT_WRONG_INPUT = 2


class LoopSettings(SettingsModel):
    """Which run, on which services."""

    run_root: Path
    """Run folder; with the same folder a run continues."""
    settings: dict[str, Any] = Field(default_factory=dict)
    """What differs from the defaults of a run, as in run.json."""
    services: ServiceAddresses
    """Where the services listen."""


def main() -> int:
    """0 done, 1 failed, 2 wrong input or settings, 3 stopped by a gate or guard."""
    loop = settings_from_command_line(LoopSettings, program="rlaif_pipelines")
    try:
        outcome = _run(loop)
    except PipelineFailedError as error:
        outcome = error.outcome
    except RlaifError as error:
        code = _EXIT_WRONG_INPUT if isinstance(error, SettingsError) else EXIT_FAILED
        outcome = RunOutcome("failed", code, error.message)
    sys.stderr.write(f"{outcome.state}: {outcome.message}\n")
    return outcome.exit_code


def _run(loop: LoopSettings) -> RunOutcome:
    from rlaif_pipelines.local_run import run_local
    from rlaif_pipelines.stages.prepare import create_run

    settings = make_settings({**loop.settings, "out": loop.run_root})
    loop.run_root.mkdir(parents=True, exist_ok=True)
    create_run(settings, loop.services)
    return run_local(loop.run_root)


if __name__ == "__main__":
    sys.exit(main())
