"""The pipeline under kfp.local: without services it says so; with them it is stopped by its gate, and later goes on."""

from __future__ import annotations

import json
import os
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from rlaif.cli.addresses import module_of
from rlaif.cli.processes import ProcessFamily, child_environment
from rlaif.cli.services import StackSettings, start_stack
from rlaif.client.ledger import LedgerClient
from rlaif.playground import answers, gold, world
from rlaif.runtime.settings import ClientSettings
from rlaif_pipelines.context import RunContext, file_sha256, read_json, read_rows
from rlaif_pipelines.evaluation.kl import kl_to_base
from rlaif_pipelines.local_run import run_local
from rlaif_pipelines.outcome import PipelineFailedError
from rlaif_pipelines.settings import ServiceAddresses, make_settings
from rlaif_pipelines.stages.prepare import create_run

TINY: dict[str, Any] = {
    "algorithm": "dpo",
    "sampling": {"num_prompts": 24, "num_completions": 4, "pairs_per_prompt": 2},
    "dpo": {"epochs": 1, "batch_size": 16},
    "evaluation": {"num_harmful": 12, "num_other": 4},
    "engine": {"num_threads": 1},
}


def states(root: Path) -> dict[str, str]:
    """The last state of each stage."""
    return {event["stage"]: event["state"] for event in read_rows(root / "events.jsonl")}


def test_a_service_without_an_address_ends_the_run_at_once_and_the_report_is_written(tmp_path: Path) -> None:
    create_run(make_settings({**TINY, "out": tmp_path}), ServiceAddresses())
    with pytest.raises(PipelineFailedError) as failed:
        run_local(tmp_path)
    assert (failed.value.outcome.stage, failed.value.outcome.exit_code) == ("prepare", 2)
    assert failed.value.outcome.message.startswith("pipeline rlaif needs a sampler service: give sampler_address")
    assert states(tmp_path) == {"prepare": "failed", "report": "finished"}
    assert (tmp_path / "report.html").stat().st_size > 1000
    assert not list((tmp_path / "kfp").glob("scratch-*"))


def test_a_constitution_that_is_wrong_is_wrong_input(tmp_path: Path) -> None:
    constitution = tmp_path / "my.yaml"
    constitution.write_text("id: mine\nprinciples:\n  - id: one\n    text: Be good.\n    wieght: 2\n")
    create_run(make_settings({**TINY, "constitution": str(constitution), "out": tmp_path}), ServiceAddresses())
    with pytest.raises(PipelineFailedError, match="unknown key 'wieght'") as failed:
        run_local(tmp_path)
    assert (failed.value.outcome.stage, failed.value.outcome.exit_code) == ("prepare", 2)


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, ServiceAddresses]]:
    root = tmp_path_factory.mktemp("run")
    base = make_settings({**TINY, "out": root})
    settings = StackSettings(
        folder=root,
        policy=base.policy_uri,
        policy_name=base.policy_name,
        judge=base.judge_uri,
        constitution=base.constitution,
        template=base.judge_template,
        num_threads=1,
    )
    environment = child_environment(os.environ, num_threads=1, offline=True)
    with ProcessFamily(owner=f"test:{root}") as family:
        found = start_stack(
            settings,
            launch=lambda name, config: family.start(
                name,
                module_of(name),
                "--config",
                str(config),
                log_path=settings.log_path(name),
                environment=environment,
            ),
            told=lambda name: None,
        )
        addresses = {name: announcement.address for name, announcement in found.items()}
        addresses["ledger"] = addresses.pop("oversight")
        yield root, ServiceAddresses(**addresses)


def gold_pairs(path: Path) -> int:
    """Pairs of what a policy of the playground might say, labelled by gold; how many."""
    rng, rows = random.Random(0), []
    for prompt in world.evaluation_prompts(num_harmful=24, num_other=8):
        first, second = (answers.compose(rng, prompt, answers.sample_kind(rng, prompt.category)).text for _ in range(2))
        preferred = gold.prefers(gold.evaluate(prompt.text, first), gold.evaluate(prompt.text, second))
        if first != second:
            row = {"prompt": prompt.text, "first": first, "second": second, "category": prompt.category}
            rows.append({**row, "preference": {1.0: "first", 0.0: "second", 0.5: "tie"}[preferred]})
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return len(rows)


