"""Runs on Kubeflow Pipelines, against an API on loopback whose requests and answers are the generated models."""

from __future__ import annotations

import json
import socket
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
import trustme
import yaml

from kfp_api import Answer, PipelinesApi
from kfp_server import serving
from kfp_workflow import Snapshot
from rlaif.cli import exits
from rlaif.core.errors import (
    DeadlineError,
    ForbiddenError,
    InvalidInputError,
    NotFoundError,
    QuotaExceededError,
    RlaifError,
    UnauthenticatedError,
    UnavailableError,
)
from rlaif_pipelines.submission import (
    Connection,
    Credentials,
    LogReader,
    Package,
    PipelinesClient,
    Trigger,
    check_parameters,
    find_connection,
    parameters_from,
    read_parameters,
)
from rlaif_pipelines.submission.failures import WrongHostError

SECRET = "tok-3n-of-the-test"
SPEC: dict[str, Any] = {
    "pipelineInfo": {"name": "tiny"},
    "root": {
        "dag": {
            "tasks": {
                "label": {"componentRef": {"name": "comp-label"}, "taskInfo": {"name": "label"}},
                "condition-1": {"componentRef": {"name": "comp-condition-1"}, "taskInfo": {"name": "gate-passed-1"}},
            }
        },
        "inputDefinitions": {
            "parameters": {
                "place": {"parameterType": "STRING"},
                "count": {"parameterType": "NUMBER_INTEGER", "defaultValue": 1.0, "isOptional": True},
                "rate": {"parameterType": "NUMBER_DOUBLE", "isOptional": True},
                "sure": {"parameterType": "BOOLEAN", "isOptional": True},
                "names": {"parameterType": "LIST", "isOptional": True},
                "services": {"parameterType": "STRUCT", "isOptional": True},
            }
        },
    },
    "components": {
        "comp-label": {"executorLabel": "exec-label"},
        "comp-condition-1": {"dag": {"tasks": {"train": {"componentRef": {"name": "comp-label"}}}}},
    },
    "deploymentSpec": {"executors": {"exec-label": {"container": {"image": "python:3.11"}}}},
    "schemaVersion": "2.1.0",
}
PACKAGE = Package.of_text(yaml.safe_dump(SPEC), source="tiny.yaml")
GIVEN = {"place": "/rlaif/runs/a"}


@pytest.fixture
def api() -> PipelinesApi:
    return PipelinesApi()


@contextmanager
def connected(api: PipelinesApi, **changes: Any) -> Iterator[PipelinesClient]:
    with serving(api) as address:
        connection = Connection(host=address, retry_pause_seconds=0.0, timeout_seconds=10.0)
        with PipelinesClient(replace(connection, **changes)) as client:
            yield client


def test_a_run_is_created_with_exactly_the_parameters_given(api: PipelinesApi) -> None:
    given = {"place": "/rlaif/runs/a", "rate": 2, "names": ["x"], "services": {"judge": "judge:50051"}}
    with connected(api) as client:
        run = client.submit(PACKAGE, given, experiment="mine", run_name="first", service_account="runner")
    [created] = api.runs.values()
    assert created.runtime_config.parameters == given
    assert (created.display_name, created.service_account) == ("first", "runner")
    assert api.experiments[created.experiment_id].display_name == "mine"
    version = api.versions[created.pipeline_version_reference.pipeline_version_id]
    assert (version.name, version.pipeline_spec) == (PACKAGE.version, SPEC)
    assert run.link == f"{client.connection.host}/#/runs/details/{created.run_id}"


def test_the_same_pipeline_is_uploaded_once_whatever_its_layout_and_a_changed_one_is_another_version(
    api: PipelinesApi,
) -> None:
    same = Package.of_text(json.dumps(SPEC, indent=3), source="tiny.yaml")
    changed = Package.of_text(yaml.safe_dump(SPEC | {"sdkVersion": "kfp-2.17.0"}), source="tiny.yaml")
    with connected(api) as client:
        uploads = [client.upload(package) for package in (PACKAGE, same, changed, changed)]
        client.submit(PACKAGE, GIVEN)
        client.submit(PACKAGE, GIVEN)
    assert [upload.is_new for upload in uploads] == [True, False, True, False]
    assert len({upload.pipeline_id for upload in uploads}) == 1
    assert len({upload.version_id for upload in uploads}) == 2
    assert api.paths().count("/apis/v2beta1/pipelines/upload_version") == 2
    assert api.paths().count("/apis/v2beta1/experiments") == 1


