"""The report, from the run folder alone; also of a run that failed or was stopped."""

from __future__ import annotations

from html import escape
from pathlib import Path
from typing import Final

from rlaif.core.errors import RlaifError
from rlaif.runtime.artifacts import atomic_write_text
from rlaif_pipelines.context import EVENTS_FILE, RunContext, StageResult, file_sha256, read_json, read_rows
from rlaif_pipelines.jobs.launch import release

SUMMARY_FILE: Final = "summary.md"
REPORT_FILES: Final = ("report.html", "report.json")


def report(context: RunContext) -> StageResult:
    """report.html, report.json and summary.md. Written anew each time: it is cheap, and everything may have changed."""
    from rlaif_pipelines.report import build
    from rlaif_pipelines.report.markdown import render

    context.record("report", "started")
    _release_jobs(context)
    build(context.root)
    atomic_write_text(context.root / SUMMARY_FILE, render(read_json(context.root / "report.json")))
    outputs = {name: file_sha256(context.root / name) for name in REPORT_FILES}
    context.record_event("report_written", subject=f"runs/{context.root.name}", payload=outputs)
    context.record("report", "finished")
    return StageResult("report", context.root, "", outputs, {}, 0.0)


def report_failed_start(root: Path) -> StageResult:
    """The same of a run that never began: what was wrong with its settings, if that is known."""
    events = list(read_rows(root / EVENTS_FILE)) if (root / EVENTS_FILE).is_file() else []
    why = next((event["message"] for event in reversed(events) if event["state"] == "failed"), "nothing was recorded")
    root.mkdir(parents=True, exist_ok=True)
    atomic_write_text(root / SUMMARY_FILE, f"## The run did not begin\n\n{why}\n")
    page = f"<!doctype html><title>The run did not begin</title><h1>The run did not begin</h1><p>{escape(why)}</p>\n"
    atomic_write_text(root / "report.html", page)
    return StageResult("report", root, "", {}, {}, 0.0)


def _release_jobs(context: RunContext) -> None:
    """No training outlives its run, also where its task was killed; the report is written all the same."""
    try:
        for name in release(context.root, context.settings.jobs):
            context.record("report", "progress", message=f"{name}, which nobody waited for any more, was removed")
    except RlaifError as error:
        context.record("report", "progress", message=f"jobs of this run may be left in the cluster: {error}")
