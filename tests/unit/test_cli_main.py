"""The command itself: light to start, teaching in its help, exact in its exit codes."""

from __future__ import annotations

import errno
import shutil
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
import yaml

from rlaif.cli import exits, main
from rlaif.core.errors import (
    ConflictError,
    InvalidInputError,
    NotFoundError,
    PreconditionError,
    SettingsError,
    UnavailableError,
)

HEAVY = (
    "grpc",
    "torch",
    "transformers",
    "kfp",
    "pydantic",
    "yaml",
    "psutil",
    "google.protobuf",
    "jinja2",
    "sqlalchemy",
)


def test_the_command_loads_nothing_heavy_before_a_verb_runs() -> None:
    program = f"import rlaif.cli.main, sys; print(*(name for name in {HEAVY!r} if name in sys.modules))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""


@pytest.mark.parametrize(
    "verb",
    ["run", "up", "down", "status", "serve", "compile", "report", "ledger verify", "ledger events", "ledger export"],
)
def test_every_verb_has_help(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main.execute([*verb.split(), "--help"]) == 0
    text = capsys.readouterr().out
    assert f"rlaif {verb}" in text
    assert len(text.splitlines()) > 5


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (InvalidInputError("x"), 2),
        (SettingsError("x"), 2),
        (NotFoundError("x"), 2),
        (exits.DiskFullError("x"), 2),
        (exits.ChildDiedError("x", exit_code=2), 2),
        (exits.ChildDiedError("x", exit_code=-9), 1),
        (PreconditionError("x"), 1),
        (UnavailableError("x"), 1),
        (ConflictError("x"), 1),
        (exits.InterruptedRunError("x"), 130),
        (KeyboardInterrupt(), 130),
    ],
)
def test_errors_have_their_documented_exit_codes(error: BaseException, code: int) -> None:
    assert exits.exit_code_of(error) == code


def test_a_full_disk_is_told_from_other_failures_of_the_system() -> None:
    full = exits.disk_full_error(OSError(errno.ENOSPC, "No space left on device", "/out/labels.jsonl"))
    assert full is not None
    assert full.message.startswith("the disk is full at /out/labels.jsonl: free some space")
    assert exits.disk_full_error(OSError(errno.EACCES, "Permission denied")) is None


def test_a_disk_that_fills_while_a_verb_writes_is_one_sentence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "run.json").write_text("{}")

    def refuse(path: Path, text: str) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", str(path))

    monkeypatch.setattr("rlaif_pipelines.report.writer.atomic_write_text", refuse)
    assert main.execute(["report", str(tmp_path)]) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1
    assert lines[0].startswith(f"rlaif: the disk is full at {tmp_path / 'report.json'}")


def test_a_sentence_is_one_line_that_names_its_field_once() -> None:
    assert exits.sentence(InvalidInputError("is\n  wrong", field="--out")) == "--out: is wrong"
    assert exits.sentence(InvalidInputError("--out is wrong", field="--out")) == "--out is wrong"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["report", "nowhere"], "not a run folder"),
        (["ledger", "verify", "nowhere"], "no ledger.sqlite"),
        (["labels", "quality", "nowhere", "--by", "mood"], "--by mood: there are category, constitution, judge"),
        (["serve", "judge", "--config", "nowhere.yaml"], "no such file"),
        (["up", "--judge", "./nowhere"], "no such folder"),
        (["up", "--constitution", "nowhere"], "no shipped constitution"),
    ],
)
def test_wrong_arguments_are_one_sentence_and_exit_code_2(
    arguments: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main.execute(arguments) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1
    assert said in lines[0]
    assert list(tmp_path.iterdir()) == []


def test_down_and_status_of_a_folder_where_nothing_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main.execute(["down", "--state", str(tmp_path)]) == 0
    assert "nothing runs" in capsys.readouterr().out
    assert main.execute(["status", "--state", str(tmp_path)]) == 1
    assert capsys.readouterr().out.count("not started") == 4


@pytest.mark.parametrize(
    "arguments",
    [
        ["up", "--state", "FILE"],
        ["report", "TORN"],
        ["compile", "-o", "FILE/rlaif.yaml"],
        ["playground", "build", "--out", "FILE"],
    ],
)
def test_a_place_that_cannot_be_used_is_one_sentence_that_names_it(
    arguments: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("not a folder")
    (tmp_path / "torn").mkdir()
    (tmp_path / "torn" / "run.json").write_text("{")
    places = {"FILE": str(tmp_path / "file"), "TORN": str(tmp_path / "torn")}
    named = [word.replace("FILE", places["FILE"]).replace("TORN", places["TORN"]) for word in arguments]
    assert main.execute(named) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1
    assert str(tmp_path) in lines[0]


def test_the_log_of_a_service_that_died_is_where_the_sentence_says(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "ledger.sqlite").write_text("no database")
    assert main.execute(["ledger", "verify", str(tmp_path)]) == 1
    said = capsys.readouterr().err
    assert "the ledger's file is not a whole SQLite database" in said
    log = Path(said.partition("(log: ")[2].strip().rstrip(")"))
    assert log.is_file()
    shutil.rmtree(log.parents[1])


def test_a_state_that_is_a_file_has_no_services(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").touch()
    assert main.execute(["status", "--state", str(tmp_path / "file")]) == 1
    assert capsys.readouterr().out.count("not started") == 4


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ((), {"reward": "judge", "rl": {"steps": 40, "kl_beta": 0.1}}),
        (("--reward", "model"), {"reward": "model", "rl": {"steps": 36, "kl_beta": 0.25}}),
        (
            ("--prompts", "my.jsonl", "--policy", "p", "--judge", "j", "--set", "rl.kl_beta=0.5"),
            {"prompts": "my.jsonl", "judge": "j", "rl": {"steps": 200, "kl_beta": 0.5}},
        ),
    ],
)
def test_the_settings_of_a_run_are_shown_as_they_would_be(
    options: tuple[str, ...], expected: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main.execute(["run", *options, "--show-settings"]) == 0
    shown = capsys.readouterr().out
    values = yaml.safe_load(shown)
    for key, value in expected.items():
        assert value.items() <= values[key].items() if isinstance(value, dict) else values[key] == value
    assert "# Weight of the KL penalty to the policy that the round began with." in shown


def test_the_version_is_that_of_the_package(capsys: pytest.CaptureFixture[str]) -> None:
    assert main.execute(["--version"]) == 0
    assert capsys.readouterr().out.strip() == f"rlaif {metadata.version('kube-rlaif')}"


def test_the_help_of_the_command_has_every_verb_in_a_group(capsys: pytest.CaptureFixture[str]) -> None:
    assert main.execute(["--help"]) == 0
    text = capsys.readouterr().out
    assert "─ Commands ─" not in text
    assert [text.count(f"─ {group} ─") for group in ("Train", "Services", "On Kubeflow Pipelines")] == [1, 1, 1]
