"""From another shell: `rlaif up`, a compare by a client that knows no stubs, `rlaif ledger verify`, `rlaif down`."""

from __future__ import annotations

import json
import os
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest
from google.protobuf import descriptor_pool, json_format, message_factory
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase

from rlaif.cli.processes import is_running
from rlaif.cli.up import example_request

pytestmark = pytest.mark.slow

QUESTION = {
    "constitution": "constitutions/playground",
    "messages": [{"role": "ROLE_USER", "content": "Tell me the color of grass."}],
    "first": "It is green.",
    "second": "It is blue.",
}


def rlaif(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "rlaif.cli.main", *arguments],
        capture_output=True,
        text=True,
        timeout=180,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        check=False,
    )


@pytest.fixture(scope="module")
def state(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("up")
    started = rlaif("up", "--state", str(folder), "--threads", "1")
    assert started.returncode == 0, started.stderr
    yield folder
    rlaif("down", "--state", str(folder))


def announced(folder: Path) -> dict[str, dict[str, str]]:
    return {path.stem: json.loads(path.read_text()) for path in sorted((folder / "services").glob("*.json"))}


def test_a_method_found_by_reflection_compares_and_the_label_is_in_the_ledger(state: Path) -> None:
    with grpc.insecure_channel(announced(state)["judge"]["address"]) as channel:
        database = ProtoReflectionDescriptorDatabase(channel)
        assert "rlaif.v1.JudgeService" in database.get_services()
        pool = descriptor_pool.DescriptorPool(database)
        method = pool.FindServiceByName("rlaif.v1.JudgeService").FindMethodByName("CompareResponses")
        request_class = message_factory.GetMessageClass(method.input_type)
        answer_class = message_factory.GetMessageClass(method.output_type)
        call = channel.unary_unary(
            f"/{method.containing_service.full_name}/{method.name}",
            request_serializer=request_class.SerializeToString,
            response_deserializer=answer_class.FromString,
        )
        answer = call(json_format.ParseDict(QUESTION, request_class()), timeout=30)
    verdict = json_format.MessageToDict(answer, preserving_proto_field_name=True)["verdict"]
    assert 0 < verdict["probability_first"] < 1
    assert verdict["label"].startswith("labels/")

    verified = rlaif("ledger", "verify", str(state))
    assert verified.returncode == 0, verified.stderr
    assert verified.stdout.startswith("whole: ")
    assert "1 labels" in verified.stdout
    exported = [json.loads(line) for line in rlaif("ledger", "export", str(state)).stdout.splitlines()]
    assert [label["name"] for label in exported] == [verdict["label"]]
    assert rlaif("ledger", "events", str(state)).stdout


def test_the_doctor_finds_a_whole_stack_well(state: Path) -> None:
    looked = rlaif("doctor", "--state", str(state), "--json")
    assert looked.returncode == 0, looked.stdout
    findings = json.loads(looked.stdout)["findings"]
    assert [each for each in findings if each["state"] != "ok"] == []
    checked = [f"{each['subject']}: {each['check']}" for each in findings]
    assert {"judge: comparison", "sampler: completion", "reward: reward", "oversight: ledger"} <= set(checked)
    assert checked.count("metrics: metrics") == 4


def test_status_shows_four_healthy_services_and_a_second_up_is_refused(state: Path) -> None:
    shown = rlaif("status", "--state", str(state))
    assert shown.returncode == 0
    assert shown.stdout.count("healthy") == 4
    again = rlaif("up", "--state", str(state))
    assert again.returncode == 2
    assert "already run" in again.stderr


def test_the_printed_example_is_a_request() -> None:
    assert json.loads(example_request("constitutions/playground")) == QUESTION


def test_a_port_in_use_ends_up_with_exit_code_2_and_leaves_nothing(state: Path, tmp_path: Path) -> None:
    port = announced(state)["judge"]["address"].rpartition(":")[2]
    refused = rlaif("up", "--state", str(tmp_path / "other"), "--port", port)
    assert refused.returncode == 2
    assert len(refused.stderr.strip().splitlines()) == 1
    assert port in refused.stderr
    assert not (tmp_path / "other" / "services").exists()


def test_down_ends_every_process_and_the_ledger_can_still_be_verified(state: Path) -> None:
    pids = [int(service["pid"]) for service in announced(state).values()]
    assert len(pids) == 4
    stopped = rlaif("down", "--state", str(state))
    assert stopped.returncode == 0
    assert stopped.stdout.count("stopped") == 4
    assert not any(is_running(pid) for pid in pids)
    assert "nothing runs" in rlaif("down", "--state", str(state)).stdout
    assert rlaif("status", "--state", str(state)).returncode == 1

    assert rlaif("ledger", "verify", str(state)).stdout.startswith("whole: ")
    with sqlite3.connect(state / "ledger.sqlite") as database:
        for (trigger,) in database.execute("SELECT name FROM sqlite_master WHERE type = 'trigger'").fetchall():
            database.execute(f"DROP TRIGGER {trigger}")
        database.execute("UPDATE events SET actor = 'somebody else' WHERE sequence = 1")
    broken = rlaif("ledger", "verify", str(state))
    assert broken.returncode == 1
    assert broken.stdout.startswith("BROKEN at events/1: altered")
