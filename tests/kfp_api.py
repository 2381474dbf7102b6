"""A Kubeflow Pipelines API whose requests and answers are kfp_server_api's own models.

It checks what it is sent as the API does: unknown fields and query parameters, names taken twice, parameters that the
uploaded pipeline does not define. `kfp_server` serves it.
"""

from __future__ import annotations

import base64
import itertools
import json
import re
import threading
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from types import SimpleNamespace
from typing import Any
from urllib.parse import unquote

import kfp_server_api as kfp
import yaml
from google.protobuf import json_format
from kfp.pipeline_spec import pipeline_spec_pb2

from kfp_workflow import DONE, NEVER, START, Snapshot, task_details

_PAGING = {"page_token", "page_size", "sort_by", "filter", "namespace"}
_CLIENT = kfp.ApiClient()


class RefusedError(Exception):
    """Answered as grpc-gateway answers errors."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status, self.message = status, message


@dataclass(frozen=True)
class Answer:
    """A whole answer, for faults."""

    status: int
    body: bytes
    content_type: str = "application/json"
    headers: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Request:
    """What came."""

    method: str
    path: str
    query: Mapping[str, str]
    headers: Mapping[str, str]
    body: Any


class PipelinesApi:
    """The state behind the server. `script` is what the next runs go through, one snapshot each time one is read."""

    def __init__(self, *, token: str = "", names_pods: bool = True) -> None:
        self.token = token
        self.names_pods = names_pods
        self.requests: list[Request] = []
        self.pipelines: dict[str, Any] = {}
        self.versions: dict[str, Any] = {}
        self.specs: dict[str, tuple[dict[str, Any], pipeline_spec_pb2.PipelineSpec]] = {}
        self.experiments: dict[str, Any] = {}
        self.runs: dict[str, Any] = {}
        self.schedules: dict[str, Any] = {}
        self.script: Sequence[Snapshot] = (DONE,)
        self.logs: dict[str, str] = {}
        """By name of the pod."""
        self.pods: list[dict[str, Any]] = []
        """What the Kubernetes API, served beside, has."""
        self.fault: Callable[[str, str], Answer | None] = lambda _method, _path: None
        self._scripts: dict[str, Iterator[Snapshot]] = {}
        self._latest: dict[str, Snapshot] = {}
        self._clock = itertools.count()
        self._lock = threading.Lock()

    def paths(self, method: str = "POST") -> list[str]:
        """Paths of the requests that came, of one method."""
        return [request.path for request in self.requests if request.method == method]

    def answer(self, request: Request) -> Any:
        with self._lock:
            self.requests.append(request)
            if self.token and request.headers.get("Authorization") != f"Bearer {self.token}":
                raise RefusedError(401, "Request header error: there is no user identity header.")
            for method, pattern, handler in _ROUTES:
                found = re.fullmatch(pattern, request.path)
                if found and method == request.method:
                    return handler(self, request, **{name: unquote(text) for name, text in found.groupdict().items()})
        raise RefusedError(404, "Not Found")

    def create_pipeline(self, request: Request) -> Any:
        given = _model(request.body, "V2beta1Pipeline")
        self._check_free(self.pipelines, given.display_name, what="pipeline")
        given.pipeline_id, given.created_at = str(uuid.uuid4()), self._now()
        self.pipelines[given.pipeline_id] = given
        return given

    def list_pipelines(self, request: Request) -> Any:
        found, page = _page(self.pipelines, request)
        return kfp.V2beta1ListPipelinesResponse(pipelines=found, next_page_token=page, total_size=len(self.pipelines))

    def upload_version(self, request: Request) -> Any:
        _check_query(request, {"name", "display_name", "description", "pipelineid", "tags"})
        pipeline_id = request.query.get("pipelineid", "")
        if pipeline_id not in self.pipelines:
            raise RefusedError(400, "Failed to create a pipeline version")
        name, text = request.query["name"], request.body["uploadfile"].decode()
        self._check_free(
            {key: each for key, each in self.versions.items() if each.pipeline_id == pipeline_id}, name, what="version"
        )
        documents = list(yaml.load_all(text, getattr(yaml, "CSafeLoader", yaml.SafeLoader)))
        spec = json_format.ParseDict(documents[0], pipeline_spec_pb2.PipelineSpec())
        version = kfp.V2beta1PipelineVersion(
            pipeline_id=pipeline_id,
            pipeline_version_id=str(uuid.uuid4()),
            name=name,
            display_name=name,
            created_at=self._now(),
            pipeline_spec=documents[0] if len(documents) == 1 else dict(zip(_DOCUMENTS, documents, strict=True)),
        )
        self.versions[version.pipeline_version_id] = version
        self.specs[version.pipeline_version_id] = (documents[0], spec)
        return version

    def list_versions(self, request: Request, *, pipeline_id: str) -> Any:
        own = {key: each for key, each in self.versions.items() if each.pipeline_id == pipeline_id}
        found, page = _page(own, request)
        return kfp.V2beta1ListPipelineVersionsResponse(
            pipeline_versions=found, next_page_token=page, total_size=len(own)
        )

    def get_version(self, request: Request, *, pipeline_id: str, version_id: str) -> Any:
        del request, pipeline_id
        return _get(self.versions, version_id, "PipelineVersion")

    def create_experiment(self, request: Request) -> Any:
        given = _model(request.body, "V2beta1Experiment")
        self._check_free(self.experiments, given.display_name, what="experiment")
        given.experiment_id, given.created_at = str(uuid.uuid4()), self._now()
        self.experiments[given.experiment_id] = given
        return given

    def list_experiments(self, request: Request) -> Any:
        found, page = _page(self.experiments, request)
        return kfp.V2beta1ListExperimentsResponse(
            experiments=found, next_page_token=page, total_size=len(self.experiments)
        )

    def create_run(self, request: Request) -> Any:
        given = _model(request.body, "V2beta1Run")
        self._check_parameters(given)
        given.run_id, given.created_at, given.state = str(uuid.uuid4()), self._now(), "PENDING"
        given.finished_at = NEVER
        self.runs[given.run_id] = given
        self._scripts[given.run_id] = iter(tuple(self.script))
        self._latest[given.run_id] = Snapshot("PENDING", {})
        return given

    def list_runs(self, request: Request) -> Any:
        own = {
            key: run
            for key, run in self.runs.items()
            if request.query.get("experiment_id") in (None, run.experiment_id)
        }
        found, page = _page(own, request, more={"experiment_id"})
        return kfp.V2beta1ListRunsResponse(runs=found, next_page_token=page, total_size=len(own))

    def get_run(self, request: Request, *, run_id: str) -> Any:
        del request
        run = _get(self.runs, run_id, "Run")
        snapshot = self._latest[run_id] = next(self._scripts[run_id], self._latest[run_id])
        if run.state in ("CANCELING", "CANCELED"):
            run.state = "CANCELED"
        else:
            run.state = snapshot.state
        ended = run.state in ("SUCCEEDED", "FAILED", "CANCELED")
        run.finished_at = START + timedelta(minutes=10) if ended else NEVER
        run.error = kfp.GoogleRpcStatus(code=2, message=snapshot.error) if snapshot.error else None
        run.run_details = kfp.V2beta1RunDetails(task_details=task_details(snapshot, names_pods=self.names_pods))
        return run

    def terminate_run(self, request: Request, *, run_id: str) -> Any:
        del request
        run = _get(self.runs, run_id, "Run")
        if run.state in ("SUCCEEDED", "FAILED", "CANCELED"):
            raise RefusedError(400, f"Failed to terminate the run {run_id}: it has ended")
        run.state = "CANCELING"
        return {}

    def create_schedule(self, request: Request) -> Any:
        given = _model(request.body, "V2beta1RecurringRun")
        self._check_parameters(given)
        if not 1 <= int(given.max_concurrency or 0) <= 10:
            raise RefusedError(400, "Max concurrency of a recurring run must be at leas 1 and at most 10.")
        given.recurring_run_id, given.created_at = str(uuid.uuid4()), self._now()
        given.status = "ENABLED" if given.mode == "ENABLE" else "DISABLED"
        self.schedules[given.recurring_run_id] = given
        return given

    def list_schedules(self, request: Request) -> Any:
        found, page = _page(self.schedules, request)
        return kfp.V2beta1ListRecurringRunsResponse(
            recurring_runs=found, next_page_token=page, total_size=len(self.schedules)
        )

    def change_schedule(self, request: Request, *, schedule_id: str, verb: str) -> Any:
        del request
        _get(self.schedules, schedule_id, "Job").status = {"enable": "ENABLED", "disable": "DISABLED"}[verb]
        return {}

    def delete_schedule(self, request: Request, *, schedule_id: str) -> Any:
        del request
        _get(self.schedules, schedule_id, "Job")
        del self.schedules[schedule_id]
        return {}

    def read_log(self, request: Request, *, run_id: str, pod: str) -> Any:
        del request
        _get(self.runs, run_id, "Run")
        if pod not in self.logs:
            body = json.dumps({"error_message": f'pods "{pod}" not found', "error_details": "…"}).encode()
            return Answer(500, body)
        return Answer(200, self.logs[pod].encode(), "text/plain")

    def list_pods(self, request: Request, *, namespace: str) -> Any:
        label, _, value = request.query["labelSelector"].partition("=")
        chosen = [
            pod
            for pod in self.pods
            if pod["metadata"]["namespace"] == namespace and pod["metadata"]["labels"].get(label) == value
        ]
        return {"kind": "PodList", "apiVersion": "v1", "metadata": {"resourceVersion": "1"}, "items": chosen}

    def read_pod_log(self, request: Request, *, namespace: str, pod: str) -> Any:
        if request.query.get("container") != "main":
            raise RefusedError(400, f"a container name must be specified for pod {pod} in {namespace}")
        return Answer(200, f"2026-03-01T09:00:00.000000000Z printed by {pod}\n".encode(), "text/plain")

    def _check_parameters(self, given: Any) -> None:
        reference = given.pipeline_version_reference
        _, spec = self.specs[reference.pipeline_version_id]
        defined = spec.root.input_definitions.parameters
        values = given.runtime_config.parameters or {}
        for name in values:
            if name not in defined:
                raise RefusedError(400, f"parameter {name} is not found in the pipeline spec")
        for name, each in defined.items():
            if name not in values and not each.is_optional and not each.HasField("default_value"):
                raise RefusedError(400, f"missing parameter {name}")
        if given.experiment_id not in self.experiments:
            raise RefusedError(404, f"Experiment {given.experiment_id} not found")

    def _check_free(self, known: Mapping[str, Any], name: str, *, what: str) -> None:
        if any(each.display_name == name for each in known.values()):
            raise RefusedError(409, f"Already exist error: a {what} of the name {name} exists")

    def _now(self) -> datetime:
        return START + timedelta(seconds=next(self._clock))


_DOCUMENTS = ("pipeline_spec", "platform_spec")
_ID = r"[^/:]+"
_ROUTES: tuple[tuple[str, str, Callable[..., Any]], ...] = (
    ("POST", "/apis/v2beta1/pipelines", PipelinesApi.create_pipeline),
    ("GET", "/apis/v2beta1/pipelines", PipelinesApi.list_pipelines),
    ("POST", "/apis/v2beta1/pipelines/upload_version", PipelinesApi.upload_version),
    ("GET", rf"/apis/v2beta1/pipelines/(?P<pipeline_id>{_ID})/versions", PipelinesApi.list_versions),
    (
        "GET",
        rf"/apis/v2beta1/pipelines/(?P<pipeline_id>{_ID})/versions/(?P<version_id>{_ID})",
        PipelinesApi.get_version,
    ),
    ("POST", "/apis/v2beta1/experiments", PipelinesApi.create_experiment),
    ("GET", "/apis/v2beta1/experiments", PipelinesApi.list_experiments),
    ("POST", "/apis/v2beta1/runs", PipelinesApi.create_run),
    ("GET", "/apis/v2beta1/runs", PipelinesApi.list_runs),
    ("GET", rf"/apis/v2beta1/runs/(?P<run_id>{_ID})", PipelinesApi.get_run),
    ("POST", rf"/apis/v2beta1/runs/(?P<run_id>{_ID}):terminate", PipelinesApi.terminate_run),
    ("POST", "/apis/v2beta1/recurringruns", PipelinesApi.create_schedule),
    ("GET", "/apis/v2beta1/recurringruns", PipelinesApi.list_schedules),
    (
        "POST",
        rf"/apis/v2beta1/recurringruns/(?P<schedule_id>{_ID}):(?P<verb>enable|disable)",
        PipelinesApi.change_schedule,
    ),
    ("DELETE", rf"/apis/v2beta1/recurringruns/(?P<schedule_id>{_ID})", PipelinesApi.delete_schedule),
    ("GET", rf"/apis/v1alpha1/runs/(?P<run_id>{_ID})/nodes/(?P<pod>{_ID})/log", PipelinesApi.read_log),
    ("GET", rf"/api/v1/namespaces/(?P<namespace>{_ID})/pods", PipelinesApi.list_pods),
    ("GET", rf"/api/v1/namespaces/(?P<namespace>{_ID})/pods/(?P<pod>{_ID})/log", PipelinesApi.read_pod_log),
)


def plain(answer: Any) -> Any:
    """A model as plain values."""
    return _CLIENT.sanitize_for_serialization(answer)


def _model(body: Any, kind: str) -> Any:
    """The body as a model; unknown fields are refused, at any depth that models have."""
    model = _CLIENT.deserialize(SimpleNamespace(data=json.dumps(body)), kind)
    for name in _unknown(body, plain(model)):
        raise RefusedError(400, f"unknown field {name!r}")
    return model


def _unknown(given: Any, known: Any) -> Iterator[str]:
    if isinstance(given, dict) and isinstance(known, dict):
        for name, value in given.items():
            if name not in known:
                yield name
            else:
                yield from _unknown(value, known[name])


def _check_query(request: Request, known: set[str]) -> None:
    unknown = set(request.query) - known
    if unknown:
        raise RefusedError(400, f"unknown query parameter {sorted(unknown)[0]}")


def _page(known: Mapping[str, Any], request: Request, *, more: set[str] = frozenset()) -> tuple[list[Any], str]:  # type: ignore[assignment]
    _check_query(request, _PAGING | more)
    chosen = [each for each in known.values() if _passes(each, request.query.get("filter"))]
    if request.query.get("sort_by") == "created_at desc":
        chosen.sort(key=lambda each: each.created_at, reverse=True)
    token = request.query.get("page_token")
    start = int(base64.b64decode(token)) if token else 0
    end = start + int(request.query.get("page_size") or 20)
    return chosen[start:end], base64.b64encode(str(end).encode()).decode() if end < len(chosen) else ""


def _passes(each: Any, text: str | None) -> bool:
    if not text:
        return True
    return all(getattr(each, key) == value for key, value in _filter(json.loads(text)))


def _filter(given: Mapping[str, Any]) -> list[tuple[str, str]]:
    for predicate in given["predicates"]:
        if set(predicate) != {"operation", "key", "stringValue"} or predicate["operation"] != "EQUALS":
            raise RefusedError(400, f"Invalid filter {predicate}")
    return [(predicate["key"], predicate["stringValue"]) for predicate in given["predicates"]]


def _get(known: Mapping[str, Any], key: str, what: str) -> Any:
    if key not in known:
        raise RefusedError(404, f"ResourceNotFoundError: {what} {key} not found")
    return known[key]
