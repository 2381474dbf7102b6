"""`rlaif run` as a user starts it, on the playground and smaller than by default; every process is real."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from rlaif.cli import guard
from rlaif.cli.processes import is_running
from rlaif.playground.paths import JUDGE_DIR, POLICY_DIR
from rlaif.runtime.artifacts import folder_digest
from s3_server import new_client, s3_server

pytestmark = pytest.mark.slow

SMALL = [
    "--num-prompts=24",
    "--steps=4",
    "--threads=1",
    "--set=reward_model.epochs=1",
    "--set=rl.prompts_per_step=6",
    "--set=rl.completions_per_prompt=4",
    "--set=rl.checkpoint_every=2",
    "--set=evaluation.num_harmful=16",
    "--set=evaluation.num_other=8",
    "--set=gate.min_cell_labels=1000",
]
"""The whole loop in half a minute: nothing is learnt, everything happens."""


def start(out: Path, *more: str, **options: Any) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "rlaif.cli.main", "run", "--out", str(out), *SMALL, *more]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options)


def finish(process: subprocess.Popen[str], *, timeout_seconds: float = 240) -> tuple[int, str, str]:
    out, err = process.communicate(timeout=timeout_seconds)
    return process.returncode, out, err


def run(out: Path, *more: str, **options: Any) -> tuple[int, str, str]:
    return finish(start(out, *more, **options))


def events(root: Path) -> list[dict[str, Any]]:
    path = root / "events.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def wait_until(condition: Callable[[], bool], process: subprocess.Popen[str], *, timeout_seconds: float = 180) -> None:
    deadline = time.monotonic() + timeout_seconds
    while not condition():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline, "it never happened"
        time.sleep(0.02)


def reached(root: Path, stage: str, state: str = "started") -> Callable[[], bool]:
    return lambda: any(event["stage"] == stage and event["state"] == state for event in events(root))


def left_running(root: Path) -> list[int]:
    return guard.owned_pids(f"run:{root}")


def announced_pids(root: Path) -> list[int]:
    return [json.loads(path.read_text())["pid"] for path in (root / "services").glob("*.json")]


def values(root: Path, stage: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((root / "stages" / stage / "done.json").read_text())["values"]
    return found


def trained_digest(root: Path) -> str:
    return str(values(root, "train")["digest"])


def num_labels(root: Path) -> int:
    """Labels in the ledger, whose chain must be whole."""
    command = [sys.executable, "-m", "rlaif.cli.main", "ledger", "verify", str(root)]
    said = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout
    found = re.fullmatch(r"whole: \d+ events, (\d+) labels, head [0-9a-f]{64}\n", said)
    assert found, said
    return int(found[1])


def text_of(path: Path) -> str:
    return path.read_text() if path.exists() else ""


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A run that nothing disturbed, and what it printed."""
    root = tmp_path_factory.mktemp("finished") / "run"
    code, out, err = run(root)
    assert code == 0, err + out
    return root, out


def test_a_run_ends_with_a_report_its_figures_and_nothing_running(finished: tuple[Path, str]) -> None:
    root, out = finished
    report = json.loads((root / "report.json").read_text())
    assert report["outcome"] == "finished"
    assert report["win_rate"]["value"] is not None
    assert report["peak_rss_bytes"] > 2**28
    assert set(report["seconds"]) >= {"sample", "judge", "gate", "reward_model", "train", "evaluate"}
    for name in ("run.json", "labels.jsonl", "ledger.sqlite", "metrics.jsonl", "report.html", "constitution.yaml"):
        assert (root / name).stat().st_size > 0
    assert "train          step 4/4" in out
    assert "win rate" in out
    assert left_running(root) == []
    assert not any(map(is_running, announced_pids(root)))
    assert num_labels(root) > 0


