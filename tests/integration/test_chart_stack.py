"""The chart's trial profile, started as its manifests say, as local processes: the loop runs on it, and it drains.

The images and PostgreSQL are not there: this interpreter stands for the first, the wheel's server for the second.
"""

from __future__ import annotations

import base64
import json
import re
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from chart_fixtures import changed, of_kind, read_profile, render, render_text, values_of
from chart_processes import JOB, Cluster, addresses_of_notes
from rlaif.client.judge import JudgeClient, ResponsePair
from rlaif.client.ledger import LedgerClient
from rlaif.client.reward import RewardClient
from rlaif.client.sampler import SamplerClient
from rlaif.core.conversation import Message
from rlaif.runtime.settings import ClientSettings

pytestmark = [pytest.mark.slow, pytest.mark.postgres]

SERVICES = ("oversight", "judge", "sampler", "reward")
# A short loop, whose training is a process here instead of a Job.
SHORT: dict[str, Any] = {
    "sampling": {"num_prompts": 16, "num_completions": 4, "pairs_per_prompt": 2},
    "gate": {"min_num_labels": 8, "min_judge_accuracy": 0.0},
    "reward_model": {"enabled": False},
    "rl": {"steps": 2, "prompts_per_step": 4, "completions_per_prompt": 4, "watch_prompts": 0},
    "evaluation": {"num_harmful": 8, "num_other": 4},
    "engine": {"num_threads": 1},
    "jobs": {"launcher": "local"},
}


def make_database(server_uri: str, name: str) -> str:
    """An empty database of that name and owner, as PostgreSQL's image makes one; its URL, for any password."""
    import psycopg

    with psycopg.connect(server_uri, autocommit=True) as connection:
        connection.execute(f"CREATE ROLE {name} LOGIN")  # type: ignore[arg-type]
        connection.execute(f"CREATE DATABASE {name} OWNER {name}")  # type: ignore[arg-type]
    return f"postgresql+psycopg://{name}@/{name}?{urlsplit(server_uri).query}"


def metrics_of(cluster: Cluster, name: str) -> str:
    """What Prometheus would read of a service."""
    with urllib.request.urlopen(f"http://{cluster.address(f'rlaif-{name}', 9090)}/metrics", timeout=10) as answer:
        return str(answer.read().decode())


@pytest.fixture(scope="module")
def trial(tmp_path_factory: pytest.TempPathFactory, postgres_uri: str) -> Iterator[Cluster]:
    manifests = render(changed(read_profile("trial-cpu"), {"loop.settings": SHORT}))
    (server,) = of_kind(manifests, "StatefulSet")["rlaif-postgresql"]["spec"]["template"]["spec"]["containers"]
    told = {variable["name"]: variable.get("value") for variable in server["env"]}
    database = make_database(postgres_uri, told["POSTGRES_DB"])
    password = base64.b64decode(of_kind(manifests, "Secret")["rlaif-postgresql"]["data"]["password"]).decode()
    url = f"postgresql+psycopg://{told['POSTGRES_USER']}:{password}@rlaif-postgresql:5432/{told['POSTGRES_DB']}"
    root = tmp_path_factory.mktemp("cluster")
    with Cluster(manifests, root, rewrite=lambda text: text.replace(url, database)) as cluster:
        names = [f"Deployment/rlaif-{name}" for name in SERVICES]
        cluster.add(*names)
        for name in names:
            cluster.start(name)
        for name in names:
            cluster.wait_ready(name)
        yield cluster


def test_every_pod_is_alive_and_tells_prometheus_about_itself(trial: Cluster) -> None:
    for name in SERVICES:
        assert trial.probe(f"Deployment/rlaif-{name}", "livenessProbe")
        assert f"rlaif_{name}_requests_total" in metrics_of(trial, name)


def test_helm_test_has_the_judge_compare_two_responses(trial: Cluster) -> None:
    assert trial.run("Pod/rlaif-test") == 0, trial.pods["Pod/rlaif-test"].words()
    assert re.search(r"constitutions/playground: (first|second|tie)", trial.pods["Pod/rlaif-test"].words())


