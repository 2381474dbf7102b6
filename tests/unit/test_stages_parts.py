"""Sampling and judging in parts: the same rows and digests, whatever the number of parts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import pipeline_fakes as fakes
from rlaif.core.errors import PreconditionError
from rlaif_pipelines.context import RunContext, StageOutput, StageResult, read_rows
from rlaif_pipelines.settings import ServiceAddresses, make_settings
from rlaif_pipelines.stages import runner
from rlaif_pipelines.stages.parts import Part, num_parts
from rlaif_pipelines.stages.prepare import create_run
from rlaif_pipelines.stages.prompts import prompts

SIZES: dict[str, Any] = {
    "sampling": {"num_prompts": 40, "num_completions": 4, "pairs_per_prompt": 3, "prompts_per_request": 8},
    "judging": {"pairs_per_request": 10},
}


@pytest.fixture
def services(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    found: dict[str, Any] = {"sampler": fakes.FakeSampler(), "judge": fakes.FakeJudge()}
    for name in found:
        monkeypatch.setattr(RunContext, name, lambda context, name=name: found[name])
    return found


def begin(root: Path, *, num_shards: int) -> RunContext:
    context = create_run(make_settings({**SIZES, "out": root, "num_shards": num_shards}), ServiceAddresses())
    values = {"policy_uri": "base", "policy_digest": "p" * 64, "judge_digest": "a" * 64, "judge_fingerprint": ""}
    context.run_stage("prepare", lambda folder: StageOutput(values=values), inputs={})
    prompts(context)
    return context


def labelled(root: Path, *, num_shards: int) -> tuple[StageResult, StageResult]:
    """Both stages as the pipeline's tasks go through them."""
    begin(root, num_shards=num_shards)
    results = []
    for stage in ("sample", "judge"):
        for part in runner.parts(root):
            runner.run(stage, run_root=root, part=part)
        results.append(runner.gather(stage, run_root=root, round_number=1))
    return results[0], results[1]


@pytest.mark.parametrize("of", [1, 2, 3, 7])
def test_parts_are_whole_requests_and_together_everything(of: int) -> None:
    parts = [Part(number, of).positions(45, per_request=10) for number in range(1, of + 1)]
    assert [position for part in parts for position in part] == list(range(45))
    assert all(part.start % 10 == 0 for part in parts)


@pytest.mark.parametrize("num_shards", [2, 3, 16])
def test_rows_and_digests_are_the_same_for_any_number_of_parts(
    tmp_path: Path, services: dict[str, Any], num_shards: int
) -> None:
    whole = labelled(tmp_path / "whole", num_shards=1)
    asked = services["sampler"].requests.copy()
    services["sampler"].requests.clear()
    cut = labelled(tmp_path / "cut", num_shards=num_shards)
    for one, other in zip(whole, cut, strict=True):
        assert other.inputs_sha256 == one.inputs_sha256
        assert other.outputs == one.outputs
        assert other.values == one.values
    assert services["sampler"].requests == asked, "the same requests with the same seeds, in the same order"
    run_labels = [(tmp_path / name / "labels.jsonl").read_bytes() for name in ("whole", "cut")]
    assert run_labels[0] == run_labels[1]


def test_a_single_part_is_the_stage_itself(tmp_path: Path, services: dict[str, Any]) -> None:
    labelled(tmp_path, num_shards=1)
    states = [(event["stage"], event["state"]) for event in read_rows(tmp_path / "events.jsonl")]
    assert [state for state in states if state[0] == "sample" and state[1] != "progress"] == [
        ("sample", "started"),
        ("sample", "finished"),
    ]
    assert not list((tmp_path / "stages").glob("*.part-*"))


def test_no_more_parts_than_requests(tmp_path: Path, services: dict[str, Any]) -> None:
    assert num_parts(begin(tmp_path, num_shards=64)) == 5


def test_finished_parts_are_skipped_when_one_has_failed(tmp_path: Path, services: dict[str, Any]) -> None:
    begin(tmp_path, num_shards=2)
    runner.run("sample", run_root=tmp_path, part=1)
    services["sampler"].version = 7
    with pytest.raises(PreconditionError, match="serves version 7"):
        runner.run("sample", run_root=tmp_path, part=2)
    last = list(read_rows(tmp_path / "events.jsonl"))[-1]
    assert (last["stage"], last["state"]) == ("sample", "failed")
    services["sampler"].version = 0
    services["sampler"].requests.clear()
    for part in (1, 2):
        runner.run("sample", run_root=tmp_path, part=part)
    assert len(services["sampler"].requests) == 3, "the second part's requests alone"


def test_parts_of_other_inputs_are_not_put_together(tmp_path: Path, services: dict[str, Any]) -> None:
    begin(tmp_path, num_shards=2)
    for part in (1, 2):
        runner.run("sample", run_root=tmp_path, part=part)
    path = tmp_path / "stages" / "sample.part-2-of-2" / "done.json"
    path.write_text(path.read_text().replace('"inputs_sha256": "', '"inputs_sha256": "0'))
    with pytest.raises(PreconditionError, match=r"sample\.part-2-of-2 is of other inputs than sample"):
        runner.gather("sample", run_root=tmp_path, round_number=1)
