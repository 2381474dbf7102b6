"""What pods and their events say, in words: why one waits, why one ended."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Any, Final

from rlaif_pipelines.jobs.names import INDEX_ANNOTATION
from rlaif_pipelines.jobs.pods import CONTAINER
from rlaif_pipelines.jobs.spec import JobReason
from rlaif_pipelines.jobs.words import last_telling_line
from rlaif_pipelines.training.termination import parse_termination

Object = dict[str, Any]

_PULL: Final = frozenset({"ErrImagePull", "ImagePullBackOff", "InvalidImageName", "ErrImageNeverPull"})
_CONFIG: Final = frozenset(
    {"CreateContainerConfigError", "CreateContainerError", "RunContainerError", "CreatePodSandboxError"}
)
_DISRUPTIONS: Final = {
    "PreemptionByScheduler": "was preempted by a pod of higher priority",
    "DeletionByTaintManager": "was on a node that went out of touch or was emptied",
    "EvictionByEvictionAPI": "was evicted, as when a node is drained",
    "DeletionByPodGC": "was on a node that is gone",
    "TerminationByKubelet": "was ended by its node",
}
_PEER_LOST: Final = re.compile(
    r"gloo/transport|DistNetworkError|DistStoreError|nccl(Remote|System)Error|Watchdog caught collective operation"
)
"""What gloo, NCCL and torch's store say when a peer is gone."""
_PROCESS_KILLED: Final = re.compile(r"Signal 9 \(SIGKILL\)")
"""What torchrun says when the kernel ended a process but not the container."""
_SIGNALLED: Final = 128


@dataclass(frozen=True)
class Failure:
    """Why an attempt failed, as one sentence; `retry` where another attempt may well end better."""

    reason: JobReason
    sentence: str
    exit_code: int = 1
    retry: bool = False


@dataclass(frozen=True)
class PodState:
    """A pod as it was last seen; `gone` when it has been removed since."""

    pod: Object
    gone: bool = False

    @property
    def name(self) -> str:
        """Its name."""
        return str(self.pod["metadata"]["name"])

    @property
    def index(self) -> int:
        """Which node of the training it is; the first speaks for all."""
        return int(self.pod["metadata"].get("annotations", {}).get(INDEX_ANNOTATION, -1))

    @property
    def phase(self) -> str:
        """Pending, Running, Succeeded or Failed."""
        return str(self.pod.get("status", {}).get("phase", "Pending"))

    @property
    def started(self) -> bool:
        """Whether its training runs or has run."""
        return "running" in self._state() or "terminated" in self._state()

    @property
    def ended(self) -> bool:
        """Whether nothing of it runs any more."""
        return self.gone or self.phase in ("Succeeded", "Failed")

    @property
    def leaving(self) -> bool:
        """Whether somebody has asked for its end."""
        return self.gone or "deletionTimestamp" in self.pod["metadata"]

    @property
    def place(self) -> str:
        """Its name and its node's, for sentences."""
        node = self.pod.get("spec", {}).get("nodeName")
        return f"pod {self.name} (node {node})" if node else f"pod {self.name}"

    def terminated(self) -> Object | None:
        """How its training's container ended; None while it has not."""
        found: Object | None = self._state().get("terminated")
        return found

    def waiting(self) -> Object | None:
        """Why its container has not started, as the kubelet says it."""
        found: Object | None = self._state().get("waiting")
        return found

    def condition(self, kind: str) -> Object | None:
        """The pod's condition of that kind."""
        conditions: Sequence[Object] = self.pod.get("status", {}).get("conditions") or ()
        return next((condition for condition in conditions if condition["type"] == kind), None)

    def _state(self) -> Object:
        """waiting, running or terminated; nothing before a kubelet has seen the pod."""
        statuses: Sequence[Object] = self.pod.get("status", {}).get("containerStatuses") or ()
        return next((status.get("state", {}) for status in statuses if status["name"] == CONTAINER), {})


def ending(states: Iterable[PodState]) -> Failure | None:
    """Why pods failed, as the best witness tells it; None when none failed.

    What a training says itself comes first, then what was done to it. That it was removed comes late: the Job removes
    the pods beside one that failed. What ranks say of each other comes last: one that is lost makes all others fail.
    """
    witnesses = [found for state in states if (found := _witness(state)) is not None]
    return min(witnesses, key=lambda witness: witness[:2])[2] if witnesses else None


def hindrance(state: PodState, events: Sequence[Object]) -> Failure | None:
    """Why a pod has not started; None when it only takes its time."""
    waiting = state.waiting()
    told = f": {warning}" if (warning := last_warning(events)) else ""
    if waiting and waiting.get("reason") in _PULL:
        image = state.pod["spec"]["containers"][0]["image"]
        return Failure(
            "IMAGE_PULL",
            f"{state.place} cannot pull {image}: {_text(waiting) or waiting['reason']}; check jobs.pod.image and "
            "jobs.pod.image_pull_secrets",
        )
    if waiting and waiting.get("reason") in _CONFIG:
        return Failure("CONTAINER_CONFIG", f"{state.place} cannot start: {_text(waiting) or waiting['reason']}")
    scheduled = state.condition("PodScheduled")
    if scheduled and scheduled["status"] == "False":
        return Failure(
            "UNSCHEDULABLE",
            f"no node takes {state.place}: {scheduled.get('message') or scheduled.get('reason')}; free one, or change "
            "jobs.pod (gpus, cpu, memory, node_selector, tolerations)",
        )
    return Failure("NOT_STARTED", f"{state.place} has not started{told}") if not state.started else None


