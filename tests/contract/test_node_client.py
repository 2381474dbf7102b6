"""A client in another language, made from proto/ alone, on a real judge: it compares, ranks, reads errors' details."""

from __future__ import annotations

import asyncio
import fcntl
import json
import os
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import google.rpc
import pytest

from judge_fakes import CONSTITUTION, MemoryLedger, ScriptedEngine, serve_judge

REPOSITORY = Path(__file__).parents[2]
SOURCE = REPOSITORY / "tests" / "contract" / "node"
PLACE = REPOSITORY / "build" / "node"
GOOGLE = Path(next(iter(google.rpc.__path__))).parents[1]
NETWORK_ERRORS = ("ENOTFOUND", "EAI_AGAIN", "ECONNREFUSED", "ECONNRESET", "ETIMEDOUT", "ENETUNREACH")


@pytest.fixture(scope="session")
def node_modules() -> Path:
    """The packages of the lock file, installed once into build/node."""
    if not (shutil.which("node") and shutil.which("npm")):
        pytest.skip("node and npm are not installed: the client in another language was not tried")
    PLACE.mkdir(parents=True, exist_ok=True)
    locked = (SOURCE / "package-lock.json").read_bytes()
    stamp, modules = PLACE / "installed-package-lock.json", PLACE / "node_modules"
    with (PLACE / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (modules.is_dir() and stamp.is_file() and stamp.read_bytes() == locked):
            for name in ("package.json", "package-lock.json"):
                shutil.copy(SOURCE / name, PLACE / name)
            command = ["npm", "ci", "--ignore-scripts", "--no-audit", "--no-fund", "--omit-lockfile-registry-resolved"]
            done = subprocess.run(command, cwd=PLACE, capture_output=True, text=True, timeout=300, check=False)
            if done.returncode and any(code in done.stderr for code in NETWORK_ERRORS):
                pytest.skip("npm cannot reach a registry: the client in another language was not tried")
            assert done.returncode == 0, done.stderr
            stamp.write_bytes(locked)
    return modules


def prefers_mix(context: str, question: str) -> Sequence[float]:
    if "kind" in question:
        return (0.1, 0.8) if "Reply 1: Mix" in context else (0.8, 0.1)
    return (0.8, 0.1) if "Reply 1: Mix" in context else (0.1, 0.8)


async def node(address: str, modules: Path) -> Any:
    process = await asyncio.create_subprocess_exec(
        "node",
        str(SOURCE / "client.js"),
        address,
        str(REPOSITORY / "proto"),
        str(GOOGLE),
        env={**os.environ, "NODE_PATH": str(modules)},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    out, err = await asyncio.wait_for(process.communicate(), timeout=60)
    assert process.returncode == 0, err.decode()
    return json.loads(out)


async def test_node_compares_ranks_and_reads_the_details_of_errors(node_modules: Path):
    async with serve_judge(ScriptedEngine(prefers_mix), MemoryLedger()) as settings:
        said = await node(settings.target, node_modules)
    compared = said["compared"]
    assert compared["preference"] == "PREFERENCE_FIRST"
    assert compared["probability_first"] == pytest.approx(8 / 9)
    assert [vote["principle_id"] for vote in compared["principle_votes"]] == ["helpful", "harmless"]
    assert compared["provenance"]["constitution"]["sha256"] == CONSTITUTION.sha256
    assert said["inline"]["preference"] == "PREFERENCE_SECOND"
    assert said["ranked"]["ranking"][0]["index"] == 1
    assert [each["name"] for each in said["constitutions"]] == [CONSTITUTION.name]

    same = said["same_twice"]
    assert same["code"] == "INVALID_ARGUMENT"
    by_type = {detail["type"]: detail for detail in same["details"]}
    assert by_type["google.rpc.ErrorInfo"]["reason"] == "IDENTICAL_RESPONSES"
    assert by_type["google.rpc.ErrorInfo"]["domain"] == "rlaif"
    (violation,) = by_type["google.rpc.BadRequest"]["field_violations"]
    assert violation["field"] == "second"
    assert violation["description"] == same["message"]

    missing = said["no_such_constitution"]
    assert missing["code"] == "NOT_FOUND"
    resource = next(detail for detail in missing["details"] if detail["type"] == "google.rpc.ResourceInfo")
    assert (resource["resource_type"], resource["resource_name"]) == ("rlaif.v1.Constitution", "constitutions/none")


def test_the_lock_file_names_no_registry():
    locked = json.loads((SOURCE / "package-lock.json").read_text())
    packages = {name: package for name, package in locked["packages"].items() if name}
    assert packages
    assert not any("resolved" in package for package in packages.values())
    assert all(package["integrity"].startswith("sha512-") for package in packages.values())
