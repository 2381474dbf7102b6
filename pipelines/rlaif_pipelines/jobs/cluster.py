"""The Kubernetes API as plain objects; the only importer of the `kubernetes` library.

Paths instead of its typed clients: they know no TrainJob, and drop fields that they do not know.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, NamedTuple

import urllib3
from kubernetes import client, config

from rlaif.core.errors import RlaifError, SettingsError

_NAMESPACE_FILE: Final = Path("/var/run/secrets/kubernetes.io/serviceaccount/namespace")
_RETRIED: Final = frozenset({429, 500, 502, 503, 504})
_TIMEOUT: Final = (10.0, 30.0)
"""Seconds to connect and between two pieces of an answer."""
_log = logging.getLogger(__name__)


class Kind(NamedTuple):
    """Where objects of a kind are, and what a Role calls them."""

    root: str
    plural: str


JOBS: Final = Kind("/apis/batch/v1", "jobs")
TRAIN_JOBS: Final = Kind("/apis/trainer.kubeflow.org/v1alpha1", "trainjobs")
SERVICES: Final = Kind("/api/v1", "services")
PODS: Final = Kind("/api/v1", "pods")
EVENTS: Final = Kind("/api/v1", "events")

Object = dict[str, Any]


class ClusterError(RlaifError, RuntimeError):
    """The API server refused a request, or cannot be reached; `status` is its HTTP status, 0 without an answer."""

    reason = "CLUSTER_REFUSED"

    def __init__(self, message: str, *, status: int, reason: str | None = None) -> None:
        super().__init__(message, reason=reason)
        self.status = status


@dataclass(frozen=True)
class Listing:
    """Objects of a kind, and the version of the cluster from which a watch goes on."""

    items: tuple[Object, ...]
    version: str


class Cluster:
    """One namespace of a cluster. Requests that the server is too busy for are tried again."""

    def __init__(
        self,
        api: client.ApiClient,
        *,
        namespace: str,
        own_namespace: str | None = None,
        patience_seconds: float = 60.0,
    ) -> None:
        self.namespace = namespace
        self.own_namespace = own_namespace
        """That of the pod this runs in; None elsewhere."""
        self._api = api
        self.patience_seconds = patience_seconds
        """How long a server that is busy or away is asked again."""

    @classmethod
    def connect(cls, *, namespace: str | None = None, context: str | None = None) -> Cluster:
        """By the pod's service account where this runs in a pod, else by the kubeconfig; SettingsError without either.

        Without `namespace` the pod's own, or the kubeconfig context's.
        """
        configuration, own = client.Configuration(), None
        try:
            if context is None and "KUBERNETES_SERVICE_HOST" in os.environ:
                config.load_incluster_config(client_configuration=configuration)
                found = own = _NAMESPACE_FILE.read_text(encoding="utf-8").strip()
            else:
                file = os.environ.get("KUBECONFIG")  # the library reads it when it is imported, and never again
                config.load_kube_config(file, context=context, client_configuration=configuration)
                contexts, current = config.list_kube_config_contexts(file)
                named = current if context is None else next(c for c in contexts if c["name"] == context)
                found = named["context"].get("namespace", "default")
        except (config.ConfigException, OSError) as error:
            raise SettingsError(
                f"no way to the cluster: {error}; run in a pod with a service account, or set KUBECONFIG",
                field="jobs.context",
            ) from error
        configuration.retries = False
        return cls(client.ApiClient(configuration), namespace=namespace or found, own_namespace=own)

    def create(self, kind: Kind, body: Mapping[str, Any]) -> Object:
        """The object as the cluster has it; its name must be unused, and the cluster must know all its fields."""
        try:
            return self._call("POST", self._path(kind), query=[("fieldValidation", "Strict")], body=dict(body))
        except ClusterError as error:
            # Names are ours alone: an earlier try of this call was heard though its answer was lost.
            if error.status == 409 and (found := self.get(kind, body["metadata"]["name"])) is not None:
                return found
            raise

    def get(self, kind: Kind, name: str) -> Object | None:
        """The object; None when there is none."""
        try:
            return self._call("GET", self._path(kind, name))
        except ClusterError as error:
            if error.status == 404:
                return None
            raise

    def find(self, kind: Kind, *, labels: str = "", fields: str = "") -> Listing:
        """All that match the selectors."""
        query = [("labelSelector", labels), ("fieldSelector", fields)]
        found = self._call("GET", self._path(kind), query=[(name, value) for name, value in query if value])
        return Listing(tuple(found["items"]), found["metadata"]["resourceVersion"])

    def watch(self, kind: Kind, *, labels: str, version: str, seconds: int) -> Iterator[tuple[str, Object]]:
        """What changes after that version, for that long: (ADDED, MODIFIED, DELETED or BOOKMARK, object).

        ClusterError with status 410 when the version is too old to go on from, 0 when the connection breaks.
        """
        query = [("labelSelector", labels), ("resourceVersion", version), ("timeoutSeconds", str(seconds))]
        query += [("watch", "true"), ("allowWatchBookmarks", "true")]
        timeout = (_TIMEOUT[0], seconds + _TIMEOUT[1])
        with self._stream(self._path(kind), query=query, timeout=timeout) as lines:
            for line in lines:
                event = json.loads(line)
                if event["type"] == "ERROR":
                    status = event["object"]
                    raise ClusterError(str(status.get("message")), status=int(status.get("code") or 500))
                yield event["type"], event["object"]

    def delete(self, kind: Kind, name: str) -> None:
        """Asks for the object's end, and before it for that of all it owns; done when there is none."""
        try:
            options = {"apiVersion": "v1", "kind": "DeleteOptions", "propagationPolicy": "Foreground"}
            self._call("DELETE", self._path(kind, name), body=options)
        except ClusterError as error:
            if error.status != 404:
                raise

    @contextlib.contextmanager
    def log(
        self, pod: str, *, container: str, since: str | None = None, num_lines: int | None = None, follow: bool = False
    ) -> Iterator[Iterator[bytes]]:
        """Lines of a container's log, each behind the time it was written, without line ends.

        From `since` on, or the last `num_lines`, or all; with `follow` also those that are still to come.
        """
        query = [("container", container), ("timestamps", "true"), ("follow", str(follow).lower())]
        query += [("sinceTime", since)] if since else []
        query += [("tailLines", str(num_lines))] if num_lines else []
        path = f"{self._path(PODS, pod)}/log"
        with self._stream(path, query=query, timeout=(_TIMEOUT[0], 60.0)) as lines:
            yield lines

    def _path(self, kind: Kind, name: str = "") -> str:
        path = f"{kind.root}/namespaces/{self.namespace}/{kind.plural}"
        return f"{path}/{name}" if name else path

    def _call(
        self, method: str, path: str, *, query: list[tuple[str, str]] | None = None, body: Object | None = None
    ) -> Object:
        deadline, pause = time.monotonic() + self.patience_seconds, 0.5
        while True:
            try:
                return self._send(method, path, query=query, body=body, response_type="object", timeout=_TIMEOUT)
            except ClusterError as error:
                if error.status not in (0, *_RETRIED) or time.monotonic() + pause > deadline:
                    raise
                _log.warning("the cluster is asked again", extra={"path": path, "status": error.status})
            time.sleep(pause)
            pause = min(2 * pause, 10.0)

    @contextlib.contextmanager
    def _stream(
        self, path: str, *, query: list[tuple[str, str]], timeout: tuple[float, float]
    ) -> Iterator[Iterator[bytes]]:
        response = self._send("GET", path, query=query, timeout=timeout, _preload_content=False)
        try:
            yield _lines(response)
        except (urllib3.exceptions.HTTPError, OSError) as error:
            raise ClusterError(f"the connection to the cluster broke: {error}", status=0) from error
        finally:
            response.close()
            response.release_conn()

    def _send(
        self,
        method: str,
        path: str,
        *,
        query: list[tuple[str, str]] | None,
        timeout: tuple[float, float],
        body: Object | None = None,
        **more: Any,
    ) -> Any:
        headers = {"Accept": "application/json", "Content-Type": "application/json"}
        try:
            answer = self._api.call_api(
                path,
                method,
                query_params=query,
                header_params=headers,
                body=body,
                auth_settings=["BearerToken"],
                _return_http_data_only=True,
                _request_timeout=timeout,
                **more,
            )
        except client.ApiException as error:
            raise ClusterError(_explain(error), status=error.status or 0, reason=_reason(error)) from error
        except (urllib3.exceptions.HTTPError, OSError) as error:
            raise ClusterError(f"the cluster cannot be reached: {error}", status=0, reason="UNREACHABLE") from error
        return answer


def _lines(response: Any) -> Iterator[bytes]:
    rest = b""
    for chunk in response.stream(amt=None, decode_content=False):
        *whole, rest = (rest + chunk).split(b"\n")
        yield from whole
    if rest:
        yield rest


def _reason(error: client.ApiException) -> str:
    return "UNREACHABLE" if error.status in _RETRIED else "CLUSTER_REFUSED"


def _explain(error: client.ApiException) -> str:
    """The API server's own sentence, which names the admission rule, quota, right or field."""
    try:
        told = str(json.loads(error.body)["message"])
    except (TypeError, ValueError, KeyError):
        told = f"{error.status} {error.reason}"
    return f"the cluster does not know who asks: {told}" if error.status == 401 else told