def test_wrong_parameters_are_refused_before_anything_is_sent(api: PipelinesApi) -> None:
    with connected(api) as client, pytest.raises(InvalidInputError) as caught:
        client.submit(PACKAGE, {"plaec": "x", "count": "two", "rate": True, "names": {}, "services": {"jugde": "a:1"}})
    assert caught.value.message == (
        "wrong parameters: there is no plaec; did you mean place?; count = 'two': must be a whole number; rate = True: "
        "must be a number; names = {}: must be a list, such as [1, 2]; missing: place (--param NAME=VALUE)"
    )
    theirs = GIVEN | {"services": {"mine": "a:1"}}  # of a pipeline that is none of ours
    assert check_parameters(theirs, definitions=PACKAGE.parameters) == theirs
    assert api.requests == []


def test_parameters_are_read_from_a_file_then_from_texts(tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    file.write_text("place: here\nservices: {judge: 'judge:50051', ledger: 'ledger:50051'}\nsure: null\n")
    values = parameters_from(
        PACKAGE.parameters,
        given=read_parameters(file),
        assignments=["place=007", "names=[a, b]", "services.judge=other:1", "rate=2.5"],
    )
    assert check_parameters(values, definitions=PACKAGE.parameters) == {
        "place": "007",  # the pipeline wants a text
        "services": {"judge": "other:1", "ledger": "ledger:50051"},
        "names": ["a", "b"],
        "rate": 2.5,
    }


@pytest.mark.parametrize(
    ("text", "said"),
    [("place", "--param place: must be NAME=VALUE"), ("place.x=1", "place holds a value"), ("names=[", "is not YAML")],
)
def test_a_malformed_parameter_is_named(text: str, said: str) -> None:
    with pytest.raises(InvalidInputError, match=said):
        parameters_from(PACKAGE.parameters, given=GIVEN, assignments=[text])


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"a: [", "run.yaml:1: is neither YAML nor JSON"),
        (b"- a", "must hold a mapping"),
        (b"\xff\xfe\xfd", "is not UTF-8 text"),
        (None, "cannot be read"),
    ],
)
def test_a_file_of_parameters_that_is_none_is_named(content: bytes | None, said: str, tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(InvalidInputError, match=said):
        read_parameters(file)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a: [", "is not YAML"),
        ("prompts: 3", "is no compiled pipeline; `rlaif compile -o FILE` writes one"),
        ("pipelineInfo: {name: x}\nroot: {dagg: {}}", "no pipeline that this version understands .*dagg"),
        ("", "is no compiled pipeline"),
    ],
)
def test_a_file_that_is_no_pipeline_is_named(text: str, said: str, tmp_path: Path) -> None:
    file = tmp_path / "x.yaml"
    file.write_text(text)
    with pytest.raises(InvalidInputError, match=said):
        Package.of_file(file)


JSON_404 = json.dumps({"code": 5, "message": "Run x not found", "details": []}).encode()
NO_ROUTE = json.dumps({"code": 5, "message": "Not Found", "details": []}).encode()


