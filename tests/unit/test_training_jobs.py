"""Jobs as child processes: what they report, and that nothing of them is left."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from rlaif_pipelines.jobs import local
from rlaif_pipelines.jobs.local import JobSpec, run_job
from rlaif_pipelines.training.termination import read_termination, tell_termination

SOURCES = os.pathsep.join(path for path in sys.path if path)


@pytest.fixture
def job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., JobSpec]:
    """Makes a job that runs a script in place of the training."""
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), SOURCES]))
    # Python tells a script of the same second and length from the one before by nothing.
    monkeypatch.setenv("PYTHONDONTWRITEBYTECODE", "1")

    def make(script: str) -> JobSpec:
        (tmp_path / "stand_in.py").write_text(script)
        monkeypatch.setattr(local, "_TRAINING_MODULE", "stand_in")
        return JobSpec(verb="reward", config_path=tmp_path / "config.json", log_path=tmp_path / "logs" / "job.log")

    return make


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().split(")")[1].split()[0] != "Z"
    except OSError:
        return False


def wait_until(true: Callable[[], bool], *, seconds: float = 20.0) -> None:
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_a_done_job_says_nothing(job: Callable[..., JobSpec]) -> None:
    result = run_job(job("import sys; print('working', sys.argv[1:])"))
    assert (result.exit_code, result.last_words, result.done) == (0, "", True)
    assert "working ['reward', '--config'" in result.log_path.read_text()


def test_a_failed_job_is_named_by_its_last_line(job: Callable[..., JobSpec]) -> None:
    result = run_job(job("print('step 1')\nraise ValueError('the labels are gone')"))
    assert (result.exit_code, result.last_words) == (1, "ValueError: the labels are gone")


def test_a_failure_of_an_earlier_attempt_is_not_told_again(job: Callable[..., JobSpec]) -> None:
    run_job(job("raise ValueError('old')"))
    result = run_job(job("import sys; sys.exit(4)"))
    assert (result.exit_code, result.last_words) == (4, "ended with exit code 4 and wrote nothing")


def test_a_killed_job_is_named_by_its_signal(job: Callable[..., JobSpec]) -> None:
    result = run_job(job("import os; print('step 7', flush=True); os.kill(os.getpid(), 9)"))
    assert (result.exit_code, result.last_words) == (-9, "was killed by SIGKILL, after 'step 7'")


def test_what_a_training_says_of_its_end_comes_first(job: Callable[..., JobSpec]) -> None:
    result = run_job(
        job(
            "import sys\n"
            "from rlaif_pipelines.training.termination import tell_termination\n"
            "tell_termination(3, 'KL is 7.1 nats')\nprint('rubbish')\nsys.exit(1)"
        )
    )
    assert (result.exit_code, result.last_words) == (3, "KL is 7.1 nats")


def test_lines_are_handed_on_as_they_come(job: Callable[..., JobSpec]) -> None:
    lines: list[str] = []
    run_job(job("print('one'); print('two')"), on_line=lines.append)
    assert lines == ["one", "two"]


def test_a_job_that_takes_too_long_is_stopped_and_says_which_setting(job: Callable[..., JobSpec]) -> None:
    result = run_job(job("import time; time.sleep(60)"), timeout_seconds=0.1)
    assert (result.exit_code, result.reason) == (1, "TIMEOUT")
    assert result.last_words == "did not end within 0.1 s and was stopped; raise jobs.timeout_seconds"


def test_the_last_word_is_written_into_the_empty_file_that_a_pod_has(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "termination-log"
    path.touch()
    monkeypatch.setenv("RLAIF_TERMINATION_LOG", str(path))
    tell_termination(3, "KL is 7.1 nats")
    tell_termination(1, "a peer went away")
    assert read_termination(path) == (3, "KL is 7.1 nats")


def test_a_long_last_word_stays_readable_in_the_bytes_that_kubernetes_keeps(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "termination-log"
    monkeypatch.setenv("RLAIF_TERMINATION_LOG", str(path))
    tell_termination(1, '"ü\n' * 2000)
    assert path.stat().st_size <= 4096
    told = read_termination(path)
    assert told is not None
    assert told[1].startswith('"ü')


def test_an_exception_here_ends_the_job_and_what_it_started(job: Callable[..., JobSpec], tmp_path: Path) -> None:
    spec = job(
        "import subprocess, sys, time\n"
        "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)'])\n"
        "print(child.pid, flush=True); time.sleep(60)"
    )

    def stop(line: str) -> None:
        (tmp_path / "pid").write_text(line)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_job(spec, on_line=stop)
    wait_until(lambda: not is_running(int((tmp_path / "pid").read_text())))


def test_a_job_dies_with_the_process_that_started_it(tmp_path: Path) -> None:
    (tmp_path / "stand_in.py").write_text(
        "import os, pathlib, time\npathlib.Path(os.environ['PID_FILE']).write_text(str(os.getpid()))\ntime.sleep(60)"
    )
    starter = (
        "from pathlib import Path\nfrom rlaif_pipelines.jobs import local\nlocal._TRAINING_MODULE = 'stand_in'\n"
        f"local.run_job(local.JobSpec('reward', Path('c.json'), Path({str(tmp_path / 'job.log')!r})))"
    )
    pid_file = tmp_path / "pid"
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(tmp_path), SOURCES]), "PID_FILE": str(pid_file)}
    parent = subprocess.Popen([sys.executable, "-c", starter], env=environment)
    wait_until(lambda: pid_file.exists() and pid_file.read_text() != "")
    pid = int(pid_file.read_text())
    assert is_running(pid)
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    wait_until(lambda: not is_running(pid))


def run_training(arguments: list[str], *, termination: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "rlaif_pipelines.training", *arguments],
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": SOURCES, "RLAIF_TERMINATION_LOG": str(termination)},
        check=False,
    )


def test_wrong_settings_are_told_in_a_sentence_before_torch_is_imported(tmp_path: Path) -> None:
    config = tmp_path / "reward.json"
    config.write_text(json.dumps({"policy": "p", "labels": "l", "out": "o", "num_epoch": 3}))
    ended = run_training(["reward", "--config", str(config)], termination=tmp_path / "end.json")
    assert ended.returncode == 2
    assert f"{config}: unknown key num_epoch; did you mean num_epochs?" in ended.stderr
    assert "torch" not in {line.split("|")[-1].strip() for line in ended.stderr.splitlines() if "|" in line}
    assert json.loads((tmp_path / "end.json").read_text())["exit_code"] == 2
