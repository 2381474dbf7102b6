"""Why pods wait and why they ended, told from what a cluster says of them."""

from __future__ import annotations

import json
from typing import Any

import pytest

from rlaif_pipelines.jobs.pod_states import Failure, PodState, ending, hindrance, last_warning

Object = dict[str, Any]
GLOO = "RuntimeError: [gloo/transport/tcp/pair.cc:537] Read error [10.1.2.3]:14003: Connection reset by peer."
TORCHRUN = """\
rlaif_pipelines.training FAILED
Root Cause (first observed failure):
  exitcode  : -9 (pid: 77)
  traceback : Signal 9 (SIGKILL) received by PID 77
============================================================
"""


def pod(
    index: int,
    *,
    phase: str = "Failed",
    terminated: Object | None = None,
    waiting: Object | None = None,
    disruption: str = "",
    deleted: bool = False,
    gone: bool = False,
    **status: Any,
) -> PodState:
    state = {"terminated": terminated} if terminated else {"waiting": waiting} if waiting else {"running": {}}
    conditions = [{"type": "DisruptionTarget", "status": "True", "reason": disruption}] if disruption else []
    meta: Object = {"name": f"p{index}", "annotations": {"batch.kubernetes.io/job-completion-index": str(index)}}
    if deleted:
        meta["deletionTimestamp"] = "2026-01-01T00:00:00Z"
    limits = {"resources": {"limits": {"memory": "8Gi"}}, "image": "trainer:1"}
    made = {
        "metadata": meta,
        "spec": {"nodeName": f"n{index}", "containers": [limits]},
        "status": {"phase": phase, "conditions": conditions, "containerStatuses": [{"name": "node", "state": state}]}
        | status,
    }
    return PodState(made, gone=gone)


def ended(code: int, message: str = "", *, reason: str = "Error", at: str = "10:00:00") -> Object:
    return {"exitCode": code, "message": message, "reason": reason, "finishedAt": f"2026-01-01T{at}Z"}


def told(code: int, sentence: str, *, at: str = "10:00:00") -> Object:
    return ended(1, json.dumps({"exit_code": code, "message": sentence}), at=at)


def failure(*states: PodState) -> Failure:
    found = ending(states)
    assert found is not None
    return found


def test_pods_that_run_or_are_done_have_not_failed() -> None:
    done = pod(1, phase="Succeeded", terminated=ended(0))
    assert ending([pod(0, phase="Running"), done, pod(2, phase="Pending")]) is None
    assert ending([pod(1, phase="Succeeded", terminated=ended(0), deleted=True)]) is None


def test_the_trainings_own_sentence_is_told_and_its_exit_code() -> None:
    found = failure(pod(0, terminated=told(2, "labels: no such file")))
    assert (found.reason, found.exit_code, found.sentence, found.retry) == ("ENDED", 2, "labels: no such file", False)


def test_a_rank_with_a_reason_is_heard_before_those_that_only_miss_it() -> None:
    lost = pod(0, terminated=told(1, GLOO, at="10:00:00"))
    cause = pod(1, terminated=told(1, "ValueError: a label is gone", at="10:00:01"))
    found = failure(lost, cause)
    assert (found.sentence, found.retry) == ("ValueError: a label is gone", False)


def test_of_two_with_a_reason_the_first_is_heard() -> None:
    later, first = told(1, "second", at="10:00:05"), told(1, "first", at="10:00:04")
    assert failure(pod(0, terminated=later), pod(1, terminated=first)).sentence == "first"


def test_ranks_that_only_lost_each_other_are_worth_another_attempt() -> None:
    found = failure(pod(0, terminated=told(1, GLOO)))
    assert (found.reason, found.retry) == ("PEER_LOST", True)
    assert found.sentence.startswith("pod p0 (node n0) lost its peers: RuntimeError")


@pytest.mark.parametrize(
    "words",
    [
        "torch.distributed.DistNetworkError: The client socket has timed out after 600000ms",
        "torch.distributed.DistNetworkError: Failed to recv, got 0 bytes. Did the remote server shutdown or crash?",
        "torch.distributed.DistStoreError: Timed out after 901 seconds waiting for clients. 1/2 clients joined.",
        "torch.distributed.DistBackendError: NCCL error, ncclRemoteError: A call failed",
        "RuntimeError: [gloo/transport/tcp/pair.cc:537] Connection closed by peer [10.0.0.2]:4711",
        "[Rank 0] Watchdog caught collective operation timeout: WorkNCCL(SeqNum=5)",
    ],
)
def test_what_torch_says_of_lost_peers_is_known(words: str) -> None:
    assert failure(pod(0, terminated=ended(1, f"Traceback\n{words}"))).reason == "PEER_LOST"


