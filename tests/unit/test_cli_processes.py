"""Real processes: whatever way a run ends, nothing that it started is left."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from rlaif.cli import guard
from rlaif.cli.exits import ChildDiedError, DiskFullError, exit_code_of
from rlaif.cli.processes import ProcessFamily, child_environment, last_words

SLEEPER = """
import pathlib, signal, subprocess, sys, time
folder = pathlib.Path(sys.argv[1])
if "deaf" in sys.argv:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
grandchild = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], start_new_session=True)
(folder / "pids.part").write_text(f"{__import__('os').getpid()} {grandchild.pid}")
(folder / "pids.part").rename(folder / "pids")
time.sleep(600)
"""
"""A service with a grandchild that has left its session and process group, as a training job may."""

PARENT = """
import sys, time
from pathlib import Path
from rlaif.cli.processes import ProcessFamily
folder = Path(sys.argv[1])
import os, signal
def interrupted(number, frame):
    raise KeyboardInterrupt
signal.signal(signal.SIGTERM, interrupted)
with ProcessFamily(owner=sys.argv[2], drain_seconds=1) as family:
    family.start("sleeper", "sleeper", str(folder), log_path=folder / "sleeper.log", environment=os.environ)
    (folder / "guard").write_text(str(family._guard.pid))
    while not (folder / "pids").exists():
        time.sleep(0.01)
    if "fail" in sys.argv:
        raise SystemExit(1)
    if "wait" in sys.argv:
        time.sleep(600)
"""


@pytest.fixture
def environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    (tmp_path / "sleeper.py").write_text(SLEEPER)
    paths = os.pathsep.join([str(tmp_path), *filter(None, [os.environ.get("PYTHONPATH")])])
    monkeypatch.setenv("PYTHONPATH", paths)
    return dict(os.environ)


@pytest.fixture
def owner(tmp_path: Path) -> Iterator[str]:
    name = f"test:{tmp_path}"
    yield name
    guard.kill_owned(name)


def eventually(condition: Callable[[], bool], *, timeout_seconds: float = 20.0) -> bool:
    deadline = time.monotonic() + timeout_seconds
    while time.monotonic() < deadline:
        if condition():
            return True
        time.sleep(0.02)
    return False


def pids_of(folder: Path) -> list[int]:
    assert eventually((folder / "pids").exists), "the child never started"
    return [int(pid) for pid in (folder / "pids").read_text().split()]


def gone(pids: list[int]) -> bool:
    return not any(psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE for pid in pids)


def start_parent(folder: Path, owner: str, *words: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-c", PARENT, str(folder), owner, *words], start_new_session=True)


@pytest.mark.parametrize("ending", ["succeed", "fail"])
def test_nothing_is_left_after_success_or_failure(ending: str, tmp_path: Path, owner: str, environment: object) -> None:
    parent = start_parent(tmp_path, owner, ending)
    assert parent.wait(timeout=30) == (1 if ending == "fail" else 0)
    assert gone(pids_of(tmp_path))
    assert guard.owned_pids(owner) == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_nothing_is_left_after_an_interrupt(
    number: signal.Signals, tmp_path: Path, owner: str, environment: object
) -> None:
    parent = start_parent(tmp_path, owner, "wait")
    pids = pids_of(tmp_path)
    parent.send_signal(number)
    parent.wait(timeout=30)
    assert gone(pids)
    assert guard.owned_pids(owner) == []


def test_nothing_is_left_after_kill_9_of_the_parent(tmp_path: Path, owner: str, environment: object) -> None:
    parent = start_parent(tmp_path, owner, "wait")
    pids = [*pids_of(tmp_path), int((tmp_path / "guard").read_text())]
    parent.kill()
    parent.wait(timeout=30)
    assert eventually(lambda: gone(pids)), "the guard left something running"
    assert guard.owned_pids(owner) == []


def test_what_a_killed_run_and_its_killed_guard_left_ends_when_the_next_run_begins(
    tmp_path: Path, owner: str, environment: dict[str, str]
) -> None:
    parent = start_parent(tmp_path, owner, "wait")
    child, grandchild = pids_of(tmp_path)
    os.kill(int((tmp_path / "guard").read_text()), signal.SIGKILL)
    parent.kill()
    parent.wait(timeout=30)
    assert eventually(lambda: gone([child])), "the kernel ends direct children"
    assert not gone([grandchild])
    with ProcessFamily(owner=owner):
        assert gone([grandchild])


def test_a_child_deaf_to_sigterm_is_killed_after_the_drain(
    tmp_path: Path, owner: str, environment: dict[str, str]
) -> None:
    with ProcessFamily(owner=owner, drain_seconds=0.2) as family:
        family.start("sleeper", "sleeper", str(tmp_path), "deaf", log_path=tmp_path / "log", environment=environment)
        pids = pids_of(tmp_path)
    assert gone(pids)


def test_a_child_that_dies_is_named_with_its_last_words_and_exit_code(
    tmp_path: Path, owner: str, environment: dict[str, str]
) -> None:
    (tmp_path / "doomed.py").write_text("print('loading')\nraise SystemExit('judge: port 5 is in use')")
    (tmp_path / "wrong.py").write_text('import sys; print(\'{"message": "bad key"}\'); sys.exit(2)')
    with ProcessFamily(owner=owner) as family:
        for name, module, code in (("judge", "doomed", 1), ("reward", "wrong", 2)):
            child = family.start(name, module, log_path=tmp_path / f"{name}.log", environment=environment)
            child.process.wait(timeout=20)
            with pytest.raises(ChildDiedError) as caught:
                child.raise_if_dead()
            assert exit_code_of(caught.value) == code
            assert caught.value.message.startswith(f"{name} ended with exit code {code}: ")
            assert str(tmp_path / f"{name}.log") in caught.value.message
    assert "judge: port 5 is in use" in last_words(tmp_path / "judge.log")
    assert last_words(tmp_path / "reward.log") == "bad key"
    (tmp_path / "brace.log").write_text("ValueError: no\n}\n\n")
    assert last_words(tmp_path / "brace.log") == "ValueError: no"


def test_a_child_that_found_the_disk_full_says_so_as_wrong_input(
    tmp_path: Path, owner: str, environment: dict[str, str]
) -> None:
    (tmp_path / "full.py").write_text("import errno, os; raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), '/x')")
    with ProcessFamily(owner=owner) as family:
        child = family.start("judge", "full", log_path=tmp_path / "judge.log", environment=environment)
        child.process.wait(timeout=20)
        with pytest.raises(DiskFullError, match="the disk is full: judge said") as caught:
            child.raise_if_dead()
    assert exit_code_of(caught.value) == 2


def test_children_sleep_when_idle_and_stay_offline_with_local_models() -> None:
    environment = child_environment({"HOME": "/h"}, num_threads=3, offline=True)
    assert environment["OMP_WAIT_POLICY"] == "PASSIVE"
    assert int(environment["GOMP_SPINCOUNT"]) <= 10_000
    assert environment["OMP_NUM_THREADS"] == "3"
    assert environment["TOKENIZERS_PARALLELISM"] == "false"
    assert environment["HF_HUB_OFFLINE"] == "1"
    assert "HF_HUB_OFFLINE" not in child_environment({}, num_threads=1, offline=False)