def test_a_run_without_a_kl_is_stopped_by_a_guard_goes_back_and_says_so(tmp_path: Path) -> None:
    root = tmp_path / "run"
    hacked = ["--steps=20", "--set=rl.kl_beta=0", "--set=rl.learning_rate=5e-3", "--set=rl.watch_every=2"]
    code, out, err = run(root, "--reward=model", *hacked, "--set=rl.guards.kl.limit=3")
    assert code == 3, err + out
    trained = values(root, "train")
    results = trained["results"]
    back = results["rolled_back"]
    assert results["guard"]["guard"] in ("kl", "held_out", "entropy", "repetition", "length")
    assert back["num_steps"] < results["num_steps"] < back["version"] == trained["version"]
    assert trained["digest"] == folder_digest(Path(trained["uri"])) == trained["members"][0]["digest"]
    evaluation = json.loads((root / "stages" / "evaluate" / "evaluation.json").read_text())
    assert evaluation["version"] == back["version"]
    assert f"went back to the weights after step {back['num_steps']}" in " ".join(
        json.loads((root / "report.json").read_text())["verdict_reasons"]
    )
    assert results["guard"]["sentence"] in (root / "report.html").read_text()
    assert results["guard"]["sentence"] in out


def test_the_same_command_again_repeats_nothing(finished: tuple[Path, str]) -> None:
    root, _ = finished
    labels, labelled, before = (root / "labels.jsonl").read_bytes(), num_labels(root), len(events(root))
    code, out, err = run(root)
    assert code == 0, err
    news = [(event["stage"], event["state"]) for event in events(root)[before:]]
    assert [stage for stage, state in news if state != "skipped"] == ["report", "report"]
    assert "skipped" in out
    assert (root / "labels.jsonl").read_bytes() == labels
    assert num_labels(root) == labelled


def test_other_settings_in_the_same_folder_are_refused(finished: tuple[Path, str]) -> None:
    root, _ = finished
    code, _, err = run(root, "--seed=5")
    assert code == 2
    assert "seed was 0, now 5" in err


def test_a_run_interrupted_and_then_killed_leaves_nothing_and_continues_to_the_same_weights(
    finished: tuple[Path, str], tmp_path: Path
) -> None:
    undisturbed, _ = finished
    root = tmp_path / "run"
    process = start(root)
    wait_until((root / "services" / "oversight.json").exists, process)
    code, _, err = run(root)
    assert code == 2
    assert f"in use by another live run (process {process.pid})" in err
    wait_until(reached(root, "judge", "progress"), process)
    process.send_signal(signal.SIGINT)
    code, _, err = finish(process, timeout_seconds=60)
    assert code == 130
    assert "the same command with the same --out continues" in err
    assert left_running(root) == []

    process = start(root)
    wait_until(lambda: '"stage": "rl", "step": 2' in text_of(root / "metrics.jsonl"), process)
    process.kill()
    process.communicate()
    deadline = time.monotonic() + 15
    while left_running(root) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert left_running(root) == []

    finished_before = {event["stage"] for event in events(root) if event["state"] == "finished"}
    num_events = len(events(root))
    code, _, err = run(root)
    assert code == 0, err
    skipped = {event["stage"] for event in events(root)[num_events:] if event["state"] == "skipped"}
    assert finished_before <= skipped | {"report"}
    assert trained_digest(root) == trained_digest(undisturbed)
    assert (root / "labels.jsonl").read_bytes() == (undisturbed / "labels.jsonl").read_bytes()
    assert num_labels(root) == num_labels(undisturbed), "something was labelled twice"


def test_a_service_that_dies_is_named_and_everything_ends(tmp_path: Path) -> None:
    root = tmp_path / "run"
    process = start(root)
    wait_until(reached(root, "sample"), process)
    os.kill(json.loads((root / "services" / "judge.json").read_text())["pid"], signal.SIGKILL)
    code, _, err = finish(process, timeout_seconds=120)
    assert code == 1
    assert err.startswith("rlaif: judge was killed by SIGKILL") or "stage judge failed" in err
    assert left_running(root) == []


