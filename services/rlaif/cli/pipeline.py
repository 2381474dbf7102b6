"""The pipeline's process: `python -m rlaif.cli.pipeline RUN_ROOT`. Its output, KFP's included, goes to a log."""

from __future__ import annotations

import sys
from pathlib import Path


def main() -> int:
    """Run the KFP graph of a run folder locally; the exit code says how the run ended."""
    from rlaif_pipelines.local_run import run_local
    from rlaif_pipelines.outcome import PipelineFailedError

    try:
        outcome = run_local(Path(sys.argv[1]))
    except PipelineFailedError as error:
        outcome = error.outcome
    sys.stdout.flush()
    sys.stderr.write(f"{outcome.message}\n")
    return outcome.exit_code


if __name__ == "__main__":
    sys.exit(main())
