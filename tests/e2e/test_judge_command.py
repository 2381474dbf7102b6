"""`rlaif judge` with no judge running: the playground's answers, by principles given on the command line."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from rlaif.playground.gold import evaluate, prefers

pytestmark = pytest.mark.slow

# In the words of the playground's world; the first refuses, the second helps to do harm.
HARMFUL = ("How do I steal a car?", "I won't help with that. It could hurt someone.")
HELPS = "First, wait for a dark night. Then cut the lock. Last, hide it far away."
NO_HARM = "A good reply does not help anyone do harm."
HELP = "A good reply gives the user what was asked for."


def rlaif(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "rlaif.cli.main", "judge", *arguments],
        capture_output=True,
        text=True,
        timeout=180,
        cwd=folder,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        check=False,
    )


def verdict(folder: Path, *arguments: str) -> dict[str, Any]:
    done = rlaif(folder, "compare", *HARMFUL, HELPS, "--json", *arguments)
    assert done.returncode == 0, done.stderr
    assert "starting the playground's for this call" in done.stderr
    answer: dict[str, Any] = json.loads(done.stdout)
    return answer


def test_a_principle_on_the_command_line_changes_the_verdict(tmp_path: Path) -> None:
    by_harm, by_help = verdict(tmp_path, "--principle", NO_HARM), verdict(tmp_path, "--principle", HELP)
    assert (by_harm["preference"], by_help["preference"]) == ("first", "second")
    assert by_harm["provenance"]["constitution"] == "constitutions/command-line"
    assert by_harm["provenance"]["constitution_sha256"] != by_help["provenance"]["constitution_sha256"]
    assert by_harm["provenance"]["model_digest"] == by_help["provenance"]["model_digest"]


def test_a_file_of_pairs_is_judged_by_both_principles_at_once(tmp_path: Path) -> None:
    row = {"prompt": HARMFUL[0], "first": HARMFUL[1], "second": HELPS}
    (tmp_path / "pairs.jsonl").write_text(f"{json.dumps(row)}\n" * 3)
    done = rlaif(
        tmp_path, "compare", "--in", "pairs.jsonl", "--out", "labels.jsonl", "--principle", NO_HARM, "--principle", HELP
    )
    assert done.returncode == 0, done.stderr
    labels = [json.loads(line)["verdict"] for line in (tmp_path / "labels.jsonl").read_text().splitlines()]
    assert len(labels) == 3
    for label in labels:
        assert [vote["principle_id"] for vote in label["votes"]] == ["principle-1", "principle-2"]
        assert label["votes"][0]["probability_first"] > 0.5 > label["votes"][1]["probability_first"]


def test_a_bad_reply_is_criticised_and_rewritten_and_a_sound_one_left_alone(tmp_path: Path) -> None:
    needless = ("How do I clean a window?", "I won't help with that. It could hurt someone.")
    rude = ("Tell me the color of grass.", "Only a fool would ask that. It is green.")
    sound = ("Tell me the color of grass.", "The color of grass is green.")
    rows = [{"prompt": prompt, "response": response} for prompt, response in (needless, rude, sound)]
    (tmp_path / "answers.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    done = rlaif(tmp_path, "revise", "--in", "answers.jsonl", "--out", "better.jsonl")
    assert done.returncode == 0, done.stderr
    first, second, third = (
        json.loads(line)["rewrite"] for line in (tmp_path / "better.jsonl").read_text().splitlines()
    )
    assert first["critique"] == "It refuses a safe question."
    assert prefers(evaluate(needless[0], first["revision"]["text"]), evaluate(*needless)) == 1.0
    assert "It insults the user." in second["critique"]
    assert prefers(evaluate(rude[0], second["revision"]["text"]), evaluate(*rude)) == 1.0
    assert third["critique"] == "It has no fault."
    assert third["revision"]["unchanged"]


def test_a_rationale_is_refused_where_the_model_writes_none(tmp_path: Path) -> None:
    done = rlaif(tmp_path, "compare", *HARMFUL, HELPS, "--reasoning")
    assert done.returncode == 2
    assert done.stderr.endswith("this judge's model writes no rationales\n")
