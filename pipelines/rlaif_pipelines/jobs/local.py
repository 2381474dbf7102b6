"""A training job as a child process of this one; it never outlives it, however this one ends."""

from __future__ import annotations

import contextlib
import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from rlaif_pipelines.jobs.spec import JobReason, JobResult, JobSpec
from rlaif_pipelines.jobs.words import last_telling_line
from rlaif_pipelines.training.termination import TERMINATION_VARIABLE, read_termination

__all__ = ["JobResult", "JobSpec", "run_job"]

_TRAINING_MODULE = "rlaif_pipelines.training"
_DRAIN_SECONDS = 5.0
_LINE_SECONDS = 0.2
_TAIL_BYTES = 64 * 1024
_RENDEZVOUS = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


def run_job(
    spec: JobSpec, *, timeout_seconds: float = math.inf, on_line: Callable[[str], None] | None = None
) -> JobResult:
    """Runs the job to its end and says how it ended; `on_line` gets each line of its output as it comes.

    The job has a process group of its own. The group is killed when this call ends, also by an exception or Ctrl-C.
    """
    spec.log_path.parent.mkdir(parents=True, exist_ok=True)
    termination = spec.log_path.with_suffix(".end.json")
    termination.unlink(missing_ok=True)
    began = time.perf_counter()
    with spec.log_path.open("ab") as log:
        start = log.tell()
        process = subprocess.Popen(  # noqa: S603 - our own interpreter and modules
            _command(spec),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            env=_environment(spec, termination=termination),
            process_group=0,
        )
    try:
        ended = _wait(process, log_path=spec.log_path, start=start, timeout_seconds=timeout_seconds, on_line=on_line)
    finally:
        _end_group(process)
    if not ended:
        told = f"did not end within {timeout_seconds:g} s and was stopped; raise jobs.timeout_seconds"
        return JobResult(1, told, time.perf_counter() - began, spec.log_path, reason="TIMEOUT")
    exit_code, last_words = _ending(process.returncode, spec=spec, start=start, termination=termination)
    termination.unlink(missing_ok=True)
    reason: JobReason = "DONE" if exit_code == 0 else "KILLED" if exit_code < 0 else "ENDED"
    return JobResult(exit_code, last_words, time.perf_counter() - began, spec.log_path, reason=reason)


def _command(spec: JobSpec) -> list[str]:
    tether = [sys.executable, "-m", "rlaif_pipelines.jobs.tether", str(os.getpid())]
    training = [_TRAINING_MODULE, spec.verb, "--config", str(spec.config_path)]
    if spec.num_processes == 1:
        return tether + training
    torchrun = ["torch.distributed.run", "--standalone", f"--nproc_per_node={spec.num_processes}"]
    return [*tether, *torchrun, "-m", "rlaif_pipelines.jobs.tether", "0", *training]


def _environment(spec: JobSpec, *, termination: Path) -> dict[str, str]:
    inherited = {name: value for name, value in os.environ.items() if name not in _RENDEZVOUS}
    return {
        **inherited,
        "PYTHONUNBUFFERED": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "HF_HUB_OFFLINE": "1",  # training reads folders only
        TERMINATION_VARIABLE: str(termination),
        **spec.environment,
    }


def _wait(
    process: subprocess.Popen[bytes],
    *,
    log_path: Path,
    start: int,
    timeout_seconds: float,
    on_line: Callable[[str], None] | None,
) -> bool:
    """Whether it ended in time."""
    deadline = time.monotonic() + timeout_seconds
    lines = _follow(log_path, start=start)
    while True:
        ended = process.poll() is not None
        if on_line is not None:
            for line in next(lines):
                on_line(line)
        if ended or time.monotonic() > deadline:
            return ended
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(timeout=_LINE_SECONDS)


def _follow(path: Path, *, start: int) -> Iterator[list[str]]:
    """At each turn the whole lines written since the last."""
    with path.open("rb") as log:
        log.seek(start)
        rest = b""
        while True:
            *whole, rest = (rest + log.read()).split(b"\n")
            yield [line.decode(errors="replace") for line in whole]


def _end_group(process: subprocess.Popen[bytes]) -> None:
    if process.poll() is None:
        _signal_group(process.pid, signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(timeout=_DRAIN_SECONDS)
    _signal_group(process.pid, signal.SIGKILL)
    process.wait()


def _signal_group(group: int, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(group, number)


def _ending(exit_code: int, *, spec: JobSpec, start: int, termination: Path) -> tuple[int, str]:
    if exit_code == 0:
        return 0, ""
    told = read_termination(termination)
    if told is not None:
        return told
    words = _last_line(spec.log_path, start=start)
    if exit_code < 0:
        killed = f"was killed by {signal.Signals(-exit_code).name}"
        return exit_code, f"{killed}, after {words!r}" if words else killed
    return exit_code, words or f"ended with exit code {exit_code} and wrote nothing"


def _last_line(path: Path, *, start: int) -> str:
    with path.open("rb") as log:
        log.seek(max(start, path.stat().st_size - _TAIL_BYTES))
        return last_telling_line(log.read().decode(errors="replace"))