@pytest.mark.parametrize(
    ("status", "body", "kind", "code", "said"),
    [
        (302, b"", UnauthenticatedError, 1, r"sends us away to https://login\.example\.com, to a login page"),
        (401, b"", UnauthenticatedError, 1, r"\(401\): what the file token holds is wrong, or no longer valid"),
        (403, b'{"message": "no"}', ForbiddenError, 1, r"\(403\) in namespace team: .*kubeflow-pipelines-edit.*no$"),
        (404, NO_ROUTE, WrongHostError, 2, "is not the Kubeflow Pipelines API: it answers 404"),
        (404, b"404 page not found", WrongHostError, 2, "is not the Kubeflow Pipelines API"),
        (404, JSON_404, NotFoundError, 2, "there is no run x at .*; see `rlaif runs list`"),
        (400, b'{"error_message": "bad thing"}', InvalidInputError, 2, r"refused the request \(400\); it says: bad"),
        (429, b"", QuotaExceededError, 1, r"asked too often \(429\)"),
        (500, b"<html>oops</html>", UnavailableError, 1, r"failed \(500\)$"),
        (503, b"", UnavailableError, 1, r"cannot answer now \(503\).*kubectl get pods -l app=ml-pipeline"),
        (200, b"<!doctype html><title>Sign in</title>", WrongHostError, 2, "it answers with a web page"),
    ],
)
def test_each_refusal_is_one_useful_sentence_with_its_exit_code_and_shows_no_secret(
    api: PipelinesApi, status: int, body: bytes, kind: type[RlaifError], code: int, said: str
) -> None:
    kind_of_text = "text/html" if body.startswith(b"<") else "application/json"
    headers = {"Location": f"https://login.example.com/auth?token={SECRET}"} if status == 302 else {}
    api.fault = lambda _method, _path: Answer(status, body, kind_of_text, headers)
    credentials = Credentials(token=SECRET, source="the file token")
    with connected(api, credentials=credentials, namespace="team") as client, pytest.raises(kind, match=said) as caught:
        client.run("x")
    assert exits.exit_code_of(caught.value) == code
    assert SECRET not in exits.sentence(caught.value) + repr(caught.value) + repr(credentials)
    assert "\n" not in caught.value.message


def test_without_credentials_a_401_says_how_to_give_some(api: PipelinesApi) -> None:
    api.token = SECRET
    with connected(api) as client, pytest.raises(UnauthenticatedError, match=r"give --token-file .* or --header-file"):
        client.runs()


def test_reads_are_tried_again_and_writes_are_not(api: PipelinesApi) -> None:
    answers = iter([Answer(503, b""), Answer(502, b"")])
    api.fault = lambda _method, _path: next(answers, None)
    with connected(api) as client:
        assert client.runs().runs == ()
        client.submit(PACKAGE, GIVEN)
        api.fault = lambda method, path: Answer(503, b"") if (method, path[-5:]) == ("POST", "/runs") else None
        asked = len(api.requests)
        with pytest.raises(UnavailableError):
            client.submit(PACKAGE, GIVEN)
    assert len(api.runs) == 1
    assert [request.method for request in api.requests[asked:]] == ["GET"] * 3  # pipeline, version, experiment


def test_a_host_where_nothing_listens_and_one_that_never_answers_are_told_apart() -> None:
    with socket.create_server(("127.0.0.1", 0)) as mute:
        host = f"http://127.0.0.1:{mute.getsockname()[1]}"
        silent = PipelinesClient(Connection(host=host, timeout_seconds=0.05, retry_pause_seconds=0.0))
        with pytest.raises(DeadlineError, match=r"did not answer within 0\.05 s \(--timeout waits longer\)"):
            silent.runs()
        with pytest.raises(DeadlineError, match="it may have happened all the same: look before you ask again"):
            silent.cancel("x")
    with pytest.raises(UnavailableError, match=f"nothing listens at {host}; check --host"):
        silent.runs()


def test_tls_is_checked_against_the_file_of_certificates(api: PipelinesApi, tmp_path: Path) -> None:
    authority = trustme.CA()
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    with serving(api, tls=context) as address:
        trusting = find_connection(host=address, ca_file=tmp_path / "ca.pem", environment={})
        with PipelinesClient(trusting) as client:
            assert client.runs().runs == ()
        doubting, refused = (
            PipelinesClient(Connection(host=address)),
            pytest.raises(InvalidInputError, match="--ca-file"),
        )
        with doubting as client, refused:
            client.runs()
    with connected(api) as client:
        host = client.connection.host.replace("http:", "https:")
        with pytest.raises(WrongHostError, match="does not speak TLS"):
            PipelinesClient(Connection(host=host)).runs()


