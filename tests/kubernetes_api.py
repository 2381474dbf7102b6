"""A Kubernetes API server over HTTP, in memory: what a client and controllers see of a real one.

kmock speaks HTTP and takes requests apart. Of its own store nothing is used: this one has versions that watches go on
from, selectors, strict fields, admission, rights, owners and foreground deletion. Controllers are elsewhere
(kubernetes_nodes.py) and act on the store, as theirs do on a real one.
"""

from __future__ import annotations

import asyncio
import copy
import threading
import time
import uuid
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from datetime import UTC, datetime
from typing import Any

import kmock

from kubernetes_schemas import problems

Object = dict[str, Any]
KUBERNETES = "1.36"
_KINDS = {
    "jobs": ("batch/v1", "Job"),
    "pods": ("v1", "Pod"),
    "services": ("v1", "Service"),
    "events": ("v1", "Event"),
    "trainjobs": ("trainer.kubeflow.org/v1alpha1", "TrainJob"),
    "trainingruntimes": ("trainer.kubeflow.org/v1alpha1", "TrainingRuntime"),
    "jobsets": ("jobset.x-k8s.io/v1alpha2", "JobSet"),
}


class Refused(Exception):  # noqa: N818 - it is an answer
    """What an admission controller says no with."""

    def __init__(self, message: str, *, status: int = 403) -> None:
        super().__init__(message)
        self.message = message
        self.status = status


