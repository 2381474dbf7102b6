"""Trainings as jobs of a cluster: a server that speaks Kubernetes' API, and pods that are processes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from chart_fixtures import of_kind, read_profile, render
from kubernetes_api import Object, Refused
from kubernetes_playground import NAMESPACE, Playground
from kubernetes_playground import playground as playground
from kubernetes_schemas import problems
from rlaif.playground.paths import POLICY_DIR
from rlaif_pipelines.jobs import attempt as attempts
from rlaif_pipelines.jobs.launch import release
from rlaif_pipelines.jobs.remote import run_remote
from training_fakes import WORDS, write_lines

LAUNCHERS = ("indexed_job", "trainjob")
SAY_RANK = "import os; print('rank', os.environ['PET_NODE_RANK'], 'of', os.environ['PET_NNODES'])"
WAIT = "import time; print('step 1', flush=True); time.sleep(60)"
ONCE = """\
import os, pathlib, sys, time
marker = pathlib.Path(sys.argv[-1]).parent / f"seen-{os.environ['PET_NODE_RANK']}"
if not marker.exists():
    print("step 1", flush=True)
    marker.touch()
    time.sleep(60)
print("step 2")
"""


@pytest.fixture
def chart() -> list[Object]:
    """What the chart installs in a cluster with Kubeflow Trainer."""
    return render(read_profile("production"))


@pytest.fixture
def trainer(playground: Playground, chart: list[Object]) -> Playground:
    """The same cluster with our TrainingRuntime."""
    problems({"apiVersion": "trainer.kubeflow.org/v1alpha1", "kind": "TrainJob"}, version="1.36")  # or skip
    playground.store.create("trainingruntimes", of_kind(chart, "TrainingRuntime")["rlaif-training"])
    return playground


def soon(happens: Callable[[], Any], *, seconds: int = 30) -> Any:
    """What it gives, once that is something."""
    for _ in range(100 * seconds):
        if found := happens():
            return found
        time.sleep(0.01)
    raise AssertionError("it did not happen")


def second_pod(here: Playground, *, heard: bool = True) -> str:
    """The pod of index 1, once both are as far as ONCE lets them get the first time, and the first was heard."""
    for number in (0, 1):
        soon((here.config_path.parent / f"seen-{number}").exists)
    if heard:
        soon(lambda: here.lines)
    return here.nodes.pod(1)


def meanwhile(act: Callable[[], Any]) -> threading.Thread:
    """Does it beside the test."""
    thread = threading.Thread(target=act, daemon=True)
    thread.start()
    return thread


@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_a_job_runs_on_all_its_nodes_and_leaves_nothing_but_its_log(trainer: Playground, launcher: str) -> None:
    trainer.nodes.stand_in = SAY_RANK
    result = trainer.run(launcher)
    assert (result.exit_code, result.last_words, result.reason) == (0, "", "DONE")
    assert trainer.lines == ["rank 0 of 2"]
    assert "rank 0 of 2" in trainer.log_path.read_text().splitlines()
    assert len(trainer.nodes.started) == 2
    assert (trainer.left(), trainer.nodes.running()) == ([], [])


@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_what_a_training_says_of_its_end_reaches_who_started_it_without_logs(
    trainer: Playground, launcher: str
) -> None:
    trainer.nodes.stand_in = (
        "import os, sys\nfrom rlaif_pipelines.training.termination import tell_termination\n"
        "if os.environ['PET_NODE_RANK'] == '0': tell_termination(3, 'KL is 7.1 nats')\n"
        "else: tell_termination(1, 'RuntimeError: Connection closed by peer [10.0.0.1]')\nsys.exit(1)"
    )
    result = trainer.run(launcher)
    assert (result.exit_code, result.last_words, result.attempts) == (3, "KL is 7.1 nats", 1)
    assert trainer.left() == []


@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_who_starts_trainings_needs_the_rights_of_the_charts_role_and_no_others(
    trainer: Playground, chart: list[Object], launcher: str
) -> None:
    rules = of_kind(chart, "Role")["rlaif-training"]["rules"]
    trainer.server.rules = rules
    trainer.nodes.stand_in = SAY_RANK
    trainer.run(launcher)
    trainer.nodes.claims.clear()
    assert trainer.run(launcher, pending_seconds=0.1).reason == "NOT_STARTED"
    granted = {(resource, verb) for rule in rules for resource in rule["resources"] for verb in rule["verbs"]}
    other = "trainjobs" if launcher == "indexed_job" else "jobs"
    unused = {(resource, verb) for resource, verb in granted - set(trainer.server.requested) if resource != other}
    # Read only where the answer to a creation was lost.
    assert unused <= {("services", "get"), ("services", "create")}


def test_a_missing_right_is_told_by_its_name(playground: Playground) -> None:
    playground.server.rules = []
    result = playground.run()
    assert result.reason == "REFUSED"
    assert 'cannot list resource "jobs"' in result.last_words


FAILURES: dict[str, tuple[str, Callable[[Playground], Any], dict[str, Any], str, str]] = {
    "image": (
        "indexed_job",
        lambda here: here.nodes.images.clear(),
        {"stuck_seconds": 0},
        "IMAGE_PULL",
        'cannot pull trainer:1: Back-off pulling image "trainer:1": not found; check jobs.pod.image',
    ),
    "secret": (
        "trainjob",
        lambda here: None,
        {"stuck_seconds": 0, "pod": {"secret_environment": {"RLAIF_TOKEN": "rlaif-token/token"}}},
        "CONTAINER_CONFIG",
        'cannot start: secret "rlaif-token" not found',
    ),
    "nodes": (
        "trainjob",
        lambda here: setattr(here.nodes, "no_room", "0/2 nodes are available: 2 Insufficient nvidia.com/gpu."),
        {"pending_seconds": 0.1},
        "UNSCHEDULABLE",
        "0/2 nodes are available: 2 Insufficient nvidia.com/gpu.; free one, or change jobs.pod",
    ),
    "volume": (
        "indexed_job",
        lambda here: here.nodes.claims.clear(),
        {"pending_seconds": 0.1},
        "NOT_STARTED",
        'has not started: FailedMount: persistentvolumeclaim "runs" not found (waited 0.1 s, jobs.pending_seconds)',
    ),
    "security": (
        "trainjob",
        lambda here: setattr(here.nodes.controllers, "pod_refusal", 'violates PodSecurity "restricted:latest"'),
        {"stuck_seconds": 0},
        "REFUSED",
        'is forbidden: violates PodSecurity "restricted:latest"',
    ),
    "quota": (
        "indexed_job",
        lambda here: setattr(here.nodes.controllers, "pod_refusal", "exceeded quota: gpus, requested: 8, limited: 4"),
        {"stuck_seconds": 0, "pending_seconds": 0.3},
        "REFUSED",
        "exceeded quota: gpus, requested: 8, limited: 4",
    ),
    "quota for one": (
        "indexed_job",
        lambda here: (
            setattr(here.nodes.controllers, "pod_refusal", "exceeded quota: gpus, requested: 8, limited: 12"),
            setattr(here.nodes.controllers, "pods_allowed", 1),
            setattr(here.nodes, "stand_in", WAIT),
        ),
        {"stuck_seconds": 0, "pending_seconds": 0.3},
        "REFUSED",
        "exceeded quota: gpus, requested: 8, limited: 12",
    ),
    "time": (
        "indexed_job",
        lambda here: setattr(here.nodes, "stand_in", WAIT),
        {"timeout_seconds": 0.1},
        "TIMEOUT",
        "did not end within 0.1 s and was stopped; raise jobs.timeout_seconds",
    ),
}


@pytest.mark.parametrize("case", FAILURES)
def test_why_a_job_came_to_nothing_is_told_in_one_sentence_with_the_clusters_own_words(
    trainer: Playground, case: str
) -> None:
    launcher, arrange, settings, reason, words = FAILURES[case]
    trainer.nodes.stand_in = SAY_RANK
    arrange(trainer)
    result = trainer.run(launcher, **settings)
    assert (result.reason, result.exit_code, result.attempts) == (reason, 1, 1)
    assert words in result.last_words
    assert "\n" not in result.last_words
    assert trainer.left() == []


def test_a_job_that_admission_refuses_is_told_in_its_words(playground: Playground) -> None:
    def refuse(kind: str, body: Object) -> None:
        raise Refused(f'admission webhook "policy.example" denied the request: {kind} {body["metadata"]["name"][:5]}')

    playground.store.admission.append(refuse)
    result = playground.run()
    assert result.reason == "REFUSED"
    assert 'admission webhook "policy.example" denied the request: jobs rlaif' in result.last_words


def test_a_cluster_without_kubeflow_trainer_says_what_to_do(playground: Playground) -> None:
    playground.server.unknown = {"trainjobs"}
    assert "install Kubeflow Trainer v2, or set jobs.launcher to indexed_job" in playground.run("trainjob").last_words


def test_a_train_job_that_nobody_acts_on_is_not_waited_for_for_ever(trainer: Playground) -> None:
    trainer.nodes.controllers.has_trainer = False
    result = trainer.run("trainjob", pending_seconds=0.1)
    assert result.reason == "NOT_STARTED"
    assert "has none of its 2 pods: nobody acts on it; is the controller of such jobs running?" in result.last_words
    assert trainer.left() == []


def test_a_pod_out_of_memory_is_named_with_its_limit_and_not_tried_again(playground: Playground) -> None:
    playground.nodes.stand_in = WAIT
    meanwhile(lambda: playground.nodes.kill(playground.nodes.pod(1), reason="OOMKilled"))
    result = playground.run(pod={"memory": "3Gi"})
    assert (result.reason, result.exit_code, result.attempts) == ("OUT_OF_MEMORY", 137, 1)
    assert "(node node-1) was out of memory (limit 3Gi); raise jobs.pod.memory" in result.last_words


@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_a_pod_that_is_evicted_costs_an_attempt(trainer: Playground, launcher: str) -> None:
    trainer.nodes.stand_in = ONCE
    words = "The node was low on resource: memory."
    meanwhile(lambda: trainer.nodes.evict(second_pod(trainer), words))
    result = trainer.run(launcher)
    assert (result.exit_code, result.attempts) == (0, 2)
    assert trainer.lines == ["step 1", "step 2"]
    log = trainer.log_path.read_text()
    assert f"(node node-1) was ended by its node: {words}" in log
    assert "attempt 2 of 3 begins in 0 s" in log
    assert trainer.left() == []


def test_attempts_are_limited_and_the_last_ones_sentence_is_told(playground: Playground) -> None:
    playground.nodes.stand_in = "import os; os.kill(os.getpid(), 9)"
    result = playground.run(attempts=2)
    assert (result.reason, result.exit_code, result.attempts) == ("KILLED", 137, 2)
    assert "was killed by signal 9" in result.last_words


def test_a_lost_node_is_not_waited_for_when_others_had_to_stop_with_it(
    playground: Playground, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attempts, "_SETTLE_SECONDS", 0.2)
    monkeypatch.setattr("rlaif_pipelines.jobs.remote._REMOVAL_SECONDS", 0.0)
    playground.nodes.stand_in = ONCE
    meanwhile(lambda: playground.nodes.lose_node(second_pod(playground)))
    result = playground.run()
    assert (result.exit_code, result.attempts) == (0, 2)
    assert "(node node-1) was on a node that went out of touch" in playground.log_path.read_text()
    playground.nodes.forget_node()
    soon(lambda: not playground.left())


def test_a_training_on_one_node_does_not_start_beside_one_that_may_still_write(
    playground: Playground, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attempts, "_SETTLE_SECONDS", 0.2)
    monkeypatch.setattr("rlaif_pipelines.jobs.remote._REMOVAL_SECONDS", 0.0)
    playground.nodes.stand_in = ONCE
    meanwhile(lambda: playground.nodes.lose_node(playground.nodes.pod(0)))
    result = playground.run(num_nodes=1)
    assert (result.reason, result.attempts) == ("DISRUPTED", 1)
    assert "has not ended since, and two trainings would write into one folder" in result.last_words
    assert "has not ended, and two trainings would write into one folder" in playground.run(num_nodes=1).last_words


def test_a_job_that_somebody_removes_is_told(playground: Playground) -> None:
    playground.nodes.stand_in = WAIT

    def remove() -> None:
        name = playground.nodes.pod(0).rsplit("-", 2)[0]
        playground.store.remove("jobs", name)

    meanwhile(remove)
    result = playground.run()
    assert (result.reason, result.attempts) == ("DELETED", 1)
    assert "was removed by somebody else" in result.last_words


def test_busy_servers_broken_watches_and_lost_history_are_survived(playground: Playground) -> None:
    playground.nodes.stand_in = ONCE
    playground.server.unavailable = 1
    playground.server.cut_watches = 2

    def disturb() -> None:
        pod = second_pod(playground)
        playground.store.forget_history()
        playground.server.unavailable = 2
        playground.nodes.evict(pod, "The node was low on resource: disk.")

    meanwhile(disturb)
    result = playground.run()
    assert (result.exit_code, result.attempts) == (0, 2)
    assert playground.lines == ["step 1", "step 2"]
    assert (playground.server.unavailable, playground.server.cut_watches) == (0, 0)


def test_a_log_whose_connection_breaks_is_read_on_without_a_line_twice(playground: Playground) -> None:
    playground.nodes.stand_in = (
        "import os, pathlib, sys, time\n"
        "go = pathlib.Path(sys.argv[-1]).parent / 'go'\n"
        "for step in range(3): print('step', step, flush=True)\n"
        "while not go.exists(): time.sleep(0.01)\n"
        "print('step', 3)"
    )
    playground.server.cut_logs = 1

    def go_on() -> None:
        soon(lambda: playground.server.cut_logs == 0)
        (playground.config_path.parent / "go").touch()

    meanwhile(go_on)
    assert playground.run().done
    assert playground.lines == [f"step {step}" for step in range(4)]


def test_a_queue_may_hold_a_job_back_and_take_its_pods_away_without_costing_an_attempt(playground: Playground) -> None:
    playground.nodes.stand_in = ONCE
    queued: list[str] = []

    def hold_back(kind: str, body: Object) -> None:
        if kind == "jobs":
            queued.append(body["metadata"]["labels"]["kueue.x-k8s.io/queue-name"])
            body["spec"]["suspend"] = True

    def suspend(value: bool) -> None:
        name = playground.store.find("jobs")[0]["metadata"]["name"]
        playground.store.update("jobs", name, lambda job: job["spec"].update(suspend=value))

    def preempt() -> None:
        soon(lambda: playground.store.find("jobs"))
        suspend(False)
        second_pod(playground)
        suspend(True)
        soon(lambda: not playground.store.find("pods"))
        watched = len(playground.server.requested)
        soon(lambda: ("jobs", "get") in playground.server.requested[watched:])
        suspend(False)

    playground.store.admission.append(hold_back)
    meanwhile(preempt)
    result = playground.run(queue="team-a", pending_seconds=30)
    assert (result.exit_code, result.attempts) == (0, 1)
    assert queued == ["team-a"]
    assert playground.lines == ["step 1", "step 2"]


def test_in_a_pod_the_job_belongs_to_that_pod_but_never_to_one_of_another_namespace(
    playground: Playground, monkeypatch: pytest.MonkeyPatch
) -> None:
    owners: list[Any] = []
    playground.store.admission.append(
        lambda kind, body: owners.append(body["metadata"].get("ownerReferences")) if kind == "jobs" else None
    )
    playground.nodes.stand_in = SAY_RANK
    task = playground.store.create("pods", {"metadata": {"name": "task", "annotations": {}}, "spec": {}})
    playground.nodes.ignored.add("task")
    monkeypatch.setenv("KFP_POD_NAME", "task")
    monkeypatch.setenv("KFP_POD_UID", task["metadata"]["uid"])
    for own in (NAMESPACE, "elsewhere"):
        cluster = playground.cluster(own_namespace=own)
        assert run_remote(playground.spec, playground.settings("indexed_job"), cluster=cluster).done
    assert owners[1] is None
    assert [(owner["kind"], owner["name"], owner["uid"]) for owner in owners[0]] == [
        ("Pod", "task", task["metadata"]["uid"])
    ]


def starter(here: Playground, launcher: str) -> subprocess.Popen[bytes]:
    """A process that runs the training as a stage of a pipeline does."""
    script = (
        "import json, signal, sys\nfrom pathlib import Path\n"
        "from rlaif_pipelines.jobs.launch import launch\nfrom rlaif_pipelines.jobs.settings import JobSettings\n"
        "from rlaif_pipelines.jobs.spec import JobSpec\n"
        "signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))\n"
        "spec = JobSpec('sft', Path(sys.argv[1]), Path(sys.argv[2]), name='sft')\n"
        "launch(spec, JobSettings.model_validate_json(sys.argv[3]))"
    )
    settings = here.settings(launcher).model_dump_json()
    command = [sys.executable, "-c", script, str(here.config_path), str(here.log_path), settings]
    return subprocess.Popen(command, env=os.environ | {"KUBECONFIG": str(here.kubeconfig)})


@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_a_stage_that_is_cancelled_leaves_nothing_behind(trainer: Playground, launcher: str) -> None:
    trainer.nodes.stand_in = WAIT
    process = starter(trainer, launcher)
    trainer.nodes.pod(0), trainer.nodes.pod(1)
    process.send_signal(signal.SIGTERM)
    assert process.wait(30) == 128 + signal.SIGTERM
    assert (trainer.left(), trainer.nodes.running()) == ([], [])


def test_what_a_killed_stage_left_running_is_removed_before_the_next_start(playground: Playground) -> None:
    playground.nodes.stand_in = ONCE
    process = starter(playground, "indexed_job")
    second_pod(playground, heard=False)
    process.kill()
    process.wait()
    assert len(playground.nodes.running()) == 2
    assert playground.run().done
    assert "of an earlier start is removed" in playground.log_path.read_text()
    assert (playground.left(), playground.nodes.running()) == ([], [])


def test_the_end_of_a_run_releases_what_a_killed_stage_left_running(playground: Playground) -> None:
    playground.nodes.stand_in = WAIT
    playground.config_path.write_text("{}")
    process = starter(playground, "indexed_job")
    playground.nodes.pod(0), playground.nodes.pod(1)
    process.kill()
    process.wait()
    settings = playground.settings("indexed_job")
    [removed] = release(playground.run_folder, settings)
    assert removed.startswith("jobs/rlaif-sft-")
    assert (playground.left(), playground.nodes.running()) == ([], [])
    assert release(playground.run_folder, settings) == []


STEPS = 10
QUICK_START = {"cpu": "1", "environment": {"TORCHDYNAMO_DISABLE": "1"}}


@pytest.fixture
def training(trainer: Playground) -> Path:
    """A fine-tuning of the playground's policy under ZeRO 3, ready to start; its folder."""
    out = trainer.config_path.parent / "job"
    rows = [{"prompt": f"Tell me about {word}", "response": f"good {word}"} for word in WORDS]
    settings = {
        "out": str(out),
        "policy": str(POLICY_DIR),
        "conversations": str(write_lines(trainer.volume / "conversations.jsonl", rows)),
        "num_epochs": STEPS,
        "batch_conversations": len(rows),
        "held_out_fraction": 0.0,
        "checkpoint_every": 2,
        "engine": {"zero_stage": 3, "num_threads": 1},
    }
    trainer.config_path.write_text(json.dumps(settings))
    return out