def test_a_token_is_read_anew_for_each_request_and_headers_go_with_it(api: PipelinesApi, tmp_path: Path) -> None:
    token, headers = tmp_path / "token", tmp_path / "headers"
    token.write_text("first\n")
    headers.write_text("Cookie: session=abc\n\nX-Team: red\n")
    with serving(api) as address:
        connection = find_connection(host=address, token_file=token, header_file=headers, environment={})
        with PipelinesClient(connection) as client:
            client.runs()
            token.write_text("second\n")  # as the kubelet does
            client.runs()
    sent = [request.headers for request in api.requests]
    assert [each["Authorization"] for each in sent] == ["Bearer first", "Bearer second"]
    assert {(each["Cookie"], each["X-Team"]) for each in sent} == {("session=abc", "red")}


def test_the_environment_names_what_options_do_not(tmp_path: Path) -> None:
    file = tmp_path / "token"
    file.write_text("abc")
    found = find_connection(environment={"RLAIF_KFP_HOST": "https://a.example/pipeline/", "RLAIF_KFP_TOKEN": " t\n"})
    assert (found.host, found.credentials.bearer()) == ("https://a.example/pipeline", "t")
    pod = {"KUBERNETES_SERVICE_HOST": "10.0.0.1", "KF_PIPELINES_SA_TOKEN_PATH": str(file)}
    found = find_connection(environment=pod)
    assert found.host == "http://ml-pipeline.kubeflow.svc.cluster.local:8888"
    assert found.credentials.bearer() == "abc"
    found = find_connection(host="http://localhost:1", token_file=file, environment={"RLAIF_KFP_TOKEN": "t"})
    assert found.credentials.bearer() == "abc"
    with pytest.raises(InvalidInputError, match="where is Kubeflow Pipelines"):
        find_connection(environment={})


@pytest.mark.parametrize(
    ("host", "said"),
    [
        ("http://kubeflow.example.com", "would be sent unencrypted; use https://"),
        ("http://10.0.0.7:31380", "would be sent unencrypted"),
        ("kubeflow.example.com", "begin it with https:// or http://"),
        ("https://me:secret@kubeflow.example.com", "holds a user or a password"),
        ("ftp://x", "is no address"),
        ("https://x/#/runs", "is no address"),
        ("https://x:port", "is no address"),
        ("http://[::1", "is no address"),
        ("http://a b", "is no address"),
        ("http://me:secret@[::1", "holds a user or a password"),
    ],
)
def test_hosts_that_will_not_do_are_refused(host: str, said: str) -> None:
    with pytest.raises(InvalidInputError, match=said) as caught:
        find_connection(host=host, environment={"RLAIF_KFP_TOKEN": SECRET})
    assert SECRET not in caught.value.message
    assert "me:secret" not in caught.value.message


def test_files_of_secrets_are_not_shown_when_they_are_wrong(tmp_path: Path) -> None:
    wrong = tmp_path / "wrong"
    wrong.write_text(f"no header but {SECRET}")
    with pytest.raises(InvalidInputError, match="wrong:1: must be a line such as") as caught:
        find_connection(host="https://x", header_file=wrong, environment={})
    assert SECRET not in str(caught.value)
    wrong.write_text(" \n")
    with pytest.raises(InvalidInputError, match=r"--token-file .*: is empty"):
        find_connection(host="https://x", token_file=wrong, environment={})
    with pytest.raises(InvalidInputError, match=r"--ca-file .*: holds no PEM certificates"):
        find_connection(host="https://x", ca_file=wrong, environment={})


def test_nodes_of_the_workflow_are_put_together_as_the_tasks_they_are(api: PipelinesApi) -> None:
    tasks = {"prepare": "SUCCEEDED", "sample": "SUCCEEDED", "label": "RUNNING", "train": "PENDING"}
    api.script = [Snapshot("RUNNING", tasks, cached=["prepare"], shards={"label": 3})]
    with connected(api) as client:
        run = client.run(client.submit(PACKAGE, GIVEN).run_id)
    assert [(task.name, task.state, task.cached, task.num_parts) for task in run.tasks] == [
        ("prepare", "SUCCEEDED", True, 1),
        ("sample", "SUCCEEDED", False, 1),
        ("label", "RUNNING", False, 3),
        ("train", "PENDING", False, 1),
    ]
    assert run.tasks[1].pods == ("rlaif-x7k2p-system-container-impl-1006",)
    assert run.tasks[1].seconds(datetime.now()) == 42.0  # noqa: DTZ005 - ended: the time now does not count
    assert run.tasks[3].seconds(datetime.now()) is None  # noqa: DTZ005
    assert not run.has_ended


