"""The nodes of a cluster on this machine: what pods say is run as processes, on loopback.

A name in DNS becomes 127.0.0.1 when a headless Service and a pod make it, and a job's rendezvous has a port of its own.
"""

from __future__ import annotations

import asyncio
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psutil

from kubernetes_api import Object, Store, phase
from kubernetes_controllers import INDEX, Controllers, warn

_STEP_SECONDS = 0.02
_GRACE_SECONDS = 2.0


@dataclass
class Container:
    """A pod's process and what it wrote."""

    process: subprocess.Popen[bytes]
    termination: Path
    lines: list[tuple[str, bytes]] = field(default_factory=list)
    reader: threading.Thread | None = None
    lost: bool = False
    told_to_end: float | None = None
    told: str | None = None
    """Reason that the kubelet gives for its end, such as OOMKilled."""


class Nodes:
    """Runs what the store says. Use as a context manager; nothing runs afterwards."""

    def __init__(self, store: Store, *, folder: Path) -> None:
        self.store = store
        self.folder = folder
        self.images: set[str] = {"trainer:1"}
        self.claims: set[str] = {"runs"}
        self.secrets: dict[str, dict[str, str]] = {}
        self.no_room: str | None = None
        """What the scheduler says of all pods; None when there is room."""
        self.stand_in: str | None = None
        """Script that containers run in place of torchrun, with its arguments."""
        self.controllers = Controllers(store)
        self.ignored: set[str] = set()
        """Pods that others run."""
        self.started: list[str] = []
        """Pods that ever ran."""
        self.environments: dict[str, dict[str, str]] = {}
        self._containers: dict[str, Container] = {}
        self._ports: dict[str, int] = {}
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self.failure: BaseException | None = None

    def __enter__(self) -> Nodes:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join(10)
        for container in self._containers.values():
            kill_tree(container.process)
        assert self.failure is None, self.failure

    def running(self) -> list[str]:
        """Pods whose processes are alive."""
        return [name for name, container in list(self._containers.items()) if container.process.poll() is None]

    def pod(self, index: int) -> str:
        """Name of the running pod of that index; waits for it."""
        for _ in range(3000):
            for pod in self.store.find("pods"):
                meta = pod["metadata"]
                if meta["annotations"].get(INDEX) == str(index) and meta["name"] in self.running():
                    return str(meta["name"])
            time.sleep(0.02)
        raise AssertionError(f"no pod of index {index} runs")

    def kill(self, pod: str, *, reason: str | None = None) -> None:
        """As a power cut in the container; with reason OOMKilled as the kernel does."""
        self._containers[pod].told = reason
        kill_tree(self._containers[pod].process)

    def evict(self, pod: str, message: str) -> None:
        """As a kubelet short of memory does."""
        condition = {"type": "DisruptionTarget", "status": "True", "reason": "TerminationByKubelet", "message": message}

        def evicted(made: Object) -> None:
            made["status"] |= {"phase": "Failed", "reason": "Evicted", "message": message}
            made["status"].setdefault("conditions", []).append(condition)

        self.store.update("pods", pod, evicted)
        self._containers[pod].lost = True
        kill_tree(self._containers[pod].process)

    def lose_node(self, pod: str) -> None:
        """The node is gone: nobody ends the pod, which is marked for it after a while."""
        self._containers[pod].lost = True
        kill_tree(self._containers[pod].process)
        condition = {"type": "DisruptionTarget", "status": "True", "reason": "DeletionByTaintManager"}
        self.store.update("pods", pod, lambda made: made["status"].setdefault("conditions", []).append(condition))
        self.store.delete("pods", pod)

    def forget_node(self) -> None:
        """Somebody removes the lost node: its pods go."""
        for name, container in self._containers.items():
            if container.lost:
                self.store.remove("pods", name)

    async def log(self, pod: str, query: Mapping[str, str]) -> AsyncIterator[bytes]:
        """As the kubelet streams it."""
        container = self._containers[pod]
        sent = 0
        if "tailLines" in query:
            sent = max(0, len(container.lines) - int(query["tailLines"]))
        while True:
            over = container.process.poll() is not None and not (container.reader and container.reader.is_alive())
            for stamp, line in container.lines[sent:]:
                sent += 1
                if stamp[:19] >= query.get("sinceTime", "")[:19]:
                    yield stamp.encode() + b" " + line + b"\n"
            if over or query.get("follow") != "true":
                return
            await asyncio.sleep(0.01)

    def _run(self) -> None:
        try:
            while not self._stop.wait(_STEP_SECONDS):
                self.controllers.step()
                self._pods()
        except BaseException as error:
            self.failure = error
            raise

    # Scheduler and kubelets

    def _pods(self) -> None:
        for pod in self.store.find("pods"):
            name = pod["metadata"]["name"]
            if name in self.ignored:
                continue
            container = self._containers.get(name)
            if container is not None:
                self._follow(pod, container)
            elif "deletionTimestamp" in pod["metadata"]:
                self.store.remove("pods", name)
            elif self.no_room:
                words = {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": self.no_room}
                self._set_status(name, conditions=[words])
            elif "nodeName" not in pod["spec"]:
                index = pod["metadata"]["annotations"][INDEX]
                self.store.update("pods", name, lambda made, index=index: made["spec"].update(nodeName=f"node-{index}"))
            elif waiting := self._hindrance(pod):
                state = [{"name": "node", "state": {"waiting": waiting}}]
                self.store.update(
                    "pods", name, lambda made, state=state: made["status"].update(containerStatuses=state)
                )
            else:
                self._start(pod)

    def _hindrance(self, pod: Object) -> Object | None:
        container = pod["spec"]["containers"][0]
        if container["image"] not in self.images:
            return {
                "reason": "ImagePullBackOff",
                "message": f'Back-off pulling image "{container["image"]}": not found',
            }
        for variable in container["env"]:
            reference = variable.get("valueFrom", {}).get("secretKeyRef")
            if reference and reference["key"] not in self.secrets.get(reference["name"], {}):
                return {"reason": "CreateContainerConfigError", "message": f'secret "{reference["name"]}" not found'}
        for volume in pod["spec"]["volumes"]:
            claim = volume.get("persistentVolumeClaim", {}).get("claimName")
            if claim and claim not in self.claims:
                warn(self.store, pod["metadata"]["name"], "FailedMount", f'persistentvolumeclaim "{claim}" not found')
                return {"reason": "ContainerCreating"}
        master = next(v["value"] for v in container["env"] if v["name"] == "PET_MASTER_ADDR")
        return None if self._resolves(master) else {"reason": "ContainerCreating"}

    def _resolves(self, name: str) -> bool:
        """Whether DNS knows the name: a headless Service, and a pod that it selects and that is called so."""
        host, _, domain = name.partition(".")
        service = self.store.get("services", domain)
        if service is None or service["spec"]["clusterIP"] != "None":
            return False
        assert service["spec"]["publishNotReadyAddresses"], "ranks look each other up before they are ready"
        selector = ",".join(f"{key}={value}" for key, value in service["spec"]["selector"].items())
        pods = self.store.find("pods", labels=selector)
        return any(pod["spec"]["hostname"] == host and pod["spec"]["subdomain"] == domain for pod in pods)

    def _start(self, pod: Object) -> None:
        name, container = pod["metadata"]["name"], pod["spec"]["containers"][0]
        termination = self.folder / f"{name}.termination"
        termination.touch()
        environment = {variable["name"]: self._value(pod, variable) for variable in container["env"]}
        environment = {
            key: str(termination) if value == container["terminationMessagePath"] else value
            for key, value in environment.items()
        }
        environment["PET_MASTER_PORT"] = str(self._port(environment["PET_MASTER_ADDR"]))
        environment |= {"PET_MASTER_ADDR": "127.0.0.1", "PATH": os.environ["PATH"], "GLOO_SOCKET_IFNAME": "lo"}
        self.environments[name] = environment
        program, *arguments = container["command"]
        assert program == "python"
        started = [sys.executable, *(["-c", self.stand_in] if self.stand_in else []), *arguments]
        process = subprocess.Popen(
            started,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            process_group=0,
        )
        made = Container(process, termination)
        made.reader = threading.Thread(target=_read, args=(made,), daemon=True)
        made.reader.start()
        self._containers[name] = made
        self.started.append(name)
        self._set_status(name, phase="Running", containerStatuses=[{"name": "node", "state": {"running": {}}}])

    def _set_status(self, pod: str, **status: Any) -> None:
        self.store.update("pods", pod, lambda made: made["status"].update(status))

    def _value(self, pod: Object, variable: Object) -> str:
        if "value" in variable:
            return str(variable["value"])
        source = variable["valueFrom"]
        if "secretKeyRef" in source:
            return self.secrets[source["secretKeyRef"]["name"]][source["secretKeyRef"]["key"]]
        assert source["fieldRef"]["fieldPath"] == f"metadata.annotations['{INDEX}']"
        return str(pod["metadata"]["annotations"][INDEX])

    def _port(self, master: str) -> int:
        if master not in self._ports:
            with socket.socket() as free:
                free.bind(("127.0.0.1", 0))
                self._ports[master] = free.getsockname()[1]
        return self._ports[master]

    def _follow(self, pod: Object, container: Container) -> None:
        name = pod["metadata"]["name"]
        if container.lost:
            return
        if container.process.poll() is None:
            if "deletionTimestamp" in pod["metadata"]:
                self._end(container)
            return
        if container.reader:
            container.reader.join(5)
        if phase(pod) == "Running":
            self._set_status(name, **_ended(container))
        if "deletionTimestamp" in pod["metadata"]:
            self.store.remove("pods", name)

    def _end(self, container: Container) -> None:
        if container.told_to_end is None:
            container.told_to_end = time.monotonic()
            container.process.terminate()
        elif time.monotonic() - container.told_to_end > _GRACE_SECONDS:
            kill_tree(container.process)


def kill_tree(process: subprocess.Popen[bytes]) -> None:
    """Ends the process with all it has started, as the end of a container does."""
    try:
        family = psutil.Process(process.pid).children(recursive=True)
    except psutil.NoSuchProcess:
        family = []
    for member in family:
        try:
            member.kill()
        except psutil.NoSuchProcess:
            continue
    process.kill()
    process.wait()


def _ended(container: Container) -> Object:
    code = container.process.returncode
    code = 128 - code if code < 0 else code
    message = container.termination.read_text()
    if not message and code:
        message = b"\n".join(line for _, line in container.lines[-80:])[-2048:].decode(errors="replace")
    now = datetime.now(UTC).isoformat()
    reason = container.told or ("Completed" if code == 0 else "Error")
    terminated = {"exitCode": code, "reason": reason, "message": message, "finishedAt": now}
    status = {"name": "node", "state": {"terminated": terminated}}
    return {"phase": "Failed" if code else "Succeeded", "containerStatuses": [status]}


def _read(container: Container) -> None:
    assert container.process.stdout is not None
    for line in container.process.stdout:
        stamp = datetime.now(UTC).isoformat(timespec="microseconds").replace("+00:00", "000Z")
        container.lines.append((stamp, line.rstrip(b"\n")))
