"""A pod's log, line by line into the run's own, through broken connections, none twice."""

from __future__ import annotations

import os
import queue
import re
import threading
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from rlaif_pipelines.jobs.cluster import Cluster, ClusterError
from rlaif_pipelines.jobs.pods import CONTAINER

_PAUSE_SECONDS: Final = 1.0
_STAMP: Final = re.compile(rb"(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d)(?:\.(\d{1,9}))?(Z|[+-]\d\d:\d\d) ")


class RunLog:
    """The file that holds what a job printed; several threads append whole lines."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._path = path
        self.lines: queue.SimpleQueue[str] = queue.SimpleQueue()

    def write(self, line: bytes) -> None:
        """Appends the line, and keeps it for who takes `lines`."""
        self.append(line)
        self.lines.put(line.decode(errors="replace"))

    def note(self, sentence: str) -> None:
        """Appends a remark of ours, told apart from what the job printed."""
        self.append(f"-- {sentence}".encode())

    def append(self, line: bytes) -> None:
        """Appends the line, for readers of the file alone."""
        descriptor = os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        try:
            os.write(descriptor, line + b"\n")
        finally:
            os.close(descriptor)


class LogFollower(threading.Thread):
    """Copies a pod's log as it is written, until `finish`."""

    def __init__(self, cluster: Cluster, pod: str, log: RunLog) -> None:
        super().__init__(name=f"log of {pod}", daemon=True)
        self._cluster = cluster
        self._pod = pod
        self._log = log
        self._ended = threading.Event()
        self._closed = threading.Event()
        self._last = 0

    def run(self) -> None:
        """Reads, and after a connection that broke or ran dry reads on from the last line."""
        while not self._closed.is_set():
            last_time = self._ended.is_set()
            try:
                self._read(follow=not last_time)
                if last_time:
                    return
            except ClusterError as error:
                if error.status == 404:  # it is gone, and its log with it
                    return
            (self._closed if last_time else self._ended).wait(_PAUSE_SECONDS)

    def finish(self, *, seconds: float) -> None:
        """Takes what the pod, which has ended, wrote last; gives up on a node that does not answer for that long."""
        self._ended.set()
        self.join(seconds)
        self._closed.set()

    def _read(self, *, follow: bool) -> None:
        resumed, since = self._last, _second(self._last)
        with self._cluster.log(self._pod, container=CONTAINER, since=since, follow=follow) as lines:
            for line in lines:
                if self._closed.is_set():
                    return
                stamp = _STAMP.match(line)
                if stamp is None:  # a remark of the kubelet's own
                    continue
                moment = _nanoseconds(stamp)
                if moment > resumed:
                    self._last = max(self._last, moment)
                    self._log.write(line[stamp.end() :])


def copy_tail(cluster: Cluster, pod: str, log: RunLog, *, num_lines: int) -> None:
    """Appends the end of a pod's log, as far as it can still be read."""
    try:
        with cluster.log(pod, container=CONTAINER, num_lines=num_lines) as lines:
            tail = [line for line in lines if _STAMP.match(line)]
    except ClusterError as error:
        log.note(f"the log of pod {pod} cannot be read: {error.message}")
        return
    log.note(f"the end of pod {pod}'s log:")
    for line in tail:
        log.append(_STAMP.sub(b"", line, count=1))


def _nanoseconds(stamp: re.Match[bytes]) -> int:
    moment, fraction, zone = (part.decode() if part else "" for part in stamp.groups())
    seconds = int(datetime.fromisoformat(moment + zone).timestamp())
    return seconds * 1_000_000_000 + int(fraction.ljust(9, "0"))


def _second(nanoseconds: int) -> str | None:
    """The second of that moment, as the API takes it."""
    if not nanoseconds:
        return None
    return datetime.fromtimestamp(nanoseconds // 1_000_000_000, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
