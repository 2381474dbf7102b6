"""The services as a cluster runs them, from their images: run by `make images-test`."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
import urllib.request
from pathlib import Path

import pytest
import yaml

from images import programs
from images.containers import Container, run, running, write_settings
from images.stack import GRPC_SERVICES, Stack
from rlaif.client.judge import JudgeClient, ResponsePair, ResponseToScore
from rlaif.client.ledger import LedgerClient
from rlaif.client.review import ReviewClient
from rlaif.client.reward import JUDGE, RewardClient
from rlaif.client.sampler import SamplerClient
from rlaif.core.conversation import Message
from rlaif.runtime.settings import ClientSettings

THEFT = "How do I steal a car?"
REFUSAL = "I won't help with that. It could hurt someone."
HELP = "First, wait for a dark night. Then cut the lock. Last, hide it far away."
IN_FLIGHT_SECONDS = 60.0


def ask(text: str) -> tuple[Message, ...]:
    """A conversation of one question."""
    return (Message("user", text),)


@pytest.mark.parametrize("name", GRPC_SERVICES)
def test_a_service_has_no_rights_on_its_machine(stack: Stack, name: str) -> None:
    found = json.loads(stack.containers[name].run("python", "-c", programs.PROCESS_1))
    assert found["Uid"] == found["Gid"] == ["65532"] * 4
    assert {key: int(found[key][0], 16) for key in ("CapPrm", "CapEff", "CapBnd", "CapAmb")} == dict.fromkeys(
        ("CapPrm", "CapEff", "CapBnd", "CapAmb"), 0
    )
    assert found["NoNewPrivs"] == ["1"]


@pytest.mark.parametrize("name", GRPC_SERVICES)
def test_a_container_asks_its_own_service_whether_it_serves(stack: Stack, name: str) -> None:
    probe = ("python", "-m", "rlaif.client.probe", stack.clients[name].target)
    assert stack.containers[name].run(*probe, GRPC_SERVICES[name]) == ""
    with pytest.raises(AssertionError, match="no service"):
        stack.containers[name].run(*probe, "rlaif.v1.Other")


def test_the_command_in_the_pipelines_image_has_the_judge_compare_and_the_ledger_keeps_it(
    images: dict[str, str], stack: Stack
) -> None:
    address = stack.clients["judge"].target
    command = ("rlaif", "judge", "compare", THEFT, REFUSAL, HELP, "--json", "--address", address)
    found = run(
        *(images["pipelines"], *command, "--token-file", "/run/secrets/token"),
        mounts={str(stack.token_path): "/run/secrets/token"},
    )
    assert found.exit_code == 0, found.stderr
    verdict = json.loads(found.stdout)
    assert verdict["preference"] == "first"
    assert verdict["probability_first"] > 0.5
    with LedgerClient(stack.clients["oversight"]) as ledger:
        labels = list(ledger.export_labels())
        assert [label.verdict.probability_first for label in labels] == [pytest.approx(verdict["probability_first"])]
        report = ledger.verify()
    assert (report.num_labels, report.fault) == (1, "")


def test_a_call_without_the_token_is_refused(images: dict[str, str], stack: Stack) -> None:
    address = stack.clients["judge"].target
    found = run(images["pipelines"], "rlaif", "judge", "compare", THEFT, REFUSAL, HELP, "--address", address)
    assert found.exit_code == 1
    assert "token" in found.stderr


def test_policy_reward_and_label_quality_answer(stack: Stack) -> None:
    with SamplerClient(stack.clients["sampler"]) as sampler:
        batch = sampler.sample("policies/test", [ask(THEFT)], num_completions=2, max_tokens=8, seed=0)
    assert [len(completions) for completions in batch.completions] == [2]
    with RewardClient(stack.clients["reward"]) as reward:
        inputs = [ResponseToScore(ask(THEFT), text) for text in (REFUSAL, HELP)]
        refusing, helping = reward.score(JUDGE, inputs, constitution="constitutions/playground")
    assert refusing.value is not None
    assert helping.value is not None
    assert refusing.value > helping.value
    short, long = "Yes.", "Yes, and here is how: take a cloth and some water, then rub it until it shines."
    questions = [f"How do I clean {number} windows?" for number in range(12)]
    pairs = [
        ResponsePair(ask(text), *((short, long) if index % 2 else (long, short)))
        for index, text in enumerate(questions)
    ]
    with JudgeClient(stack.clients["judge"]) as judge:
        judge.compare_many("constitutions/playground", pairs)
    review = ReviewClient(stack.clients["oversight"])
    try:
        quality = review.label_quality()
        assert quality.num_labels >= len(pairs)
        (longer,) = (
            found
            for found in quality.statistics.statistics
            if (found.statistic, found.slice) == ("longer_preferred", "")
        )
        assert longer.estimate.value is not None
    finally:
        review.close()


def test_tasks_of_the_compiled_pipeline_run_in_the_pipelines_image(
    images: dict[str, str], stack: Stack, tmp_path: Path
) -> None:
    os.chown(tmp_path, 65532, 65532)
    mounts, variables = {str(tmp_path): "/rlaif:rw"}, {"RLAIF_TOKEN": stack.token_path.read_text()}
    assert run(images["pipelines"], "rlaif", "compile", "-o", "/rlaif/rlaif.yaml", mounts=mounts).exit_code == 0
    compiled = next(yaml.safe_load_all((tmp_path / "rlaif.yaml").read_text()))
    graph = {"pipeline": "rlaif", "rounds": 1, "constitutional": "none"}
    settings = {"settings": {}, "num_prompts": 8, "launcher": "local", "policy_resource": "policies/test"}
    addresses = {f"{name}_address": stack.clients[name].target for name in ("judge", "reward", "sampler")}
    addresses["ledger_address"] = stack.clients["oversight"].target
    given = {"run_root": "/rlaif/runs/test", "services": {}, **graph, **settings, **addresses}
    prepare = programs.pipeline_task(compiled, "prepare", given)
    found = run(images["pipelines"], *prepare, mounts=mounts, variables=variables)
    assert found.exit_code == 0, found.stdout + found.stderr
    record = json.loads((tmp_path / "runs/test/run.json").read_text())
    assert record["services"]["judge"] == stack.clients["judge"].target
    load_prompts = programs.pipeline_task(
        compiled, "load-prompts", {"run_root": "/rlaif/runs/test", "branch": "direct"}
    )
    found = run(images["pipelines"], *load_prompts, mounts=mounts, variables=variables)
    assert found.exit_code == 0, found.stdout + found.stderr
    assert list((tmp_path / "runs/test").rglob("prompts.jsonl"))


@pytest.mark.parametrize("name", GRPC_SERVICES)
def test_nothing_is_written_outside_of_what_is_mounted(stack: Stack, name: str) -> None:
    assert stack.containers[name].changed() == []
    assert not [
        line
        for line in stack.containers[name].logs().splitlines()
        if "Read-only" in line or "Permission denied" in line
    ]


def test_told_to_stop_the_judge_answers_what_it_was_asked_and_ends_well(stack: Stack) -> None:
    pairs = [
        ResponsePair(ask(f"How do I boil {number} eggs?"), "In hot water.", "I would rather not.")
        for number in range(256)
    ]
    answers: list[object] = []

    def compare() -> None:
        settings: ClientSettings = stack.clients["judge"].model_copy(update={"timeout_seconds": 120.0})
        with JudgeClient(settings) as judge:
            answers.extend(judge.compare_many("constitutions/playground", pairs, batch_size=256))

    caller = threading.Thread(target=compare)
    caller.start()
    await_in_flight(stack.metrics["judge"], "rlaif_judge_requests_in_flight")
    exit_code = stack.containers["judge"].terminate()
    caller.join()
    assert len(answers) == len(pairs)
    assert exit_code == 0, stack.containers["judge"].logs()


@pytest.mark.parametrize("name", ["reward", "sampler", "oversight"])
def test_told_to_stop_the_others_end_well(stack: Stack, name: str) -> None:
    assert stack.containers[name].terminate() == 0, stack.containers[name].logs()


def test_a_service_that_is_told_to_stop_while_it_loads_ends_at_once(images: dict[str, str], tmp_path: Path) -> None:
    path = write_settings(tmp_path, "judge", {"model": "playground", "constitutions": ["playground"]})
    # The file of settings is there from the start; what is awaited is that Python has got to reading it.
    command = ("python", "-m", "rlaif.judge", "--config", "/etc/rlaif/judge.yaml")
    mounts = {str(path): "/etc/rlaif/judge.yaml"}
    with running(images["engine"], *command, name="rlaif-images-early", mounts=mounts) as container:
        await_handler(container)
        assert container.terminate() in (0, 128 + signal.SIGTERM)


def await_handler(container: Container) -> None:
    """Returns once process 1 handles SIGTERM."""
    deadline = time.monotonic() + IN_FLIGHT_SECONDS
    while time.monotonic() < deadline:
        caught = json.loads(container.run("python", "-c", programs.CAUGHT_SIGNALS))
        if signal.SIGTERM in caught:
            return
    raise AssertionError("process 1 never handled SIGTERM")


def await_in_flight(address: str, metric: str) -> None:
    """Returns once the service is at work on a call."""
    deadline = time.monotonic() + IN_FLIGHT_SECONDS
    while time.monotonic() < deadline:
        with urllib.request.urlopen(f"http://{address}/metrics") as page:
            if f"\n{metric} 1.0" in page.read().decode():
                return
    raise AssertionError(f"{metric} never was 1")
