"""The report, from the run folder alone; also of a run that failed or was stopped."""

from __future__ import annotations

from rlaif_pipelines.context import RunContext, StageResult, file_sha256

REPORT_FILES = ("report.html", "report.json")


def report(context: RunContext) -> StageResult:
    """report.html and report.json of the run. Written anew each time: it is cheap, and everything may have changed."""
    from rlaif_pipelines.report import build

    context.record("report", "started")
    build(context.root)
    outputs = {name: file_sha256(context.root / name) for name in REPORT_FILES}
    context.record_event("report_written", subject=f"runs/{context.root.name}", payload=outputs)
    context.record("report", "finished")
    return StageResult("report", context.root, "", outputs, {}, 0.0)
