"""`rlaif run` with all its models on object storage, every process real, the S3 server too."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from rlaif.playground.paths import JUDGE_DIR, POLICY_DIR
from s3_server import new_client, s3_server

pytestmark = pytest.mark.slow

SMALL = [
    "--num-prompts=24",
    "--steps=3",
    "--threads=1",
    "--plain",
    "--set=reward_model.epochs=1",
    "--set=rl.prompts_per_step=6",
    "--set=rl.completions_per_prompt=4",
    "--set=evaluation.num_harmful=8",
    "--set=evaluation.num_other=4",
    "--set=gate.min_cell_labels=1000",
]


def run(out: Path, *more: str) -> tuple[int, str]:
    command = [sys.executable, "-m", "rlaif.cli.main", "run", "--out", str(out), *SMALL, *more]
    done = subprocess.run(command, capture_output=True, text=True, timeout=900, check=False)
    return done.returncode, done.stdout + done.stderr


def values(out: Path, stage: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((out / "stages" / stage / "done.json").read_text())["values"]
    return found


def test_a_run_on_object_storage_gives_the_weights_that_a_run_in_a_folder_gives(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
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
        out = tmp_path / "remote"
        code, output = run(out, *remote)
        assert code == 0, output
        trained, reward_model = values(out, "train"), values(out, "reward_model")
        assert trained["uri"].startswith("s3://models/runs/policies/run-")
        assert reward_model["uri"].startswith(trained["uri"].split("/versions/")[0] + "/models/reward_model/0/")
        assert not (out / "artifacts").exists()

        code, output = run(tmp_path / "local")
        assert code == 0, output
        # Only names and places differ, so the two policies have names of their own and the same weights.
        assert values(tmp_path / "local", "train")["digest"] == trained["digest"]
        assert (
            values(tmp_path / "local", "reward_model")["members"][0]["digest"] == reward_model["members"][0]["digest"]
        )

        code, output = run(tmp_path / "another", *remote)
        assert code == 2
        assert "another --out has published" in " ".join(output.split())

        code, output = run(tmp_path / "missing", "--artifact-root=s3://no-such-bucket/runs")
        assert code == 2
        assert "the bucket does not exist" in " ".join(output.split())
        assert not (tmp_path / "missing" / "run.json").exists()
