"""`rlaif submit`, `runs`, `logs`, `cancel` and `schedule` as their user meets them, against an API on loopback."""

from __future__ import annotations

import json
import os
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from kfp_api import Answer, PipelinesApi
from kfp_server import serving
from kfp_workflow import Snapshot
from rlaif.cli import main
from rlaif.cli.logs import _news
from rlaif_pipelines.submission import PipelinesClient, compile_package

RUN_ROOT = "--param=run_root=/rlaif/runs/a"
QUICK = "--poll=0.1"


@pytest.fixture
def api(monkeypatch: pytest.MonkeyPatch) -> Iterator[PipelinesApi]:
    api = PipelinesApi()
    with serving(api) as address:
        monkeypatch.setenv("RLAIF_KFP_HOST", address)
        yield api


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small pipeline, as a file."""
    path = tmp_path_factory.mktemp("compiled") / "small.yaml"
    task = {"componentRef": {"name": "comp-label"}, "taskInfo": {"name": "label"}}
    inputs = {"parameters": {"run_root": {"parameterType": "STRING"}}}
    path.write_text(
        yaml.safe_dump(
            {
                "pipelineInfo": {"name": "small"},
                "root": {"dag": {"tasks": {"label": task}}, "inputDefinitions": inputs},
                "components": {"comp-label": {"executorLabel": "exec-label"}},
                "deploymentSpec": {"executors": {"exec-label": {"container": {"image": "python:3.11"}}}},
                "schemaVersion": "2.1.0",
            }
        )
    )
    return path


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    code = main.execute(arguments)
    said = capsys.readouterr()
    return code, said.out, said.err


def submitted(api: PipelinesApi, capsys: pytest.CaptureFixture[str], compiled: Path) -> str:
    assert run(capsys, "submit", "--pipeline", str(compiled), RUN_ROOT)[0] == 0
    return next(reversed(api.runs))


def test_a_run_is_submitted_with_its_parameters_and_its_link_is_printed(
    api: PipelinesApi, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    file = tmp_path / "run.yaml"
    file.write_text("judge: /rlaif/models/judge\nsettings: {seed: 3, rl: {steps: 9}}\n")
    code, out, err = run(capsys, "submit", RUN_ROOT, "--params", str(file), "--set", "rl.kl_beta=0.2", "--rounds", "2")
    assert (code, err) == (0, "")
    [created] = api.runs.values()
    assert created.runtime_config.parameters == {
        "run_root": "/rlaif/runs/a",
        "judge": "/rlaif/models/judge",
        "settings": {"seed": 3, "rl": {"steps": 9, "kl_beta": 0.2}, "rounds": 2},
    }
    assert f"run {created.run_id}" in out
    assert f"/#/runs/details/{created.run_id}" in out
    [version] = api.versions.values()
    groups = json.dumps(version.pipeline_spec)
    assert '"gate-passed-2"' in groups
    assert '"gate-passed-3"' not in groups


def test_the_graph_follows_the_settings(api: PipelinesApi, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(capsys, "submit", RUN_ROOT, "--set", "constitutional.enabled=true")[0] == 0
    [version] = api.versions.values()
    assert '"revisions-passed"' in json.dumps(version.pipeline_spec)


def test_another_pipeline_has_another_name(api: PipelinesApi, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(capsys, "submit", "--pipeline", "label-only", RUN_ROOT)[0] == 0
    [pipeline] = api.pipelines.values()
    assert pipeline.display_name == "rlaif-label-only"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--param=run_rot=/a"], "there is no run_rot; did you mean run_root?"),
        ([RUN_ROOT, "--param=steps=two"], "steps = 'two': must be a whole number"),
        ([RUN_ROOT, "--param=judge"], "--param judge: must be NAME=VALUE"),
        ([RUN_ROOT, "--set=rl.steps=0"], "rl.steps = 0: input should be greater than or equal to 1"),
        ([RUN_ROOT, "--set=rl.step=3"], "there is no setting 'rl.step'; did you mean steps?"),
        ([RUN_ROOT, "--set=out=/b"], "settings.out: is the parameter run_root"),
        ([RUN_ROOT, "--param=services.jugde=a:1"], "services: there is no jugde; did you mean judge?"),
        ([RUN_ROOT, "--param=steps=3", "--set=rl.steps=4"], "give one of them"),
        ([RUN_ROOT, "--param=judge_address=a:1", "--param=services.judge=b:1"], "services.judge = 'b:1': give one"),
        ([RUN_ROOT, "--set=jobs=3"], "settings.jobs = 3: must hold settings"),
        ([RUN_ROOT, "--set=jobs.pod=3"], "settings.jobs.pod = 3: must hold settings"),
        ([RUN_ROOT, "--set=sampling=3", "--param=max_tokens=5"], "settings.sampling = 3: must hold settings"),
        ([RUN_ROOT, "--set=sampling=3"], "sampling = 3: input should be"),
        ([RUN_ROOT, "--set=pipeline=label-only"], "the pipeline is rlaif: name the one you mean by --pipeline"),
        ([RUN_ROOT, "--param=image=mine:1"], "give trainer_image"),
        (
            [RUN_ROOT, "--param=prompts=/p", "--param=policy=p", "--param=judge=j", "--param=evaluator=e"],
            "evaluator 'e' needs a judge service that has it: give evaluator_address",
        ),
        ([RUN_ROOT, "--rounds=2", "--set=rounds=3"], "settings.rounds is 3: give one of them"),
        ([RUN_ROOT, "--params=nowhere.yaml"], "--params nowhere.yaml: cannot be read"),
        ([RUN_ROOT, "--params=/dev/zero"], "--params /dev/zero: is longer than 4,194,304 bytes"),
        ([], "missing: run_root"),
        (["--param=run_root="], "missing: run_root"),
        (["--param=run_root=runs/a"], "run_root = 'runs/a': must be a folder of the volume that all tasks share"),
        (["--param=run_root=/rlaif/../a"], "must be a folder of the volume"),
        (["--param=run_root=/rlaif"], "must be a folder of the volume"),
        (["--pipeline=labelonly"], "did you mean label-only?"),
        (["--pipeline=nowhere.yaml"], "--pipeline nowhere.yaml: cannot be read"),
    ],
)
def test_wrong_input_is_one_sentence_and_nothing_is_sent(
    api: PipelinesApi, arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, err = run(capsys, "submit", *arguments)
    assert (code, out, api.requests) == (2, "", [])
    assert said in err
    assert len(err.splitlines()) == 1


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["-o", "folder"], "--output folder: must end with .yaml"),
        (["-o", "folder.yaml"], "--output folder.yaml: cannot be written (Is a directory)"),
        (["-o", "/proc/none/a.yaml"], "--output /proc/none/a.yaml: cannot be written (No such file or directory)"),
        (["-o", "a.yaml", "--picture", "/proc/none/a.svg"], "--picture /proc/none/a.svg: cannot be written"),
        (["-o", "a.yaml", "--pipeline", "label-only", "--rounds", "2"], "has neither rounds nor"),
    ],
)
def test_what_cannot_be_compiled_or_written_is_one_sentence(
    arguments: list[str], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder.yaml").mkdir()
    code, out, err = run(capsys, "compile", *arguments)
    assert (code, out) == (2, "")
    assert said in err
    assert len(err.splitlines()) == 1


@pytest.mark.parametrize(("status", "code"), [(401, 1), (403, 1), (404, 2), (503, 1)])
def test_refusals_of_the_api_are_one_sentence_with_an_exit_code(
    api: PipelinesApi, status: int, code: int, compiled: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    api.fault = lambda method, _path: Answer(status, b"") if method == "POST" else None
    found = run(capsys, "submit", "--pipeline", str(compiled), RUN_ROOT)
    assert found[0] == code
    assert f"{status}" in found[2]
    assert len(found[2].splitlines()) == 1


def test_waiting_tells_each_change_once_and_ends_well(
    api: PipelinesApi, compiled: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    states: list[dict[str, str]] = [
        {},
        {"prepare": "RUNNING"},
        {"prepare": "RUNNING"},
        {"prepare": "SUCCEEDED", "label": "RUNNING"},
    ]
    api.script = [*(Snapshot("RUNNING", tasks) for tasks in states), Snapshot("SUCCEEDED", {"label": "SUCCEEDED"})]
    code, out, _ = run(capsys, "submit", "--pipeline", str(compiled), RUN_ROOT, "--wait", QUICK)
    assert code == 0
    changes = [re.sub(r"^\S+\s+", "", line).split() for line in out.splitlines()[2:]]
    assert changes == [
        ["run", "running"],
        ["prepare", "running"],
        ["prepare", "succeeded", "in", "42.0", "s"],
        ["label", "running"],
        ["label", "succeeded", "in", "42.0", "s"],
        ["run", "succeeded"],
        [*next(iter(api.runs)).split(), "succeeded"],
    ]


def test_waiting_on_a_failure_names_the_task_and_what_its_log_ends_with(
    api: PipelinesApi, compiled: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    api.script = [Snapshot("FAILED", {"prepare": "SUCCEEDED", "label": "FAILED"})]
    api.logs["rlaif-x7k2p-system-container-impl-1006"] = (
        "Traceback (most recent call last):\n  File ...\n"
        "rlaif.core.errors.UnavailableError: the judge is not reached\n"
        "I0301 09:00:01.1 1 launcher_v2.go:151] publish success.\nF0301 09:00:01.2 main.go:49] exit status 1\n"
    )
    code, _, err = run(capsys, "submit", "--pipeline", str(compiled), RUN_ROOT, "--wait", QUICK)
    assert code == 1
    run_id = next(iter(api.runs))
    assert err == (
        "rlaif: task label failed: rlaif.core.errors.UnavailableError: the judge is not reached (whole log: rlaif logs "
        f"{run_id} label)\n"
    )


def test_a_run_that_a_gate_stopped_and_one_that_was_cancelled_have_their_own_exit_codes(
    api: PipelinesApi, compiled: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    gate = next(key for key, title in compile_package().titles.items() if title == "gate-passed-1")
    api.script = [Snapshot("SUCCEEDED", {"quality-gate": "SUCCEEDED"}, skipped_groups=[gate])]
    code, out, _ = run(capsys, "submit", RUN_ROOT, "--wait", QUICK)
    assert (code, "stopped by gate-passed-1" in out) == (3, True)
    api.script = [Snapshot("CANCELED", {})]
    code, _, err = run(capsys, "submit", "--pipeline", str(compiled), RUN_ROOT, "--wait", QUICK)
    assert (code, "was cancelled" in err) == (1, True)


def test_interrupted_waiting_leaves_the_run_and_says_how_to_come_back(
    api: PipelinesApi, compiled: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: Any, **__: Any) -> Iterator[Any]:
        raise KeyboardInterrupt
        yield

    monkeypatch.setattr(PipelinesClient, "follow", interrupted)
    code, _, err = run(capsys, "submit", "--pipeline", str(compiled), RUN_ROOT, "--wait")
    [run_id] = api.runs
    assert code == 130
    assert f"`rlaif runs show {run_id} --wait`" in err
    assert f"`rlaif cancel {run_id}`" in err
    assert api.runs[run_id].state == "PENDING"


def test_runs_are_listed_shown_and_cancelled(
    api: PipelinesApi, compiled: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(capsys, "runs", "list")[1] == "no runs\n"
    api.script = [Snapshot("RUNNING", {"label": "RUNNING"})]
    ids = [submitted(api, capsys, compiled) for _ in range(2)]
    code, out, _ = run(capsys, "runs", "list", "--limit", "1")
    assert (code, ids[1] in out, ids[0] in out, "more: --page" in out) == (0, True, False, True)
    page = out.split("--page ")[1].strip()
    assert ids[0] in run(capsys, "runs", "list", "--limit", "1", "--page", page)[1]
    assert [each["run_id"] for each in json.loads(run(capsys, "runs", "list", "--json")[1])["runs"]] == ids[::-1]
    shown = run(capsys, "runs", "show", ids[0])[1]
    assert re.search(r"label\s+running", shown)
    assert run(capsys, "cancel", ids[0])[0] == 0
    code, _, err = run(capsys, "runs", "show", ids[0], "--wait", QUICK)
    assert (code, "was cancelled" in err) == (1, True)
    code, _, err = run(capsys, "cancel", ids[0])
    assert (code, "has ended already: canceled" in err) == (1, True)
    code, _, err = run(capsys, "runs", "show", "nope")
    assert (code, "there is no run nope" in err) == (2, True)


def test_logs_of_all_tasks_of_one_and_as_they_grow(
    api: PipelinesApi, compiled: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    growing = Snapshot("RUNNING", {"prepare": "SUCCEEDED", "label": "RUNNING"})
    api.script = [growing, growing, growing, Snapshot("SUCCEEDED", {"prepare": "SUCCEEDED", "label": "SUCCEEDED"})]
    run_id = submitted(api, capsys, compiled)
    api.logs["rlaif-x7k2p-system-container-impl-1003"] = "prepared\n"
    label = "rlaif-x7k2p-system-container-impl-1006"
    api.logs[label] = "one\n"
    code, out, _ = run(capsys, "logs", run_id)
    assert (code, out) == (0, "==> prepare (succeeded) <==\nprepared\n==> label (running) <==\none\n")
    code, _, err = run(capsys, "logs", run_id, "labl")
    assert (code, "has no task labl; did you mean label?" in err) == (2, True)

    def grow(method: str, path: str) -> None:
        if path.endswith("/log"):
            api.logs[label] += "more\n" if api.logs[label].count("more") < 2 else ""

    api.fault = grow  # type: ignore[assignment]
    code, out, _ = run(capsys, "logs", run_id, "label", "--follow", QUICK)
    assert (code, out) == (0, "one\nmore\nmore\n")
    api.fault = lambda _method, _path: None
    api.logs.clear()
    code, _, err = run(capsys, "logs", run_id, "label", "--no-kubernetes")
    assert (code, "no log of task label" in err) == (2, True)


def test_a_followed_task_that_is_tried_again_tells_all_of_its_new_attempt(
    api: PipelinesApi, compiled: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    api.script = [*[Snapshot("RUNNING", {"label": "RUNNING"})] * 4, Snapshot("SUCCEEDED", {"label": "SUCCEEDED"})]
    run_id = submitted(api, capsys, compiled)
    logs = iter(["first attempt: asked 1 pair\n", "second\n", "second\nasked 2 pairs\n"])
    label = "rlaif-x7k2p-system-container-impl-1003"

    def next_log(method: str, path: str) -> None:
        if path.endswith("/log"):
            api.logs[label] = next(logs, api.logs.get(label, ""))

    api.fault = next_log  # type: ignore[assignment]
    code, out, _ = run(capsys, "logs", run_id, "label", "--follow", QUICK)
    assert (code, out) == (0, "first attempt: asked 1 pair\nsecond\nasked 2 pairs\n")


def test_of_a_log_that_outgrows_what_is_read_of_it_no_line_is_told_twice() -> None:
    lines = [f"{number}: {'x' * 100}\n" for number in range(40)]
    assert _news("".join(lines[5:35]), before="".join(lines[:30])) == "".join(lines[30:35])
    assert _news("".join(lines), before="") == "".join(lines)


def test_the_documented_python_submits_and_follows(api: PipelinesApi, capsys: pytest.CaptureFixture[str]) -> None:
    document = (Path(__file__).parents[2] / "docs" / "submit.md").read_text()
    [shown] = re.findall(r"^```python\n(.*?)^```$", document, flags=re.DOTALL | re.MULTILINE)
    exec(shown.replace("http://127.0.0.1:8888", os.environ["RLAIF_KFP_HOST"]), {})
    assert capsys.readouterr().out.splitlines()[-1].startswith("SUCCEEDED [('prepare', 'SUCCEEDED')")
    [created] = api.runs.values()
    assert created.runtime_config.parameters == {"run_root": "/rlaif/runs/first"}


def test_schedules_are_kept_by_commands(api: PipelinesApi, compiled: Path, capsys: pytest.CaptureFixture[str]) -> None:
    create = ["schedule", "create", "nightly", "--pipeline", str(compiled), RUN_ROOT]
    assert "give --cron or --every" in run(capsys, *create)[2]
    assert api.requests == []
    code, out, _ = run(capsys, *create, "--cron", "0 3 * * *")
    [schedule_id] = api.schedules
    assert (code, out) == (0, f"schedule {schedule_id} (nightly): 0 0 3 * * *\n")
    assert run(capsys, "schedule", "pause", schedule_id)[0] == 0
    assert re.search(rf"{schedule_id}\s+nightly\s+0 0 3 \* \* \*\s+paused", run(capsys, "schedule", "list")[1])
    assert run(capsys, "schedule", "resume", schedule_id)[0] == 0
    assert run(capsys, "schedule", "delete", schedule_id)[0] == 0
    assert run(capsys, "schedule", "list")[1] == "no schedules\n"
    assert run(capsys, "schedule", "delete", schedule_id)[0] == 2


def test_the_documented_watch_on_a_judge_is_scheduled(api: PipelinesApi, capsys: pytest.CaptureFixture[str]) -> None:
    document = (Path(__file__).parents[2] / "docs" / "submit.md").read_text()
    [shown] = re.findall(r"^rlaif (schedule create judge-watch .*?)^```$", document, flags=re.DOTALL | re.MULTILINE)
    code, out, err = run(capsys, *shlex.split(shown.replace("\\\n", " ")))
    assert (code, err) == (0, "")
    [schedule] = api.schedules.values()
    assert schedule.runtime_config.parameters["settings"] == {"gate": {"min_benchmark_accuracy": 0.8}}
    assert out.endswith("every 86400 s\n")


@pytest.mark.parametrize(
    "verb",
    ["submit", "runs list", "runs show", "logs", "cancel", "schedule create", "schedule list", "schedule pause"],
)
def test_every_verb_tells_how_to_reach_kubeflow_pipelines(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys, *verb.split(), "--help")
    assert code == 0
    assert all(option in out for option in ("--host", "--namespace", "--token-file", "--header-file", "--ca-file"))
