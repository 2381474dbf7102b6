"""Pods of rendered manifests as local processes: a small kubelet, without images, namespaces or a network.

Paths that pods mount become folders below one of the test, ports become free ones on loopback, names of Services become
those addresses. All else is taken as the manifests say it: commands, arguments, environment, files, probes, limits.
"""

from __future__ import annotations

import base64
import math
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from chart_fixtures import Manifest, of_kind, pod_specs

# What the images set themselves, and the interpreter that stands for theirs.
_IMAGE = {
    "PATH": f"{Path(sys.executable).parent}:/usr/bin:/bin",
    "OMP_WAIT_POLICY": "PASSIVE",
    "GOMP_SPINCOUNT": "10000",
    "PYTHONDONTWRITEBYTECODE": "1",
    "TOKENIZERS_PARALLELISM": "false",
}
JOB = "first"
"""Name of the Job that a CronJob's pod belongs to."""
_POLL_SECONDS = 0.2
_UNITS = {"": 1, "Ki": 2**10, "Mi": 2**20, "Gi": 2**30}


@dataclass
class Pod:
    """One pod's container while it runs."""

    name: str
    template: dict[str, Any]
    folders: dict[str, Path]
    """Local folder by mount path."""
    ports: dict[int, int]
    """Local port by container port."""
    log: Path
    process: subprocess.Popen[bytes] | None = None

    @property
    def container(self) -> dict[str, Any]:
        """The only container that stays."""
        (found,) = self.template["spec"]["containers"]
        return dict(found)

    def words(self) -> str:
        """The last of what it wrote."""
        return self.log.read_text(errors="replace")[-4000:]


