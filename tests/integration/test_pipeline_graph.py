"""The graphs under kfp.local, every task a process: compiled files as they are, caches, failures, kills, artifacts.

The ledger, the judge and all wires are real; models and trainings are not, so that a whole run takes seconds.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from google.protobuf.json_format import MessageToDict
from kfp import components

from pipeline_hooks import HANGING, STEPS
from pipeline_services import SMALL, Services, hooked, serving_without_models
from rlaif.cli.progress import planned_stages
from rlaif.playground.paths import POLICY_DIR
from rlaif.runtime.artifacts import read_desired
from rlaif_pipelines.context import RunContext, file_sha256, read_json, read_rows, stage_name
from rlaif_pipelines.flow import GraphOptions, build_pipeline
from rlaif_pipelines.local_run import kfp_local, run_local
from rlaif_pipelines.outcome import PipelineFailedError, RunOutcome, events_size, read_outcome
from rlaif_pipelines.parameters import neutral
from rlaif_pipelines.placement import Retries
from rlaif_pipelines.settings import PipelineName

pytestmark = pytest.mark.slow

GOLDEN = Path(__file__).parents[1] / "golden"
PLAN: dict[str, Any] = {"rounds": 1, "trains_reward_model": True, "constitutional": "first"}


@pytest.fixture(scope="module")
def services(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Services]:
    with serving_without_models(tmp_path_factory.mktemp("services")) as found:
        yield found


@pytest.fixture(autouse=True)
def nothing_is_left_running(services: Services) -> Iterator[None]:
    yield
    assert services.left_running() == []


def states(root: Path) -> dict[str, str]:
    """The last state of each stage."""
    return {event["stage"]: event["state"] for event in read_rows(root / "events.jsonl")}


def run_graph(graph: Any, services: Services, root: Path, name: PipelineName = "rlaif", **given: Any) -> RunOutcome:
    """Call a pipeline as KFP does: by its parameters."""
    services.sampler.roots[given["policy_resource"]] = root / "artifacts"
    since_bytes = events_size(root)
    addresses = services.addresses
    arguments = {
        "run_root": str(root),
        "sampler_address": addresses.sampler,
        "judge_address": addresses.judge,
        "ledger_address": addresses.ledger,
        "reward_address": addresses.reward,
        **given,
    }
    root.mkdir(exist_ok=True)
    with kfp_local(root / "kfp"):
        graph(**neutral(name) | arguments)
    return read_outcome(root, since_bytes=since_bytes)


def artifacts(root: Path) -> dict[tuple[str, str], list[dict[str, Any]]]:
    """What tasks said of their artifacts, by task and output; of a task in a loop one for each part."""
    found: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for path in sorted((root / "kfp").glob("**/executor_output.json")):
        for output, listed in read_json(path).get("artifacts", {}).items():
            found.setdefault((path.parent.name, output), []).extend(listed["artifacts"])
    return found


def test_the_compiled_file_runs_as_it_is_and_a_second_time_from_what_is_finished(
    tmp_path: Path, services: Services, monkeypatch: pytest.MonkeyPatch
) -> None:
    hooked(monkeypatch)
    graph = components.load_component_from_file(str(GOLDEN / "rlaif.yaml"))
    given = {"policy_resource": "policies/compiled", "algorithm": "dpo", "num_shards": 2, "settings": SMALL}
    root, before = tmp_path / "run", services.label_names()
    outcome = run_graph(graph, services, root, **given)
    assert (outcome.state, outcome.exit_code) == ("finished", 0), outcome.message
    context = RunContext.load(root)
    labels = list(read_rows(context.result("judge").path("labels.jsonl")))

    found = artifacts(root)
    assert len(found["sample", "completions"]) == len(found["label", "labels"]) == 2
    [gathered] = found["gather-labels", "labels"]
    assert Path(gathered["uri"]) == root / "stages" / "judge" / "labels.jsonl"
    assert gathered["metadata"]["sha256"] == file_sha256(Path(gathered["uri"]))
    [quality] = found["quality-gate", "quality"]
    assert quality["metadata"]["quality.num_labels"] == len(labels)
    assert quality["metadata"]["quality.order_inconsistency"] == 1.0
    [reference] = found["quality-gate", "against_reference"]
    matrix = reference["metadata"]["confusionMatrix"]
    assert sum(sum(row["row"]) for row in matrix["rows"]) == len(labels)
    assert [point["recall"] for point in reference["metadata"]["confidenceMetrics"]] == [0.0, 1.0]
    [policy] = found["train-on-preferences", "policy"]
    assert policy["metadata"]["version"] == STEPS
    assert Path(policy["uri"], "model.safetensors").is_file()
    [figures] = found["train-on-preferences", "figures"]
    assert figures["metadata"] == {"num_steps": STEPS, "loss": 0.5, "before.loss": 0.75}
    [evaluation] = found["evaluate", "evaluation"]
    assert evaluation["metadata"]["win_rate.value"] > 0.5
    assert all(isinstance(value, int | float) for value in evaluation["metadata"].values())
    [page], [summary] = found["report", "page"], found["report", "summary"]
    assert "<!doctype html>" in Path(page["uri"]).read_text()
    assert Path(summary["uri"]).read_text().startswith("## Improved")
    assert None not in [value for each in found.values() for one in each for value in one["metadata"].values()]

    asked, recorded = len(services.sampler.requests), services.label_names()
    assert len(recorded) - len(before) == len(labels) == len(set(recorded) - set(before))
    (root / "events.jsonl").unlink()
    outcome = run_graph(graph, services, root, **given)
    assert outcome.state == "finished"
    assert {stage for stage, state in states(root).items() if state != "skipped"} == {"report"}
    assert (len(services.sampler.requests), services.label_names()) == (asked, recorded)


def test_every_stage_may_fail_once_its_failure_is_named_and_nothing_is_done_twice(
    tmp_path: Path, services: Services, monkeypatch: pytest.MonkeyPatch
) -> None:
    hooked(monkeypatch, fail="*")
    options = GraphOptions(constitutional="first", retries=Retries(count=1, pause_seconds=0))
    root, before = tmp_path / "retried", services.label_names()
    settings = {**SMALL, "num_shards": 2, "seed": 1, "constitutional": {"num_prompts": 40, "rounds": 1}}
    given = {"policy_resource": "policies/retried", "settings": settings}
    outcome = run_graph(build_pipeline(options=options), services, root, **given)
    assert outcome.state == "finished", outcome.message
    failures = [event for event in read_rows(root / "events.jsonl") if event["state"] == "failed"]
    told = Counter(event["stage"] for event in failures)
    in_parts = {"sample": 3, "judge": 3}  # two parts, and what puts them together
    assert told == dict.fromkeys(planned_stages(**PLAN), 1) | in_parts
    assert {event["message"] for event in failures if event["stage"] == "train"} == {
        "RuntimeError: forced failure of train"
    }
    labels = [row["label"].removeprefix("labels/") for row in read_rows(root / "labels.jsonl")]
    # A pair that an earlier test had labelled is answered from the ledger.
    added = services.label_names()[len(before) :]
    assert sorted(added) == sorted(set(labels) - set(before))
    assert len(labels) == len(set(labels)) > 10
    [held_out] = artifacts(root)["train-reward-model", "held_out"]
    assert held_out["metadata"]["confusionMatrix"]["rows"] == [{"row": [1, 0]}, {"row": [1, 1]}]
    assert [point["recall"] for point in held_out["metadata"]["confidenceMetrics"]] == [0.0, 1.0, 1.0, 1.0]
    with services.ledger() as ledger:
        failed = {event.subject for event in ledger.list_events("stage_failed")}
        finished = Counter(
            event.subject for event in ledger.list_events("stage_finished") if "/retried/" in event.subject
        )
    assert "runs/retried/stages/train" in failed
    assert finished["runs/retried/stages/train"] == 1


def test_a_run_that_is_killed_and_then_fails_says_where_and_goes_on_from_there(
    tmp_path: Path, services: Services, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = services.begin(tmp_path / "killed", algorithm="dpo", seed=3).root
    hooked(monkeypatch, hang="judge")
    command = [sys.executable, "-m", "rlaif.cli.pipeline", str(root)]
    with (tmp_path / "log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, process_group=0)
    while not (root / HANGING).exists():
        assert process.poll() is None, (tmp_path / "log").read_text()
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    recorded = services.label_names()

    hooked(monkeypatch, fail="train")
    with pytest.raises(PipelineFailedError, match="forced failure of train") as failed:
        run_local(root)
    assert (failed.value.outcome.stage, failed.value.outcome.exit_code) == ("train", 1)
    assert "stage train failed: RuntimeError: forced failure of train" in (root / "summary.md").read_text()
    judged = RunContext.load(root).result("judge").values
    assert judged["num_recorded_before"] == judged["num_pairs"] > 0
    skipped = {event["stage"] for event in read_rows(root / "events.jsonl") if event["state"] == "skipped"}
    assert skipped == {"prepare", "prompts", "baseline", "sample"}
    done = skipped | {"judge", "gate"}
    assert {stage for stage, state in states(root).items() if state in ("finished", "skipped")} == done | {"report"}

    hooked(monkeypatch)
    (root / "events.jsonl").unlink()
    assert run_local(root).state == "finished"
    assert {name for name, state in states(root).items() if state == "skipped"} == done
    assert services.label_names() == recorded, "what was labelled is answered by the ledger"
    assert read_json(root / "report.json")["outcome"] == "finished"


def test_from_the_last_policy_one_walks_back_through_both_rounds_to_every_label(
    tmp_path: Path, services: Services, monkeypatch: pytest.MonkeyPatch
) -> None:
    hooked(monkeypatch)
    # The policy of the second round hardly ever says two things of one prompt.
    gate = {**SMALL["gate"], "min_num_labels": 1}
    context = services.begin(tmp_path / "rounds", algorithm="dpo", rounds=2, seed=4, gate=gate)
    assert run_local(context.root).state == "finished"
    with services.ledger() as ledger:
        published = [MessageToDict(event.payload) for event in ledger.list_events("policy_published", context.policy)]
        finished = {
            event.subject.rpartition("/")[2]: MessageToDict(event.payload)
            for event in ledger.list_events("stage_finished")
            if event.subject.startswith("runs/rounds/")
        }
        known = {label.name for label in ledger.export_labels()}
    came_from = {each["digest"]: each for each in published}
    digest, seen = context.result("train-2").values["digest"], []
    while digest in came_from:
        number = int(came_from[digest]["round"])
        seen.append(number)
        training, judging = finished[stage_name("train", number)], finished[stage_name("judge", number)]
        assert (training["values"]["digest"], training["inputs"]["start"]) == (digest, came_from[digest]["from"])
        assert training["inputs"]["labels"] == judging["outputs"]["labels.jsonl"]
        labels = context.result(stage_name("judge", number)).path("labels.jsonl")
        assert file_sha256(labels) == judging["outputs"]["labels.jsonl"]
        assert {row["label"] for row in read_rows(labels)} <= known
        digest = came_from[digest]["from"]
    assert seen == [2, 1]
    assert digest == finished["prepare"]["values"]["policy_digest"]


def test_labels_alone_and_then_a_model_against_the_policy(
    tmp_path: Path, services: Services, monkeypatch: pytest.MonkeyPatch
) -> None:
    hooked(monkeypatch)
    labelled = services.begin(tmp_path / "labels", pipeline="label-only", num_shards=2)
    outcome = run_local(labelled.root)
    num_labels = labelled.result("judge").values["num_pairs"]
    assert (outcome.state, outcome.message) == ("finished", f"{num_labels} labels, which passed the gate")
    assert "train" not in states(labelled.root)
    assert read_json(labelled.root / "report.json")["label_quality"]["num_labels"] == num_labels

    candidate = tmp_path / "candidate"
    shutil.copytree(POLICY_DIR, candidate)
    config = read_json(candidate / "config.json")
    (candidate / "config.json").write_text(json.dumps({**config, "made": "elsewhere"}))
    given = {"pipeline": "evaluate-only", "candidate": str(candidate), "promote_to": "policies/used"}
    evaluated = services.begin(tmp_path / "candidate-run", **given)
    assert run_local(evaluated.root).message == "verdict: improved"
    used = read_desired(evaluated.root / "artifacts", "policies/used")
    assert used is not None
    assert (used.version, used.digest) == (1, evaluated.result("adopt").values["digest"])


def test_a_policy_that_the_sampler_does_not_serve_is_named(
    tmp_path: Path, services: Services, monkeypatch: pytest.MonkeyPatch
) -> None:
    hooked(monkeypatch)
    context = services.begin(tmp_path / "unknown")
    del services.sampler.roots[context.policy]
    with pytest.raises(PipelineFailedError, match="does not serve policies/unknown: give the name that it") as failed:
        run_local(context.root)
    assert (failed.value.outcome.stage, failed.value.outcome.exit_code) == ("prepare", 2)
