"""The governance report of a run: `build(run_root)` writes report.json and report.html."""

from rlaif_pipelines.report.writer import build

__all__ = ["build"]