def last_warning(events: Sequence[Object]) -> str | None:
    """The newest warning's own words."""
    warnings = [event for event in events if event.get("type") == "Warning"]
    newest = max(warnings, key=_event_time, default=None)
    return f"{newest['reason']}: {_one_line(newest['message'])}" if newest else None


class _Rank(IntEnum):
    """How good a witness is; the lowest is heard."""

    TOLD = 0
    MEMORY = 1
    DISRUPTED = 2
    KILLED = 3
    WORDS = 4
    REMOVED = 5
    PEERS = 6


def _witness(state: PodState) -> tuple[int, str, Failure] | None:
    """(rank, time, failure); None when the pod has not failed."""
    terminated = state.terminated() or {}
    time = str(terminated.get("finishedAt") or "9999")
    if terminated.get("exitCode"):
        rank, failure = _own_end(state, terminated)
    elif state.phase == "Failed" or (state.leaving and state.phase != "Succeeded"):
        rank, failure = _Rank.REMOVED, _removed(state)
    else:
        return None
    disruption = _disruption(state)
    if disruption is not None and rank > _Rank.DISRUPTED:
        rank, failure = _Rank.DISRUPTED, disruption
    return rank, time, failure


def _own_end(state: PodState, terminated: Mapping[str, Any]) -> tuple[_Rank, Failure]:
    code, text = int(terminated["exitCode"]), str(terminated.get("message") or "")
    if terminated.get("reason") == "OOMKilled":
        return _Rank.MEMORY, _out_of_memory(state)
    exit_code, words = parse_termination(text) or (code, _one_line(last_telling_line(text)))
    if exit_code in (2, 3):
        return _Rank.TOLD, Failure("ENDED", words, exit_code=exit_code)
    if _PEER_LOST.search(text):
        return _Rank.PEERS, Failure("PEER_LOST", f"{state.place} lost its peers: {words}", retry=True)
    if parse_termination(text) is not None:
        return _Rank.WORDS, Failure("ENDED", words, exit_code=exit_code)
    if state.leaving:
        return _Rank.REMOVED, _removed(state)
    if _PROCESS_KILLED.search(text):
        return _Rank.MEMORY, _out_of_memory(state, sure=False)
    if code > _SIGNALLED:
        after = f", after {words!r}" if words else ""
        sentence = f"{state.place} was killed by signal {code - _SIGNALLED}{after}"
        return _Rank.KILLED, Failure("KILLED", sentence, exit_code=code, retry=True)
    return _Rank.WORDS, Failure("ENDED", words or f"{state.place} ended and said nothing", exit_code=code)


def _removed(state: PodState) -> Failure:
    return Failure("DISRUPTED", f"{state.place} {_status_words(state)}", retry=True)


def _out_of_memory(state: PodState, *, sure: bool = True) -> Failure:
    limit = state.pod["spec"]["containers"][0].get("resources", {}).get("limits", {}).get("memory", "its node's")
    what = "was out of memory" if sure else "had a process killed, most likely for want of memory"
    advice = "raise jobs.pod.memory, or lower engine.micro_batch_tokens"
    return Failure("OUT_OF_MEMORY", f"{state.place} {what} (limit {limit}); {advice}", exit_code=137)


def _disruption(state: PodState) -> Failure | None:
    condition = state.condition("DisruptionTarget")
    status = state.pod.get("status", {})
    if condition and condition["status"] == "True":
        what = _DISRUPTIONS.get(condition.get("reason", ""), "was disrupted")
        told = _one_line(status.get("message") or condition.get("message") or "")
        return Failure("DISRUPTED", f"{state.place} {what}{f': {told}' if told else ''}", retry=True)
    if state.phase == "Failed" and status.get("reason"):
        return _removed(state)
    return None


def _status_words(state: PodState) -> str:
    status = state.pod.get("status", {})
    reason, message = status.get("reason"), _one_line(status.get("message") or "")
    if reason:
        return f"failed as {reason}{f': {message}' if message else ''}"
    return f"failed: {message}" if message else "was removed"


def _event_time(event: Object) -> str:
    series = event.get("series") or {}
    return str(series.get("lastObservedTime") or event.get("lastTimestamp") or event.get("eventTime") or "")


def _text(waiting: Mapping[str, Any]) -> str:
    return _one_line(str(waiting.get("message") or ""))


def _one_line(text: str) -> str:
    return " ".join(text.split())
