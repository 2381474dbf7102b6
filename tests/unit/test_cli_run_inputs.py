"""Wrong input to `rlaif run`: one sentence, exit code 2, nothing written."""

from __future__ import annotations

import fcntl
import importlib.util
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from rlaif.cli import addresses, inputs, main, services
from rlaif.cli.folder import LOCK_FILE, check_folder, clear, locked
from rlaif.cli.run_inputs import with_changes
from rlaif.core.errors import InvalidInputError, SettingsError

CONSTITUTION = "id: mine\nversion: 1\nprinciples:\n  - id: kind\n    text: Be kind.\n"
VOTE = '{"prompt": "question %d?", "first": "yes", "second": "no", "preference": "first"}'
PROMPTS = "".join(json.dumps({"prompt": f"question {number}?"}) + "\n" for number in range(40))


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with good input, which each case then spoils."""
    (tmp_path / "prompts.jsonl").write_text(PROMPTS)
    (tmp_path / "constitution.yaml").write_text(CONSTITUTION)
    model = tmp_path / "model"
    model.mkdir()
    for name in ("config.json", "tokenizer.json", "model.safetensors"):
        (model / name).write_text("{}")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run_arguments(**changes: str) -> list[str]:
    options = {
        "prompts": "prompts.jsonl",
        "constitution": "constitution.yaml",
        "policy": "model",
        "judge": "model",
        "out": "out",
    } | changes
    return ["run", *(part for name, value in options.items() for part in (f"--{name}", value))]


@pytest.mark.skipif(importlib.util.find_spec("vllm") is not None, reason="vLLM is installed")
@pytest.mark.parametrize("verb", ["run", "up"])
def test_an_engine_that_is_not_installed_is_told_with_the_fix(
    verb: str, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [*run_arguments(), "--engine", "vllm"] if verb == "run" else ["up", "--engine", "vllm"]
    assert main.execute(arguments) == 2
    assert "make install-vllm" in capsys.readouterr().err
    assert sorted(path.name for path in here.iterdir()) == ["constitution.yaml", "model", "prompts.jsonl"]


def write(name: str, content: str | bytes) -> Callable[[Path], None]:
    def spoil(folder: Path) -> None:
        data = content if isinstance(content, bytes) else content.encode()
        (folder / name).write_bytes(data)

    return spoil


def remove(name: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).unlink()


CASES: dict[str, tuple[Callable[[Path], None] | None, dict[str, str], list[str]]] = {
    "prompts missing": (remove("prompts.jsonl"), {}, ["prompts.jsonl", "does not exist"]),
    "prompts empty": (write("prompts.jsonl", ""), {}, ["prompts.jsonl", "empty"]),
    "prompts not UTF-8": (write("prompts.jsonl", PROMPTS.encode() + b'{"prompt": "\xff"}\n'), {}, ["line 41", "UTF-8"]),
    "line not JSON": (write("prompts.jsonl", PROMPTS + "what is this?\n"), {}, ["line 41", "not JSON"]),
    "line no object": (write("prompts.jsonl", PROMPTS + "[1]\n"), {}, ["line 41", "JSON object"]),
    "constitution missing": (remove("constitution.yaml"), {}, ["constitution.yaml"]),
    "constitution with an unknown key": (
        write("constitution.yaml", CONSTITUTION + "    colour: red\n"),
        {},
        ["constitution.yaml:6", "principles[0]", "colour"],
    ),
    "model without tokenizer": (remove("model/tokenizer.json"), {}, ["--policy", "model", "no tokenizer"]),
    "model without weights": (remove("model/model.safetensors"), {}, ["--policy", "no weights"]),
    "model folder missing": (None, {"judge": "./nowhere"}, ["--judge", "./nowhere", "no such folder"]),
    "evaluator is the judge": (None, {"evaluator": "model"}, ["evaluator", "no evidence"]),
    "people's labels missing": (None, {"human-labels": "people.jsonl"}, ["people.jsonl", "No such file"]),
    "people's labels one-sided": (
        write("people.jsonl", "".join(f"{VOTE % number}\n" for number in range(16))),
        {"human-labels": "people.jsonl"},
        ["people.jsonl", "all 16 decided labels prefer the first response"],
    ),
    "judge not given for own prompts": (None, {"judge": ""}, ["--judge"]),
    "unknown setting": (None, {"set": "rl.stepz=3"}, ["rl.stepz"]),
    "setting out of range": (None, {"set": "rl.steps=0"}, ["rl.steps"]),
    "setting without a value": (None, {"set": "rl.steps"}, ["KEY=VALUE"]),
    "out is a file": (write("out", "mine"), {}, ["--out", "is a file"]),
    "out is below a file": (
        write("out", "mine"),
        {"out": "out/first"},
        ["--out", "cannot be written (Not a directory)"],
    ),
}


SMALLER: dict[str, tuple[list[str], str]] = {
    "candidate missing": (["candidate=./nowhere"], "--set candidate ./nowhere: there is no such folder"),
    "candidate without weights": (["candidate=."], "--set candidate .: has no config.json"),
    "candidate not given": ([], "candidate and pipeline 'evaluate-only' need each other"),
    "no such pipeline": (["pipeline=label"], "pipeline = 'label': input should be 'rlaif', 'label-only'"),
    "pairs missing": (["pipeline=judge-benchmark", "pairs.path=nowhere.jsonl"], "nowhere.jsonl: No such file"),
    "pairs that are none": (["pipeline=judge-benchmark", "pairs.path=prompts.jsonl"], "prompts.jsonl"),
    "pairs not given": (["pipeline=judge-benchmark"], "pairs and pipeline 'judge-benchmark' need each other"),
    "pairs of another pipeline": (["pipeline=label-only", "pairs.path=p.jsonl"], "need each other"),
}


@pytest.mark.parametrize("case", SMALLER)
def test_what_a_smaller_pipeline_lacks_is_told_before_anything_is_started(
    case: str, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    changes, sentence = SMALLER[case]
    before = sorted(here.rglob("*"))
    arguments = [part for change in ["pipeline=evaluate-only", *changes] for part in ("--set", change)]
    assert main.execute(["run", "--judge", "playground", "--out", "out", *arguments]) == 2
    [line] = capsys.readouterr().err.strip().splitlines()
    assert sentence in line
    assert sorted(here.rglob("*")) == before, "something was written"


@pytest.mark.parametrize("case", CASES)
def test_wrong_input_is_one_sentence_and_exit_code_2(case: str, here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    spoil, changes, expected = CASES[case]
    if spoil:
        spoil(here)
    arguments = run_arguments(**changes)
    before = sorted(here.rglob("*"))
    assert main.execute(arguments) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1
    assert lines[0].startswith("rlaif: ")
    assert all(part in lines[0] for part in expected), lines[0]
    assert sorted(here.rglob("*")) == before, "something was written"


def test_a_wrong_option_is_explained_with_exit_code_2(capsys: pytest.CaptureFixture[str]) -> None:
    assert main.execute(["run", "--reward", "money"]) == 2
    assert "money" in capsys.readouterr().err


def test_a_full_disk_is_one_sentence_and_exit_code_2(
    here: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(here)._replace(free=1_000_000)
    monkeypatch.setattr(inputs.shutil, "disk_usage", lambda path: usage)
    assert main.execute(run_arguments()) == 2
    assert "the disk is full" in capsys.readouterr().err
    assert not (here / "out").exists()


def test_a_port_in_use_is_named_with_its_service() -> None:
    import socket

    with socket.socket() as taken:
        taken.bind((addresses.LOOPBACK, 0))
        taken.listen()
        port = taken.getsockname()[1]
        settings = services.StackSettings(
            folder=Path("unused"),
            policy="",
            policy_name="policies/x",
            judge="",
            constitution="",
            template="compact",
            num_threads=1,
            first_port=port,
        )
        with pytest.raises(SettingsError, match=rf"port {port} on 127.0.0.1, for oversight"):
            services.check_ports_free(settings)


def test_a_folder_in_use_by_a_live_run_is_refused(tmp_path: Path) -> None:
    refused = pytest.raises(InvalidInputError, match=r"in use by another live run \(process \d+\)")
    with locked(tmp_path), refused, locked(tmp_path):
        pass
    with locked(tmp_path):  # the lock ends with its holder
        pass


def test_the_lock_is_the_kernels_so_that_a_killed_run_leaves_none(tmp_path: Path) -> None:
    with locked(tmp_path):
        pass
    with (tmp_path / LOCK_FILE).open() as lock:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)


def test_a_folder_of_the_same_settings_is_continued_and_of_others_refused(tmp_path: Path) -> None:
    settings = {"out": "a", "seed": 1, "rl": {"steps": 40, "kl_beta": 0.06}}
    assert not check_folder(tmp_path, settings=settings, restart=False)
    (tmp_path / "run.json").write_text(json.dumps({"settings": settings}))
    assert check_folder(tmp_path, settings=settings | {"out": "b"}, restart=False)
    changed = settings | {"seed": 2, "rl": {"steps": 20, "kl_beta": 0.06}}
    with pytest.raises(SettingsError, match=r"rl\.steps was 40, now 20, seed was 1, now 2.*--restart"):
        check_folder(tmp_path, settings=changed, restart=False)
    assert not check_folder(tmp_path, settings=changed, restart=True)


def test_a_folder_with_other_peoples_files_is_refused_and_restart_keeps_them(tmp_path: Path) -> None:
    (tmp_path / "thesis.doc").write_text("mine")
    with pytest.raises(InvalidInputError, match=r"thesis\.doc"):
        check_folder(tmp_path, settings={}, restart=True)
    (tmp_path / "run.json").write_text("{}")
    (tmp_path / "models" / "policy").mkdir(parents=True)
    clear(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.doc"]


def test_changes_are_put_in_their_place_as_yaml() -> None:
    given = {"seed": 3, "rl": {"steps": 9}, "policy": None}
    assert with_changes(given, ["rl.kl_beta=0.1", "gate.min_num_labels=8"]) == {
        "seed": 3,
        "rl": {"steps": 9, "kl_beta": 0.1},
        "gate": {"min_num_labels": 8},
    }
    with pytest.raises(SettingsError, match="holds a value"):
        with_changes({"seed": 3}, ["seed.deep=1"])


def test_a_hub_id_passes_and_a_broken_path_does_not() -> None:
    shipped = Path("unused")
    assert not inputs.find_model("Qwen/Qwen3-0.6B", option="--policy", playground=shipped).local
    for broken in ("./x", "a/b/c", "/none", "has space"):
        with pytest.raises(InvalidInputError, match="no such folder"):
            inputs.find_model(broken, option="--policy", playground=shipped)