class Store:
    """Objects and all that ever happened to them. Any thread may call; what it gives are copies."""

    def __init__(self) -> None:
        self.admission: list[Callable[[str, Object], None]] = []
        self._lock = threading.RLock()
        self._objects: dict[tuple[str, str], Object] = {}
        self._history: list[tuple[int, str, str, Object]] = []
        self._version = 1
        self._oldest = 0

    @property
    def version(self) -> int:
        return self._version

    def create(self, plural: str, body: Mapping[str, Any]) -> Object:
        with self._lock:
            made = copy.deepcopy(dict(body))
            meta = made.setdefault("metadata", {})
            if "name" not in meta:
                meta["name"] = meta["generateName"] + uuid.uuid4().hex[:5]
            if (plural, meta["name"]) in self._objects:
                raise Refused(f'{plural} "{meta["name"]}" already exists', status=409)
            for check in self.admission:
                check(plural, made)
            version, kind = _KINDS[plural]
            made |= {"apiVersion": version, "kind": kind}
            now = datetime.now(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
            meta |= {"uid": str(uuid.uuid4()), "creationTimestamp": now, "namespace": "training"}
            self._objects[plural, meta["name"]] = made
            self._happened("ADDED", plural, made)
            return copy.deepcopy(made)

    def get(self, plural: str, name: str) -> Object | None:
        with self._lock:
            return copy.deepcopy(self._objects.get((plural, name)))

    def find(self, plural: str, *, labels: str = "", fields: str = "") -> list[Object]:
        with self._lock:
            found = [made for (kind, _), made in self._objects.items() if kind == plural]
            return [copy.deepcopy(made) for made in found if _matches(made, labels, fields)]

    def update(self, plural: str, name: str, change: Callable[[Object], None]) -> Object | None:
        """Applies the change to the object; None when it is not there any more."""
        with self._lock:
            made = self._objects.get((plural, name))
            if made is None:
                return None
            before = copy.deepcopy(made)
            change(made)
            if made != before:
                self._happened("MODIFIED", plural, made)
            return copy.deepcopy(made)

    def delete(self, plural: str, name: str, *, foreground: bool = False) -> bool:
        """Marks pods, and what waits for what it owns; removes everything else."""
        with self._lock:
            made = self._objects.get((plural, name))
            if made is None:
                return False
            running = plural == "pods" and "nodeName" in made["spec"] and phase(made) in ("Pending", "Running")
            if running or (foreground and self._owned_by(made)):
                self.update(plural, name, _marked_for_deletion)
            else:
                self.remove(plural, name)
            return True

    def remove(self, plural: str, name: str) -> None:
        """Takes it out at once, as when the last finaliser is gone."""
        with self._lock:
            made = self._objects.pop((plural, name), None)
            if made is not None:
                self._happened("DELETED", plural, made)

    def collect_garbage(self) -> None:
        """Deletes what is owned by what is gone or goes, then what waited for that."""
        with self._lock:
            alive = {made["metadata"]["uid"]: made for made in self._objects.values()}
            for (plural, name), made in list(self._objects.items()):
                owners = made["metadata"].get("ownerReferences") or ()
                leaving = [
                    owner["uid"] not in alive or "deletionTimestamp" in alive[owner["uid"]]["metadata"]
                    for owner in owners
                ]
                if leaving and all(leaving) and "deletionTimestamp" not in made["metadata"]:
                    self.delete(plural, name, foreground=True)
            for (plural, name), made in list(self._objects.items()):
                if plural != "pods" and "deletionTimestamp" in made["metadata"] and not self._owned_by(made):
                    self.remove(plural, name)

    def since(self, version: int) -> list[tuple[int, str, str, Object]] | None:
        """What happened after that version; None when it is not known any more."""
        with self._lock:
            if version < self._oldest:
                return None
            return [entry for entry in self._history if entry[0] > version]

    def forget_history(self) -> None:
        """As etcd's compaction does: watches that go on from an earlier version are told 410."""
        with self._lock:
            self._version += 1
            self._oldest = self._version
            self._history.clear()

    def _owned_by(self, owner: Object) -> list[Object]:
        uid = owner["metadata"]["uid"]
        return [
            made
            for made in self._objects.values()
            if any(reference["uid"] == uid for reference in made["metadata"].get("ownerReferences") or ())
        ]

    def _happened(self, event: str, plural: str, made: Object) -> None:
        self._version += 1
        made["metadata"]["resourceVersion"] = str(self._version)
        self._history.append((self._version, event, plural, copy.deepcopy(made)))


class ApiServer(kmock.KubernetesScaffold):
    """The store over HTTP. `rules` are those of the Role of who calls; None lets everybody do everything."""

    def __init__(self, store: Store) -> None:
        super().__init__()
        self.store = store
        self.rules: list[Object] | None = None
        self.requested: list[tuple[str, str]] = []
        """(resource, verb) of what was asked for."""
        self.log: Callable[[str, Mapping[str, str]], AsyncIterator[bytes]] | None = None
        self.patience = 0.1
        """Share of its time after which a watch ends, so that tests need not wait for it."""
        self.unknown: set[str] = set()
        """Kinds that are not installed."""
        self.unavailable = 0
        """Requests that are answered with 503, counted down."""
        self.cut_watches = 0
        """Watches whose connection breaks at the next event, counted down."""
        self.cut_logs = 0
        """Logs whose connection breaks after two lines, counted down."""
        self.fallback[kmock.action.LIST] << self._list
        self.fallback[kmock.action.WATCH] << self._watch
        self.fallback[kmock.action.FETCH] << self._fetch
        self.fallback[kmock.action.CREATE] << self._create
        self.fallback[kmock.action.DELETE] << self._delete

    def _allow(self, request: kmock.Request, verb: str) -> str:
        if self.unavailable:
            self.unavailable -= 1
            raise _error(503, "etcdserver: leader changed")
        plural = str(request.resource.plural)
        if plural in self.unknown:
            raise _error(404, "the server could not find the requested resource")
        resource = f"{plural}/{request.subresource}" if request.subresource else plural
        self.requested.append((resource, verb))
        group = request.resource.group
        if self.rules is not None and not any(
            group in rule["apiGroups"] and resource in rule["resources"] and verb in rule["verbs"]
            for rule in self.rules
        ):
            raise _error(403, f'{resource} is forbidden: User "launcher" cannot {verb} resource "{resource}"')
        return plural

    async def _list(self, request: kmock.Request) -> Object:
        plural = self._allow(request, "list")
        query = request.params
        items = self.store.find(plural, labels=query.get("labelSelector", ""), fields=query.get("fieldSelector", ""))
        return {"metadata": {"resourceVersion": str(self.store.version)}, "items": items}

    async def _watch(self, request: kmock.Request) -> AsyncIterator[Any]:
        plural = self._allow(request, "watch")
        yield b""
        version = int(request.params["resourceVersion"])
        until = time.monotonic() + int(request.params["timeoutSeconds"]) * self.patience
        while time.monotonic() < until:
            happened = self.store.since(version)
            if happened is None:
                yield {"type": "ERROR", "object": {"code": 410, "message": "too old resource version"}}
                return
            for number, event, kind, made in happened:
                version = number
                if kind == plural and _matches(made, request.params.get("labelSelector", ""), ""):
                    if self.cut_watches:
                        self.cut_watches -= 1
                        _break_connection(request)
                        return
                    yield {"type": event, "object": made}
            await asyncio.sleep(0.01)

    async def _fetch(self, request: kmock.Request) -> Any:
        plural = self._allow(request, "get")
        made = self.store.get(plural, str(request.name))
        if made is None:
            raise _error(404, f'{plural} "{request.name}" not found')
        if request.subresource == "log":
            if phase(made) == "Pending":
                raise _error(400, f'container "node" in pod "{request.name}" is waiting to start: ContainerCreating')
            return self._log(request)
        return made

    async def _log(self, request: kmock.Request) -> AsyncIterator[bytes]:
        assert self.log is not None
        yield b""
        num_lines = 0
        async for line in self.log(str(request.name), request.params):
            if self.cut_logs and num_lines == 2:
                self.cut_logs -= 1
                _break_connection(request)
                return
            num_lines += 1
            yield line

    async def _create(self, request: kmock.Request) -> Any:
        plural = self._allow(request, "create")
        if faults := problems(request.data, version=KUBERNETES):
            raise _error(400, f"strict decoding error: {'; '.join(faults)}")
        try:
            return self.store.create(plural, request.data)
        except Refused as error:
            raise _error(error.status, error.message) from None

    async def _delete(self, request: kmock.Request) -> Object:
        plural = self._allow(request, "delete")
        foreground = (request.data or {}).get("propagationPolicy") == "Foreground"
        if not self.store.delete(plural, str(request.name), foreground=foreground):
            raise _error(404, f'{plural} "{request.name}" not found')
        return {"status": "Success"}


def serve(server: ApiServer) -> Iterator[str]:
    """Address of the server, which listens on loopback while the generator is open."""
    started, stop = threading.Event(), threading.Event()
    urls: list[str] = []

    async def listen() -> None:
        async with server, kmock.Server(server) as listening:
            urls.append(str(listening.url))
            started.set()
            await asyncio.to_thread(stop.wait)

    thread = threading.Thread(target=lambda: asyncio.run(listen()), daemon=True)
    thread.start()
    assert started.wait(10)
    yield urls[0].rstrip("/")
    stop.set()
    thread.join(10)


def _matches(made: Object, labels: str, fields: str) -> bool:
    own = made["metadata"].get("labels") or {}
    wanted = [part.partition("=") for part in labels.split(",") if part]
    if any(own.get(key) != value for key, _, value in wanted):
        return False
    for key, _, value in [part.partition("=") for part in fields.split(",") if part]:
        place: Any = made
        for step in key.split("."):
            place = place.get(step, {})
        if place != value:
            return False
    return True


def phase(pod: Object) -> str:
    return str(pod.get("status", {}).get("phase", "Pending"))


def _marked_for_deletion(made: Object) -> None:
    made["metadata"].setdefault("deletionTimestamp", datetime.now(UTC).isoformat(timespec="seconds"))


def _break_connection(request: kmock.Request) -> None:
    request._raw_request.transport.close()


def _error(status: int, message: str) -> kmock.KubernetesError:
    return kmock.KubernetesError(status=status, reason="Refused", message=message, details={})