def test_pods_are_guessed_where_the_api_names_none() -> None:
    api = PipelinesApi(names_pods=False)
    with connected(api) as client:
        run = client.run(client.submit(PACKAGE, GIVEN).run_id)
    assert [task.name for task in run.tasks] == ["prepare", "load-prompts", "label"]
    assert run.tasks[0].pods == (
        "rlaif-x7k2p-system-container-impl-1003",
        "rlaif-x7k2p-retry-system-container-impl-1003",
        "rlaif-x7k2p-1003",
    )


def test_a_failed_driver_is_its_task_s_failure_and_a_closed_gate_has_its_name(api: PipelinesApi) -> None:
    api.script = [Snapshot("FAILED", {"label": "SKIPPED"}, failed_drivers=["label"], skipped_groups=["condition-1"])]
    with connected(api) as client:
        run = client.run(client.submit(PACKAGE, GIVEN).run_id)
    assert run.failed_task is not None
    assert (run.failed_task.name, run.failed_task.error) == ("label", "the driver found no such claim")
    assert run.closed_gates == ("gate-passed-1",)


def test_the_last_attempt_of_a_task_comes_first(api: PipelinesApi) -> None:
    api.script = [Snapshot("RUNNING", {"label": "RUNNING"}, attempts={"label": 2})]
    with connected(api) as client:
        run = client.run(client.submit(PACKAGE, GIVEN).run_id)
    assert run.tasks[0].pods == (
        "rlaif-x7k2p-retry-system-container-impl-1005",
        "rlaif-x7k2p-retry-system-container-impl-1004",
    )


def test_following_ends_with_the_run_and_outlasts_an_api_that_is_away(api: PipelinesApi) -> None:
    api.script = [Snapshot(state, {"label": state}) for state in ("PENDING", "RUNNING", "SUCCEEDED")]
    pauses: list[float] = []

    def sleep(seconds: float) -> None:
        pauses.append(seconds)
        api.fault = (lambda _method, _path: Answer(503, b"")) if len(pauses) == 1 else (lambda _method, _path: None)

    with connected(api) as client:
        run_id = client.submit(PACKAGE, GIVEN).run_id
        states = [run.state for run in client.follow(run_id, pause_seconds=7.0, sleep=sleep)]
    assert states == ["PENDING", "RUNNING", "SUCCEEDED"]
    assert pauses == [7.0, 7.0, 7.0]


def test_following_gives_up_at_once_where_waiting_cannot_help(api: PipelinesApi) -> None:
    with connected(api) as client:
        run_id = client.submit(PACKAGE, GIVEN).run_id
        api.fault = lambda _method, _path: Answer(403, b"")
        with pytest.raises(ForbiddenError):
            next(client.follow(run_id))


def test_a_cancelled_run_ends(api: PipelinesApi) -> None:
    api.script = [Snapshot("RUNNING", {"label": "RUNNING"})]
    with connected(api) as client:
        run_id = client.submit(PACKAGE, GIVEN).run_id
        client.cancel(run_id)
        assert client.run(run_id).state == "CANCELED"
        with pytest.raises(NotFoundError, match="there is no run nope"):
            client.cancel("nope")


def test_runs_are_listed_by_page_experiment_and_state_the_latest_first(api: PipelinesApi) -> None:
    with connected(api) as client:
        ids = [client.submit(PACKAGE, GIVEN, experiment=name).run_id for name in ("a", "b", "a")]
        client.run(ids[0])
        first = client.runs(page_size=2)
        assert [run.run_id for run in first.runs] == [ids[2], ids[1]]
        assert [run.run_id for run in client.runs(page_size=2, page=first.next_page).runs] == [ids[0]]
        assert [run.run_id for run in client.runs(experiment="b").runs] == [ids[1]]
        assert [run.run_id for run in client.runs(state="SUCCEEDED").runs] == [ids[0]]
        with pytest.raises(NotFoundError, match="no experiment 'c'"):
            client.runs(experiment="c")


