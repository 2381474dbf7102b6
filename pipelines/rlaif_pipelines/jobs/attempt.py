"""One attempt of a training on a cluster: created, watched to its end, its log copied, removed."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Final

from rlaif_pipelines.jobs.cluster import EVENTS, PODS, Cluster, ClusterError
from rlaif_pipelines.jobs.launchers import Launcher
from rlaif_pipelines.jobs.manifests import Attempt
from rlaif_pipelines.jobs.pod_log import LogFollower, RunLog, copy_tail
from rlaif_pipelines.jobs.pod_states import Failure, PodState, ending, hindrance, last_warning

Object = dict[str, Any]

_WINDOW_SECONDS: Final = 2
_OUTAGE_SECONDS: Final = 600.0
_UNHEARD_PAUSE_SECONDS: Final = 2.0
_SETTLE_SECONDS: Final = 10.0
"""For the other pods of a job that has failed to end too and say why: the first to be seen need not be the first."""
_LOG_SECONDS: Final = 10.0
_TAIL_LINES: Final = 200
_OWN_DEADLINE: Final = "DeadlineExceeded"


class AttemptRun:
    """Creates the job of one attempt and follows it; to remove it is up to `removed_afterwards`."""

    def __init__(
        self,
        attempt: Attempt,
        *,
        launcher: Launcher,
        cluster: Cluster,
        log: RunLog,
        on_line: Callable[[str], None] | None = None,
    ) -> None:
        self._attempt = attempt
        self._settings = attempt.settings
        self._launcher = launcher
        self._cluster = cluster
        self._log = log
        self._on_line = on_line or (lambda line: None)
        self._pods: dict[str, PodState] = {}
        self._dismissed: set[str] = set()
        self._version = ""
        self._finished = False
        self._followers: dict[str, LogFollower] = {}
        self._since: dict[str, float] = {}
        self._heard = time.monotonic()

    def run(self) -> Failure | None:
        """Creates the job and waits for its end; None when it did what it was to do."""
        try:
            self._launcher.create(self._cluster, self._attempt)
        except ClusterError as error:
            return self._refused(error)
        while True:
            try:
                self._look()
                over, failure = self._judge(self._cluster.get(self._launcher.kind, self._attempt.name))
                self._heard = time.monotonic()
            except ClusterError as error:
                over, failure = self._unheard(error)
                if not over:
                    time.sleep(_UNHEARD_PAUSE_SECONDS)
            self._pass_on_lines()
            if over:
                self._finish_logs(failure)
                return failure

    def _look(self) -> None:
        """Takes in what happened to the pods, until something did or for a short while."""
        if self._version and not self._finished:
            self._watch()
        else:
            self._list()

    def _list(self) -> None:
        listing = self._cluster.find(PODS, labels=self._launcher.pods(self._attempt.name))
        seen = {pod["metadata"]["name"]: PodState(pod) for pod in listing.items}
        gone = {name: PodState(state.pod, gone=True) for name, state in self._pods.items() if name not in seen}
        self._pods, self._version = gone | seen, listing.version

    def _watch(self) -> None:
        selector = self._launcher.pods(self._attempt.name)
        # When pods have ended, it is the job that will change.
        seconds = 1 if any(state.ended for state in self._current()) else _WINDOW_SECONDS
        changes = self._cluster.watch(PODS, labels=selector, version=self._version, seconds=seconds)
        try:
            for event, pod in changes:
                self._version = pod["metadata"]["resourceVersion"]
                if event != "BOOKMARK":
                    self._pods[pod["metadata"]["name"]] = PodState(pod, gone=event == "DELETED")
                    return
        except ClusterError as error:
            if error.status not in (0, 410):
                raise
            self._version = ""  # too old, or we cannot know: look at all there is
            if error.status == 0:
                time.sleep(1.0)

    def _judge(self, job: Object | None) -> tuple[bool, Failure | None]:
        """(whether it is over, why it failed)."""
        self._follow_first_pod()
        if job is None:
            return True, Failure("DELETED", f"job {self._attempt.name} was removed by somebody else")
        conditions = {
            condition["type"]: condition
            for condition in job.get("status", {}).get("conditions") or ()
            if condition["status"] == "True"
        }
        if conditions.keys() & {"Complete", "Failed", "FailureTarget"} and not self._finished:
            self._finished = True  # the job is ahead of what we know of its pods
            return False, None
        if "Complete" in conditions:
            return True, None
        failed = conditions.get("Failed") or conditions.get("FailureTarget")
        suspended = bool(job["spec"].get("suspend"))
        if suspended:  # a queue takes its pods away, and gives it others later
            self._dismissed |= set(self._pods)
        fault = ending(self._current())
        if failed or fault:
            return self._settled(failed, fault)
        self._since.pop("failing", None)
        failure = self._overdue(suspended=suspended)
        return failure is not None, failure

    def _settled(self, failed: Object | None, fault: Failure | None) -> tuple[bool, Failure | None]:
        if failed and failed.get("reason") == _OWN_DEADLINE:
            return True, self._timeout()
        waited = self._waited("failing")
        if waited < _SETTLE_SECONDS and (fault is None or not all(state.ended for state in self._current())):
            if self._finished:
                time.sleep(0.3)
            return False, None
        told = failed or {}
        return True, fault or Failure("ENDED", f"{told.get('reason')}: {told.get('message')}{self._warning()}")

    def _overdue(self, *, suspended: bool) -> Failure | None:
        """What has taken too long."""
        if suspended:
            self._since.clear()
            return None
        states = self._current()
        if len(states) == self._settings.num_nodes and all(state.started for state in states):
            over = self._waited("running") > self._settings.timeout_seconds
            return self._timeout() if over else None
        late = self._waited("pending") > self._settings.pending_seconds
        for state in states:
            failure = hindrance(state, self._events(state.name) if late else ())
            if failure is None:
                continue
            if late:
                return self._after_waiting(failure)
            stuck = failure.reason in ("IMAGE_PULL", "CONTAINER_CONFIG")
            if stuck and self._waited(f"stuck {state.name}") > self._settings.stuck_seconds:
                return failure
        return self._without_pods(len(states), late=late) if len(states) < self._settings.num_nodes else None

    def _without_pods(self, num_there: int, *, late: bool) -> Failure | None:
        """Why some are not even there; a quota may have room later, other refusals stay."""
        if not late and self._waited("pending") < self._settings.stuck_seconds:
            return None
        warning = self._warning()
        if "FailedCreate" in warning and (late or "exceeded quota" not in warning):
            return Failure("REFUSED", f"the cluster refuses pods of job {self._attempt.name}{warning}")
        if not late:
            return None
        told = warning or ": nobody acts on it; is the controller of such jobs running?"
        pods = f"{num_there or 'none'} of its {self._settings.num_nodes} pods"
        return self._after_waiting(Failure("NOT_STARTED", f"job {self._attempt.name} has {pods}{told}"))

    def _after_waiting(self, failure: Failure) -> Failure:
        waited = f"waited {self._settings.pending_seconds:g} s, jobs.pending_seconds"
        return Failure(failure.reason, f"{failure.sentence} ({waited})")

    def _current(self) -> list[PodState]:
        """The pods that count, gone ones too."""
        return [state for name, state in self._pods.items() if name not in self._dismissed]

    def _follow_first_pod(self) -> None:
        for state in self._pods.values():
            if state.index == 0 and state.started and state.name not in self._followers:
                self._followers[state.name] = LogFollower(self._cluster, state.name, self._log)
                self._followers[state.name].start()

    def _finish_logs(self, failure: Failure | None) -> None:
        for name, follower in self._followers.items():
            # What a pod that still runs writes is of no interest any more.
            follower.finish(seconds=_LOG_SECONDS if self._pods[name].ended else 0.0)
        if failure is not None and failure.reason != "UNREACHABLE":
            for state in self._pods.values():
                if state.name not in self._followers and state.started and not state.gone and state.phase == "Failed":
                    copy_tail(self._cluster, state.name, self._log, num_lines=_TAIL_LINES)
        self._pass_on_lines()

    def _pass_on_lines(self) -> None:
        while not self._log.lines.empty():
            self._on_line(self._log.lines.get())

    def _refused(self, error: ClusterError) -> Failure:
        if error.status == 404:
            return Failure("REFUSED", f"the cluster knows no such job: {error.message}; {self._launcher.unknown}")
        if error.status == 0:
            return Failure("UNREACHABLE", error.message)
        return Failure("REFUSED", f"the cluster refused the job: {error.message}")

    def _unheard(self, error: ClusterError) -> tuple[bool, Failure | None]:
        """A cluster that is away comes back, and the training runs on meanwhile; one that says no does not."""
        if error.reason != "UNREACHABLE" and error.status not in (0, 401):
            return True, Failure("REFUSED", f"the cluster no longer lets us see the job: {error.message}")
        if time.monotonic() - self._heard < _OUTAGE_SECONDS:
            return False, None
        return True, Failure(
            "UNREACHABLE",
            f"the cluster has not answered for {_OUTAGE_SECONDS:g} s, and job {self._attempt.name} may still run: "
            f"{error.message}",
        )

    def _timeout(self) -> Failure:
        seconds = self._settings.timeout_seconds
        return Failure("TIMEOUT", f"did not end within {seconds:g} s and was stopped; raise jobs.timeout_seconds")

    def _waited(self, what: str) -> float:
        """Seconds since this was first asked."""
        now = time.monotonic()
        return now - self._since.setdefault(what, now)

    def _events(self, *names: str) -> Sequence[Object]:
        found: list[Object] = []
        with contextlib.suppress(ClusterError):
            for name in names:
                found += self._cluster.find(EVENTS, fields=f"involvedObject.name={name}").items
        return found

    def _warning(self) -> str:
        warning = last_warning(self._events(*self._launcher.subjects(self._attempt.name)))
        return f": {warning}" if warning else ""


@contextlib.contextmanager
def removed_afterwards(
    cluster: Cluster, launcher: Launcher, name: str, *, seconds: float, log: RunLog
) -> Iterator[list[str]]:
    """Whatever happens inside, the job is gone afterwards, with all it owns.

    Gives a list that is filled then: names of pods that were still there when the time was over.
    """
    left: list[str] = []
    try:
        yield left
    finally:
        try:
            left += remove(cluster, launcher, name, seconds=seconds)
        except ClusterError as error:  # how the training ended is what counts
            log.note(f"{launcher.kind.plural}/{name} could not be removed: {error.message}")


def remove(cluster: Cluster, launcher: Launcher, name: str, *, seconds: float) -> list[str]:
    """Removes a job and waits until nothing of it is left; the pods that are left when the time is over."""
    deadline, pause = time.monotonic() + seconds, 0.2
    cluster.delete(launcher.kind, name)
    while True:
        left = [pod["metadata"]["name"] for pod in cluster.find(PODS, labels=launcher.pods(name)).items]
        if (not left and cluster.get(launcher.kind, name) is None) or time.monotonic() > deadline:
            return left
        time.sleep(pause)
        pause = min(2 * pause, 2.0)