@dataclass
class Cluster:
    """Runs pods of `manifests`, all that they write below `root`."""

    manifests: list[Manifest]
    root: Path
    rewrite: Callable[[str], str] = lambda text: text
    """Last change of each text that a process gets: what stands outside of the manifests, such as a database."""
    pods: dict[str, Pod] = field(default_factory=dict)
    _held: ExitStack = field(default_factory=ExitStack)

    def __enter__(self) -> Cluster:
        return self

    def __exit__(self, *error: object) -> None:
        for pod in self.pods.values():
            if pod.process is not None and pod.process.poll() is None:
                pod.process.kill()
                pod.process.wait()
        self._held.close()

    def add(self, *names: str) -> None:
        """Gives the pods of these ("Deployment/x", "Pod/x", …) their folders and ports; all before any is started."""
        templates = pod_specs(self.manifests)
        for name in names:
            template = templates[name]
            ports = [port["containerPort"] for each in template["spec"]["containers"] for port in each.get("ports", ())]
            folder = self.root / "pods" / name.replace("/", "-").lower()
            pod = Pod(name, template, {}, {port: self._free_port() for port in ports}, folder / "log")
            self.pods[name] = pod
            for container in _containers(template):
                for mount in container.get("volumeMounts", ()):
                    pod.folders[mount["mountPath"]] = self._volume(template, mount["name"], folder / mount["name"])

    def start(self, name: str) -> None:
        """Init containers one after the other, then the container."""
        pod = self.pods[name]
        self._write_files(pod)
        for container in pod.template["spec"].get("initContainers", ()):
            done = self._launch(pod, container).wait(timeout=120)
            assert done == 0, f"{container['name']} of {name} ended with {done}: {pod.words()}"
        pod.process = self._launch(pod, pod.container)

    def run(self, name: str, *, timeout_seconds: float = 120.0) -> int:
        """Exit code of a pod that ends by itself."""
        self.add(name)
        self.start(name)
        process = self.pods[name].process
        assert process is not None
        return process.wait(timeout=timeout_seconds)

    def wait_ready(self, name: str) -> None:
        """As the kubelet: the startup probe until it succeeds or was given up, then the readiness probe."""
        pod, container = self.pods[name], self.pods[name].container
        startup = container["startupProbe"]
        deadline = time.monotonic() + startup["failureThreshold"] * startup["periodSeconds"]
        while not self.probe(name, "startupProbe"):
            assert pod.process is not None
            assert pod.process.poll() is None, f"{name} ended with {pod.process.returncode}: {pod.words()}"
            assert time.monotonic() < deadline, f"{name} did not start in time: {pod.words()}"
            time.sleep(_POLL_SECONDS)
        assert self.probe(name, "readinessProbe"), f"{name} started and is not ready"

    def probe(self, name: str, kind: str) -> bool:
        """Whether the gRPC probe of that kind succeeds."""
        pod = self.pods[name]
        probe = pod.container[kind]
        request = health_pb2.HealthCheckRequest(service=probe["grpc"]["service"])
        with grpc.insecure_channel(f"127.0.0.1:{pod.ports[probe['grpc']['port']]}") as channel:
            try:
                answer = health_pb2_grpc.HealthStub(channel).Check(request, timeout=probe["timeoutSeconds"])
            except grpc.RpcError:
                return False
        return bool(answer.status == answer.SERVING)

    def terminate(self, name: str) -> int:
        """Exit code after SIGTERM; an error if it takes longer than the pod has."""
        pod = self.pods[name]
        assert pod.process is not None
        pod.process.send_signal(signal.SIGTERM)
        return pod.process.wait(timeout=pod.template["spec"]["terminationGracePeriodSeconds"])

    def peak_bytes(self, name: str) -> int:
        """Most memory that the running container has held."""
        process = self.pods[name].process
        assert process is not None
        status = Path(f"/proc/{process.pid}/status").read_text()
        return int(re.findall(r"VmHWM:\s+(\d+) kB", status)[0]) * 1024

    def limit_bytes(self, name: str) -> int:
        """Memory limit of the container."""
        number, unit = re.findall(r"^(\d+)(\w*)$", self.pods[name].container["resources"]["limits"]["memory"])[0]
        return int(number) * _UNITS[unit]

    def address(self, service: str, port: int) -> str:
        """Where a port of a Service is reached: its target port of the pod that it selects."""
        spec = of_kind(self.manifests, "Service")[service]["spec"]
        (pod,) = [
            each
            for each in self.pods.values()
            if spec["selector"].items() <= each.template["metadata"]["labels"].items()
        ]
        (target,) = [each["targetPort"] for each in spec["ports"] if each["port"] == port]
        (number,) = [each["containerPort"] for each in pod.container["ports"] if each["name"] == target]
        return f"127.0.0.1:{pod.ports[number]}"

    def local(self, pod: Pod, text: str) -> str:
        """A text of the pod with its names, ports and paths as they are here."""
        ports = "|".join(map(str, pod.ports)) or "none"
        paths = "|".join(re.escape(path) for path in sorted(pod.folders, key=len, reverse=True)) or "none"
        pattern = rf"dns:///([a-z0-9-]+):(\d+)|0\.0\.0\.0:({ports})\b|(?<![\w./-])({paths})(?=[/\"'\s,]|$)"

        def here(found: re.Match[str]) -> str:
            service, port, own, path = found.groups()
            if service:
                return self.address(service, int(port))
            return f"127.0.0.1:{pod.ports[int(own)]}" if own else str(pod.folders[path])

        return self.rewrite(re.sub(pattern, here, text))

    def _launch(self, pod: Pod, container: Mapping[str, Any]) -> subprocess.Popen[bytes]:
        told = self._environment(container)
        parts = [_expanded(part, told) for part in [*container["command"], *container.get("args", ())]]
        command = [self.local(pod, part) for part in parts]
        environment = _IMAGE | {name: self.local(pod, value) for name, value in told.items()}
        pod.log.parent.mkdir(parents=True, exist_ok=True)
        with pod.log.open("ab") as log:
            return subprocess.Popen(
                command,
                env=environment,
                # The images' own; only what is mounted may be written.
                cwd=pod.folders.get("/var/lib/rlaif", pod.folders["/tmp"]),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
            )

    def _environment(self, container: Mapping[str, Any]) -> dict[str, str]:
        found: dict[str, str] = {}
        for variable in container.get("env", ()):
            source = variable.get("valueFrom", {})
            if "secretKeyRef" in source:
                value = self._secret(**source["secretKeyRef"])
            elif "resourceFieldRef" in source:
                assert source["resourceFieldRef"]["resource"] == "limits.cpu"
                value = str(math.ceil(float(container["resources"]["limits"]["cpu"])))
            elif "fieldRef" in source:
                assert source["fieldRef"]["fieldPath"] == "metadata.labels['batch.kubernetes.io/job-name']"
                value = JOB
            else:
                value = _expanded(variable["value"], found)
            found[variable["name"]] = value
        return found

    def _secret(self, *, name: str, key: str) -> str:
        data = of_kind(self.manifests, "Secret")[name]["data"]
        return base64.b64decode(data[key]).decode()

    def _volume(self, template: dict[str, Any], name: str, folder: Path) -> Path:
        """A folder of the pod's own, or of the claim for all that mount it."""
        (volume,) = [each for each in template["spec"]["volumes"] if each["name"] == name]
        if "persistentVolumeClaim" in volume:
            claim = volume["persistentVolumeClaim"]["claimName"]
            assert claim in of_kind(self.manifests, "PersistentVolumeClaim")
            folder = self.root / "claims" / claim
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    def _write_files(self, pod: Pod) -> None:
        """Files of ConfigMaps, once every address is known."""
        mounts = {mount["name"]: mount["mountPath"] for mount in pod.container.get("volumeMounts", ())}
        for volume in pod.template["spec"]["volumes"]:
            if "configMap" in volume:
                data = of_kind(self.manifests, "ConfigMap")[volume["configMap"]["name"]]["data"]
                for name, text in data.items():
                    (pod.folders[mounts[volume["name"]]] / name).write_text(self.local(pod, text))

    def _free_port(self) -> int:
        """A port that stays ours until the process takes it: nobody else is given it meanwhile."""
        probe = self._held.enter_context(socket.socket())
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _expanded(text: str, environment: Mapping[str, str]) -> str:
    """The text with `$(NAME)` as the kubelet writes it out."""
    return re.sub(r"\$\((\w+)\)", lambda name: environment[name[1]], text)


def _containers(template: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield from template["spec"].get("initContainers", ())
    yield from template["spec"]["containers"]


def addresses_of_notes(notes: str, cluster: Cluster) -> dict[str, str]:
    """What the notes tell pipelines to call, as addresses here."""
    found = {}
    for service, host, port in re.findall(r"(\w+)_address: dns:///([a-z0-9-]+)\.[a-z0-9.-]+:(\d+)", notes):
        found[service] = cluster.address(host, int(port))
    return found