def test_a_gate_that_stops_the_run_ends_it_with_3_and_a_report(tmp_path: Path) -> None:
    root = tmp_path / "run"
    code, out, err = run(root, "--set=gate.max_order_inconsistency=0.0")
    assert code == 3, err
    assert "order inconsistency" in out
    report = json.loads((root / "report.json").read_text())
    assert (report["outcome"], report["verdict"], report["gate"]["passed"]) == ("gated", "unknown", False)
    assert not (root / "stages" / "train").exists()
    assert left_running(root) == []


def test_a_run_on_object_storage_gives_the_weights_that_a_run_in_a_folder_gives(
    finished: tuple[Path, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with s3_server(tmp_path / "s3.log") as port:
        url = f"http://127.0.0.1:{port}"
        for name, value in {
            "AWS_ACCESS_KEY_ID": "test",
            "AWS_SECRET_ACCESS_KEY": "test",
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_ENDPOINT_URL": url,
            "RLAIF_CACHE": str(tmp_path / "cache"),
        }.items():
            monkeypatch.setenv(name, value)
        client = new_client("s3", url)
        client.create_bucket(Bucket="models")
        for name, folder in {"policy": POLICY_DIR, "judge": JUDGE_DIR}.items():
            for path in folder.iterdir():
                if path.is_file():
                    client.upload_file(str(path), "models", f"shipped/{name}/{path.name}")
        remote = [
            "--artifact-root=s3://models/runs",
            "--policy=s3://models/shipped/policy",
            "--judge=s3://models/shipped/judge",
        ]
        root = tmp_path / "remote"
        code, out, err = run(root, *remote)
        assert code == 0, err + out
        trained, reward_model = values(root, "train"), values(root, "reward_model")
        assert trained["uri"].startswith("s3://models/runs/policies/run-")
        assert reward_model["uri"].startswith(trained["uri"].split("/versions/")[0] + "/models/reward_model/0/")
        assert not (root / "artifacts").exists()
        # Only names and places differ, so the two policies have names of their own and the same weights.
        local, _ = finished
        assert trained["digest"] == trained_digest(local)
        assert reward_model["members"][0]["digest"] == values(local, "reward_model")["members"][0]["digest"]

        code, _, err = run(tmp_path / "another", *remote)
        assert code == 2
        assert "another --out has published" in " ".join(err.split())

        code, _, err = run(tmp_path / "missing", "--artifact-root=s3://no-such-bucket/runs")
        assert code == 2
        assert "the bucket does not exist" in " ".join(err.split())
        assert not (tmp_path / "missing" / "run.json").exists()


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of its own with just enough room to begin."""
    place = tmp_path / "disk"
    place.mkdir()
    mount = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=290m", "tmpfs", str(place)], check=False)
    if mount.returncode != 0:
        pytest.skip("mounting needs privileges")
    yield place
    subprocess.run(["umount", "-l", str(place)], check=True)


def test_a_disk_that_fills_up_ends_the_run_in_one_sentence_and_nothing_is_half_written(small_disk: Path) -> None:
    root = small_disk / "run"
    process = start(root)
    wait_until(reached(root, "sample", "finished"), process)
    with contextlib.suppress(OSError), (small_disk / "filler").open("wb", buffering=0) as filler:
        while True:
            filler.write(bytes(2**20))
    code, _, err = finish(process)
    assert code == 2, err
    assert len(err.strip().splitlines()) == 1
    assert "the disk is full" in err
    assert left_running(root) == []
    assert [path.name for path in root.rglob(".*") if path.name != ".lock"] == [], "a temporary file was left"
    empty = [str(path.relative_to(root)) for path in root.rglob("*.json") if not path.stat().st_size]
    assert empty == [], "these files were cut off"
    for path in root.rglob("*.json"):
        json.loads(path.read_text())
