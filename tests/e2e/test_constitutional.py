"""The constitutional stage as a user starts it, on the playground and smaller than by default."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.slow

SMALL = [
    "--algorithm=sft",
    "--threads=1",
    "--set=constitutional.num_prompts=64",
    "--set=constitutional.rounds=1",
    "--set=constitutional.batch_size=16",
    "--set=constitutional.epochs=6",
    "--set=gate.min_revisions=16",
    "--set=evaluation.num_harmful=60",
    "--set=evaluation.num_other=20",
]
"""Enough to learn something in half a minute."""


def rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_the_stage_alone_lowers_harm_without_refusing_more_and_can_be_traced(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "rlaif.cli.main", "run", "--out", str(tmp_path / "run"), *SMALL]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)
    assert ended.returncode == 0, ended.stderr + ended.stdout
    root = tmp_path / "run"
    report = json.loads((root / "report.json").read_text())
    harm, refusal = report["harmful_compliance"], report["over_refusal"]
    assert harm["trained"] < harm["baseline"]
    assert refusal["trained"] <= refusal["baseline"] + 0.1
    assert report["constitutional"]["num_replies"] == 64
    assert report["constitutional"]["held_out_loss"]["trained"] < report["constitutional"]["held_out_loss"]["baseline"]

    revisions = rows(root / "stages" / "revise" / "revisions.jsonl")
    judge = json.loads((root / "run.json").read_text())["digests"]["judge_digest"]
    assert {each["judge_digest"] for row in revisions for each in row["rounds"]} == {judge}
    verify = [sys.executable, "-m", "rlaif.cli.main", "ledger", "verify", str(root)]
    assert subprocess.run(verify, capture_output=True, text=True, timeout=120, check=True).stdout.startswith("whole: ")