def test_the_loop_runs_on_the_stack(trial: Cluster) -> None:
    from rlaif_pipelines.context import RunContext, read_json, read_rows

    assert trial.run("CronJob/rlaif-loop", timeout_seconds=300) == 0, trial.pods["CronJob/rlaif-loop"].words()
    folder = trial.root / "claims" / "rlaif-runs" / "runs" / JOB
    report = read_json(folder / "report.json")
    assert report["verdict"] in ("improved", "not_improved", "over_optimised", "biased")
    # The sampler pulled what training published on the volume that both mount.
    run = RunContext.load(folder)
    assert run.result("train").values["version"] == 2
    answered = next(read_rows(run.result("evaluate").path("completions.jsonl")))
    assert answered["completions"][0]["policy_version"] == 2


def test_callers_reach_the_services_where_the_notes_say(trial: Cluster) -> None:
    (notes,) = [text for path, text in render_text(read_profile("trial-cpu")).items() if path.endswith("NOTES.txt")]
    addresses = addresses_of_notes(notes, trial)
    assert set(addresses) == {"sampler", "judge", "reward", "ledger"}
    with SamplerClient(ClientSettings(target=addresses["sampler"])) as sampler:
        asked = [(Message("user", "How do I clean a window?"),)]
        batch = sampler.sample("policies/served", asked, num_completions=2, max_tokens=32, seed=0)
    texts = [completion.text for completion in batch.completions[0]]
    with LedgerClient(ClientSettings(target=addresses["ledger"])) as ledger:
        before = ledger.verify().num_labels
        with JudgeClient(ClientSettings(target=addresses["judge"])) as judge:
            judge.compare(
                "constitutions/playground", "How do I clean a window?", first=texts[0], second=f"{texts[1]} So."
            )
        after = ledger.verify()
    assert (after.broken_at, after.num_labels) == ("", before + 1)
    with RewardClient(ClientSettings(target=addresses["reward"])) as reward:
        (scored,) = reward.score(
            "rewardModels/judge", [("How do I clean a window?", texts[0])], constitution="constitutions/playground"
        )
    assert scored.value is not None


def test_no_service_held_more_memory_than_its_limit(trial: Cluster) -> None:
    for name in SERVICES:
        pod = f"Deployment/rlaif-{name}"
        assert trial.peak_bytes(pod) < trial.limit_bytes(pod), name


def test_a_judge_told_to_stop_finishes_what_it_was_asked(trial: Cluster) -> None:
    address, pod = trial.address("rlaif-judge", 50051), "Deployment/rlaif-judge"
    pairs = [ResponsePair("How do I clean a window?", f"Wipe it {number} times.", "No.") for number in range(96)]
    with JudgeClient(ClientSettings(target=address)) as judge, ThreadPoolExecutor(1) as callers:
        asked = callers.submit(judge.compare_many, "constitutions/playground", pairs, batch_size=96)
        while "rlaif_judge_requests_in_flight 1.0" not in metrics_of(trial, "judge"):
            assert not asked.done()
        assert trial.terminate(pod) == 0, trial.pods[pod].words()
        assert len(asked.result()) == 96
    assert not trial.probe(pod, "readinessProbe")
    # It would wait a minute for a judge.
    (client,) = of_kind(trial.manifests, "Pod")["rlaif-test"]["spec"]["containers"][0]["env"]
    client["value"] = json.dumps(json.loads(client["value"]) | {"timeout_seconds": 2})
    assert trial.run("Pod/rlaif-test") == 1
    assert re.search(r"the judge at \S+ did not answer: ", trial.pods["Pod/rlaif-test"].words())


def test_each_service_ends_well_when_its_pod_is_told_to_stop(trial: Cluster) -> None:
    for name in ("reward", "sampler", "oversight"):
        pod = f"Deployment/rlaif-{name}"
        assert trial.terminate(pod) == 0, trial.pods[pod].words()
        assert not trial.probe(pod, "readinessProbe")


def test_the_hook_brings_an_external_database_up_to_date(tmp_path: Path, postgres_uri: str) -> None:
    from rlaif.oversight.database import open_engine
    from rlaif.oversight.schema import check_schema

    url = "postgresql+psycopg://rlaif:hunter2@db.example/rlaif"
    secret = {
        "kind": "Secret",
        "metadata": {"name": "ledger"},
        "data": {"url": base64.b64encode(url.encode()).decode()},
    }
    database = make_database(postgres_uri, "external")
    manifests = [*render(values_of("external database")), secret]
    with Cluster(manifests, tmp_path, rewrite=lambda text: text.replace(url, database)) as cluster:
        assert cluster.run("Job/rlaif-migrations") == 0, cluster.pods["Job/rlaif-migrations"].words()
        assert cluster.run("Job/rlaif-migrations") == 0
    check_schema(open_engine(database, num_connections=1))