def steps_of(training: Path) -> list[int]:
    return [json.loads(line)["step"] for line in (training / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.slow
def test_two_nodes_train_under_zero_3_and_when_one_is_killed_go_on_from_the_checkpoint(
    playground: Playground, training: Path
) -> None:
    kept: list[int] = []

    def kill_a_node_once_there_is_a_checkpoint() -> None:
        soon(lambda: list((training / "checkpoints").rglob("checkpoint.json")), seconds=300)
        playground.nodes.kill(playground.nodes.pod(1))
        kept.extend(steps_of(training))

    meanwhile(kill_a_node_once_there_is_a_checkpoint)
    result = playground.run(pod=QUICK_START)
    assert (result.exit_code, result.last_words, result.attempts) == (0, "", 2)
    assert 2 <= len(kept) < STEPS
    assert steps_of(training) == list(range(1, STEPS + 1))
    assert "was killed by signal 9" in playground.log_path.read_text()
    assert json.loads((training / "training.json").read_text())["results"]["num_steps"] == STEPS
    assert playground.left() == []


@pytest.mark.slow
def test_two_nodes_train_under_zero_3_as_a_train_job(trainer: Playground, training: Path) -> None:
    result = trainer.run("trainjob", pod=QUICK_START)
    assert (result.exit_code, result.last_words, result.attempts) == (0, "", 1)
    assert steps_of(training) == list(range(1, STEPS + 1))
    assert trainer.left() == []