@pytest.mark.slow
def test_a_run_stopped_by_its_gate_goes_on_when_the_gate_is_opened(stack: tuple[Path, ServiceAddresses]) -> None:
    root, services = stack
    create_run(make_settings({**TINY, "gate": {"min_num_labels": 4000}, "out": root}), services)
    stopped = run_local(root)
    assert (stopped.state, stopped.exit_code, stopped.stage) == ("stopped", 3, "gate")
    assert "fewer than the 4000 required" in stopped.message
    assert "train" not in states(root)
    assert read_json(root / "report.json")["gate"]["passed"] is False
    labels = file_sha256(root / "labels.jsonl")

    create_run(make_settings({**TINY, "gate": {"min_judge_accuracy": 0.0}, "out": root}), services)
    finished = run_local(root)
    assert (finished.state, finished.exit_code) == ("finished", 0), finished.message
    assert {stage for stage, state in states(root).items() if state == "skipped"} == {
        "prepare",
        "prompts",
        "baseline",
        "sample",
        "judge",
    }
    assert file_sha256(root / "labels.jsonl") == labels

    context = RunContext.load(root)
    before = list(read_rows(context.result("baseline").path("completions.jsonl")))
    base = context.result("prepare").values["policy_uri"]
    assert kl_to_base(before, base=base) == pytest.approx(0.0, abs=1e-3)  # engine and trainer see the same model
    evaluation = read_json(context.result("evaluate").path("evaluation.json"))
    assert evaluation["evaluator"] == "gold"
    assert evaluation["kl"] == pytest.approx(0.0, abs=3.0)
    trained = context.result("train").values
    assert trained["version"] > 0
    assert Path(trained["uri"], "model.safetensors").is_file()

    with LedgerClient(ClientSettings(target=str(services.ledger))) as ledger:
        verified = ledger.verify()
        events = [event.event_type for event in ledger.list_events()]
    assert (verified.broken_at, verified.num_labels) == ("", len(list(read_rows(root / "labels.jsonl"))))
    assert events.count("gate_decided") == 2
    assert events.count("policy_published") == events.count("policy_evaluated") == 1
    assert events.count("stage_finished") == len(context_stages(root)) + 1  # the gate decided twice


def context_stages(root: Path) -> list[Path]:
    """Folders of finished stages."""
    return list((root / "stages").glob("*/done.json"))


@pytest.mark.slow
def test_the_playground_s_judge_is_held_against_gold(stack: tuple[Path, ServiceAddresses], tmp_path: Path) -> None:
    _, services = stack
    num_pairs = gold_pairs(tmp_path / "pairs.jsonl")
    values = {"pipeline": "judge-benchmark", "judge": "playground", "pairs": {"path": tmp_path / "pairs.jsonl"}}
    create_run(make_settings({**values, "num_shards": 2, "out": tmp_path / "run"}), services)
    outcome = run_local(tmp_path / "run")
    assert outcome.state == "finished", outcome.message
    found = read_json(tmp_path / "run" / "report.json")["benchmark"]
    assert found["num_pairs"] == num_pairs
    accuracy = found["statistics"][""]["human_agreement"]
    assert 0.75 < accuracy["low"] < accuracy["value"] < accuracy["high"] <= 1.0
    assert {f"category={name}" for name in world.CATEGORIES} < set(found["statistics"])
    assert outcome.message.startswith(f"accuracy of the judge: {accuracy['value']:.3f}")
    assert "| category=harmful | 24 |" in (tmp_path / "run" / "summary.md").read_text()
    assert "The judge against given labels" in (tmp_path / "run" / "report.html").read_text()

    bound = {"min_benchmark_accuracy": 0.995}
    assert accuracy["value"] < bound["min_benchmark_accuracy"]
    create_run(make_settings({**values, "num_shards": 2, "gate": bound, "out": tmp_path / "run"}), services)
    with pytest.raises(PipelineFailedError, match=r"gate\.min_benchmark_accuracy asks for 99\.5%") as failed:
        run_local(tmp_path / "run")
    assert (failed.value.outcome.stage, failed.value.outcome.exit_code) == ("judge_gate", 1)
    assert "gate.min_benchmark_accuracy asks for 99.5%" in (tmp_path / "run" / "summary.md").read_text()
    assert states(tmp_path / "run")["judge"] == "skipped"