def test_logs_come_from_the_api_else_from_the_pods_else_both_say_why(
    api: PipelinesApi, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "none"))
    with connected(api) as client:
        run = client.run(client.submit(PACKAGE, GIVEN).run_id)
        task = run.tasks[2]
        with pytest.raises(
            NotFoundError, match=r"no log of task label: .*not found; the Kubernetes API: no way to the cluster"
        ):
            LogReader(client, run.run_id).read(task)
        monkeypatch.setenv("KUBECONFIG", str(kubeconfig(tmp_path, client.connection.host)))
        with pytest.raises(NotFoundError, match="no pod of the task is left in namespace team"):
            LogReader(client, run.run_id).read(task)
        api.pods = [
            pod(f"rlaif-x7k2p-{name}", run.run_id, node=f"rlaif-x7k2p.root.{name}.executor")
            for name in ("prepare", "label", "report")
        ]
        assert LogReader(client, run.run_id).read(task) == "printed by rlaif-x7k2p-label\n"
        api.logs[task.pods[0]] = "one\ntwo\n"
        assert LogReader(client, run.run_id).read(task) == "one\ntwo\n"


def kubeconfig(folder: Path, server: str) -> Path:
    config = {
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": "x",
        "clusters": [{"name": "x", "cluster": {"server": server}}],
        "contexts": [{"name": "x", "context": {"cluster": "x", "user": "x", "namespace": "team"}}],
        "users": [{"name": "x", "user": {}}],
    }
    path = folder / "kubeconfig"
    path.write_text(yaml.safe_dump(config))
    return path


def pod(name: str, run_id: str, *, node: str) -> dict[str, Any]:
    return {
        "metadata": {
            "name": name,
            "namespace": "team",
            "labels": {"pipeline/runid": run_id},
            "annotations": {"workflows.argoproj.io/node-name": node},
            "creationTimestamp": "2026-03-01T09:00:00Z",
        },
        "spec": {"containers": [{"name": "main"}]},
    }


def test_schedules_are_made_paused_resumed_and_deleted(api: PipelinesApi) -> None:
    with connected(api) as client:
        made = client.create_schedule(PACKAGE, GIVEN, when=Trigger.of_cron("0 3 * * 1-5"), name="nightly")
        client.create_schedule(PACKAGE, GIVEN, when=Trigger.of_interval("6h"), name="often")
        assert made.active
        client.pause_schedule(made.schedule_id)
        listed = client.schedules().schedules
        assert [(each.name, str(each.when), each.active) for each in listed] == [
            ("often", "every 21600 s", True),
            ("nightly", "0 0 3 * * 1-5", False),
        ]
        client.resume_schedule(made.schedule_id)
        assert client.schedules().schedules[1].active
        client.delete_schedule(made.schedule_id)
        with pytest.raises(NotFoundError, match=r"there is no schedule .*; see `rlaif schedule list`"):
            client.delete_schedule(made.schedule_id)
    [often] = api.schedules.values()
    assert (often.max_concurrency, often.no_catchup, often.runtime_config.parameters) == ("1", True, GIVEN)


@pytest.mark.parametrize("text", ["", "* * * *", "0 3 * * 1; rm", "@often", "every day"])
def test_a_cron_expression_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(InvalidInputError, match="--cron"):
        Trigger.of_cron(text)


@pytest.mark.parametrize("text", ["", "5s", "h", "1w", "-1h"])
def test_an_interval_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(InvalidInputError, match=r"--every .*at least a minute"):
        Trigger.of_interval(text)


def test_two_who_upload_at_once_get_the_same_version(api: PipelinesApi) -> None:
    barrier, found = threading.Barrier(2), []
    with connected(api) as client:
        client.upload(Package.of_text(yaml.safe_dump(SPEC | {"sdkVersion": "x"}), source="x"))

        def pause(method: str, path: str) -> None:
            if path.endswith("upload_version"):
                barrier.wait(timeout=10)

        api.fault = pause  # type: ignore[assignment]
        other = PipelinesClient(client.connection)
        thread = threading.Thread(target=lambda: found.append(other.upload(PACKAGE)))
        thread.start()
        found.append(client.upload(PACKAGE))
        thread.join()
    assert len({each.version_id for each in found}) == 1
    assert sorted(each.is_new for each in found) == [False, True]
