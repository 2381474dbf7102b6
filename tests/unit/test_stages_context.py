"""Stages resume: what is finished is skipped, what changed runs again, and what follows from it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from rlaif.core.errors import InvalidInputError, PreconditionError
from rlaif_pipelines.context import RunContext, StageOutput, read_rows, stage_name
from rlaif_pipelines.settings import ServiceAddresses, make_settings


@pytest.fixture
def context(tmp_path: Path) -> RunContext:
    return RunContext(tmp_path, make_settings({}), ServiceAddresses())


def stage(context: RunContext, calls: list[str], *, name: str = "sample", text: str = "x", seed: int = 0) -> str:
    def body(folder: Path) -> StageOutput:
        calls.append(name)
        (folder / "out.txt").write_text(text)
        return StageOutput(("out.txt",), {"length": len(text)})

    result = context.run_stage(name, body, inputs={"seed": seed})
    return result.outputs["out.txt"]


def test_a_finished_stage_with_the_same_inputs_is_skipped(context: RunContext) -> None:
    calls: list[str] = []
    assert stage(context, calls) == stage(context, calls)
    assert calls == ["sample"]
    assert [event["state"] for event in read_rows(context.root / "events.jsonl")] == ["started", "finished", "skipped"]
    assert context.result("sample").values == {"length": 1}


def test_changed_inputs_run_the_stage_again_in_a_clean_folder(context: RunContext) -> None:
    calls: list[str] = []
    stage(context, calls)
    (context.stage_folder("sample") / "left.txt").write_text("left")
    stage(context, calls, seed=1)
    assert calls == ["sample", "sample"]
    assert not (context.stage_folder("sample") / "left.txt").exists()


def test_a_damaged_output_runs_the_stage_again(context: RunContext) -> None:
    calls: list[str] = []
    stage(context, calls)
    (context.stage_folder("sample") / "out.txt").write_text("tampered")
    stage(context, calls)
    assert calls == ["sample", "sample"]


def test_a_stage_that_failed_is_not_finished(context: RunContext) -> None:
    def fail(folder: Path) -> StageOutput:
        (folder / "half.txt").write_text("half")
        raise RuntimeError("no")

    with pytest.raises(RuntimeError):
        context.run_stage("judge", fail, inputs={})
    assert not context.finished("judge")
    with pytest.raises(PreconditionError, match="stage judge has not finished"):
        context.result("judge")


@pytest.mark.parametrize(("inputs", "kept"), [({"seed": 0}, True), ({"seed": 1}, False)])
def test_a_resumable_stage_finds_its_checkpoint_only_with_the_same_inputs(
    context: RunContext, inputs: dict[str, int], kept: bool
) -> None:
    def die(folder: Path) -> StageOutput:
        (folder / "checkpoint").write_text("step 7")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        context.run_stage("train", die, inputs={"seed": 0}, resumable=True)
    found: list[bool] = []

    def resume(folder: Path) -> StageOutput:
        found.append((folder / "checkpoint").exists())
        return StageOutput()

    context.run_stage("train", resume, inputs=inputs, resumable=True)
    assert found == [kept]


def test_a_missing_address_is_named(context: RunContext) -> None:
    with pytest.raises(PreconditionError, match="no address of the sampler service"):
        context.client_settings("sampler")


def test_a_folder_without_a_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidInputError, match="is not a run folder"):
        RunContext.load(tmp_path)


def test_progress_is_one_whole_json_line(context: RunContext) -> None:
    context.progress("judge", message="pairs")(3, 9)
    event = json.loads((context.root / "events.jsonl").read_text())
    assert (event["stage"], event["state"], event["done"], event["total"]) == ("judge", "progress", 3, 9)


def test_rounds_have_folders_of_their_own() -> None:
    assert [stage_name("sample", number) for number in (1, 2)] == ["sample", "sample-2"]