@pytest.mark.parametrize("words", ["UnavailableError: judge:50051: connection refused", "ValueError: peer review"])
def test_other_failures_are_not_taken_for_lost_peers(words: str) -> None:
    assert failure(pod(0, terminated=ended(1, words))).retry is False


def test_out_of_memory_is_told_with_the_limit() -> None:
    found = failure(pod(0, terminated=told(1, GLOO)), pod(1, terminated=ended(137, reason="OOMKilled")))
    assert (found.reason, found.exit_code, found.retry) == ("OUT_OF_MEMORY", 137, False)
    assert found.sentence == (
        "pod p1 (node n1) was out of memory (limit 8Gi); raise jobs.pod.memory, or lower engine.micro_batch_tokens"
    )


def test_a_process_that_the_kernel_ended_inside_the_container_is_most_likely_out_of_memory() -> None:
    found = failure(pod(0, terminated=ended(1, TORCHRUN)))
    assert found.reason == "OUT_OF_MEMORY"
    assert "had a process killed, most likely for want of memory (limit 8Gi)" in found.sentence


@pytest.mark.parametrize(
    ("disruption", "words"),
    [
        ("PreemptionByScheduler", "was preempted by a pod of higher priority"),
        ("DeletionByTaintManager", "was on a node that went out of touch or was emptied"),
        ("EvictionByEvictionAPI", "was evicted, as when a node is drained"),
        ("DeletionByPodGC", "was on a node that is gone"),
        ("TerminationByKubelet", "was ended by its node"),
        ("SomethingNew", "was disrupted"),
    ],
)
def test_disruptions_are_told_and_worth_another_attempt(disruption: str, words: str) -> None:
    mourner = pod(0, terminated=told(1, "RuntimeError: whatever a rank says then"))
    found = failure(mourner, pod(1, phase="Running", disruption=disruption, deleted=True))
    assert (found.reason, found.retry) == ("DISRUPTED", True)
    assert found.sentence == f"pod p1 (node n1) {words}"


def test_an_eviction_is_told_in_the_nodes_words() -> None:
    found = failure(pod(0, reason="Evicted", message="The node was low on resource: memory.\nThreshold 100Mi"))
    assert found.sentence == (
        "pod p0 (node n0) failed as Evicted: The node was low on resource: memory. Threshold 100Mi"
    )
    assert found.retry


def test_a_node_that_cannot_take_the_pod_after_all_is_worth_another_attempt() -> None:
    found = failure(pod(0, reason="UnexpectedAdmissionError", message="Allocate failed due to no healthy devices"))
    assert (found.reason, found.retry) == ("DISRUPTED", True)


def test_a_killed_container_is_named_by_its_signal_and_last_line() -> None:
    found = failure(pod(0, terminated=told(1, GLOO)), pod(1, terminated=ended(137, "sft 5/24  loss 6.2")))
    assert (found.reason, found.exit_code, found.retry) == ("KILLED", 137, True)
    assert found.sentence == "pod p1 (node n1) was killed by signal 9, after 'sft 5/24 loss 6.2'"


def test_pods_that_the_job_removes_beside_one_that_failed_do_not_hide_why() -> None:
    removed = pod(1, terminated=ended(143, "Received 15 death signal, shutting down workers"), deleted=True, gone=True)
    found = failure(pod(0, terminated=told(1, "DiskFullError: no room")), removed)
    assert (found.sentence, found.retry) == ("DiskFullError: no room", False)


def test_a_pod_that_somebody_removed_is_worth_another_attempt() -> None:
    found = failure(pod(0, terminated=told(1, GLOO)), pod(1, phase="Running", gone=True))
    assert (found.reason, found.sentence, found.retry) == ("DISRUPTED", "pod p1 (node n1) was removed", True)


def test_a_training_that_says_nothing_is_told_to_have_said_nothing() -> None:
    assert failure(pod(0, terminated=ended(7))).sentence == "pod p0 (node n0) ended and said nothing"


def test_a_pod_that_only_takes_its_time_is_told_with_its_newest_warning() -> None:
    events = [
        {"type": "Normal", "reason": "Pulling", "message": "pulling", "lastTimestamp": "2026-01-01T10:00:09Z"},
        {"type": "Warning", "reason": "FailedMount", "message": "old", "lastTimestamp": "2026-01-01T10:00:01Z"},
        {
            "type": "Warning",
            "reason": "FailedMount",
            "message": "timed out\nwaiting",
            "series": {"lastObservedTime": "2026-01-01T10:00:05Z"},
        },
    ]
    found = hindrance(pod(0, phase="Pending", waiting={"reason": "ContainerCreating"}), events)
    assert found is not None
    assert found.sentence == "pod p0 (node n0) has not started: FailedMount: timed out waiting"
    assert last_warning([]) is None


def test_a_started_pod_has_no_hindrance() -> None:
    assert hindrance(pod(0, phase="Running"), []) is None
