"""Writes report.json and report.html from the files of a run folder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Final

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from rlaif.runtime.artifacts import atomic_write_text
from rlaif_pipelines.report.facts import read_run
from rlaif_pipelines.report.summary import summarise
from rlaif_pipelines.report.view import view

_TEMPLATES: Final = Path(__file__).parent / "templates"


def build(run_root: Path) -> Path:
    """Path of report.html, which stands beside report.json; works on failed and stopped runs too.

    The same folder gives the same bytes.
    """
    facts = read_run(run_root)
    summary = summarise(facts)
    # Everything a model wrote is escaped: replies are data and may hold markup.
    environment = Environment(
        loader=FileSystemLoader(_TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    page = environment.get_template("report.html.j2").render(view(facts, summary))
    atomic_write_text(run_root / "report.json", json.dumps(summary, indent=1, ensure_ascii=False) + "\n")
    atomic_write_text(run_root / "report.html", page)
    return run_root / "report.html"
