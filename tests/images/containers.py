"""Containers as a cluster runs them: no root, no capabilities, a root file system that nothing can be written to."""

from __future__ import annotations

import json
import socket
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from images.builder import call, environment
from rlaif.client.channel import wait_serving
from rlaif.core.errors import DeadlineError
from rlaif.runtime.settings import ClientSettings

START_SECONDS = 180.0
STOP_SECONDS = 60
# What the chart's pods have, and nothing else: podman's own /run, /tmp and /var/tmp are turned off.
HARDENED = (
    *("--read-only", "--read-only-tmpfs=false", "--cap-drop=ALL", "--security-opt=no-new-privileges"),
    *("--pids-limit=512", "--network=host", "--tmpfs=/tmp:rw,mode=1777", "--volume=/var/lib/rlaif"),
)


@dataclass(frozen=True)
class Ended:
    """How a container's program ended."""

    exit_code: int
    stdout: str
    stderr: str


@dataclass(frozen=True)
class Container:
    """A running container."""

    name: str

    def run(self, *command: str) -> str:
        """What a command inside it prints."""
        return call("podman", "exec", self.name, *command)

    def logs(self) -> str:
        """What its program has written."""
        found = subprocess.run(
            ["podman", "logs", self.name], env=environment(), capture_output=True, text=True, check=True
        )
        return found.stdout + found.stderr

    def terminate(self) -> int:
        """SIGTERM, as a kubelet sends it; the exit code."""
        call("podman", "kill", "--signal=TERM", self.name)
        return self.wait()

    def wait(self) -> int:
        """The exit code; an AssertionError when it does not end in time."""
        ended = subprocess.run(
            ["podman", "wait", self.name],
            env=environment(),
            capture_output=True,
            text=True,
            timeout=STOP_SECONDS,
            check=True,
        )
        return int(ended.stdout)

    @property
    def is_running(self) -> bool:
        """Whether its program has not ended."""
        return call("podman", "inspect", "--format={{.State.Running}}", self.name).strip() == "true"

    def changed(self) -> list[str]:
        """Paths of its root file system that are not the image's, mount points aside."""
        found = [line.split(" ", 1)[1] for line in call("podman", "diff", self.name).splitlines()]
        mounts = [mount["Destination"] for mount in json.loads(call("podman", "inspect", self.name))[0]["Mounts"]]
        # Podman makes the mount points and these files itself.
        own = [
            *mounts,
            "/tmp",
            "/var/lib/rlaif",
            "/etc/hostname",
            "/etc/hosts",
            "/etc/mtab",
            "/etc/resolv.conf",
            "/run/.containerenv",
        ]
        return [path for path in found if not any(f"{mine}/".startswith(f"{path}/") for mine in own)]


@contextmanager
def running(
    image: str,
    *command: str,
    name: str,
    mounts: Mapping[str, str] | None = None,
    variables: Mapping[str, str] | None = None,
) -> Iterator[Container]:
    """The container for as long as the block runs; `mounts` says what is where, read-only unless that ends with :rw."""
    _remove(name)
    call("podman", "run", "--detach", f"--name={name}", *_options(mounts, variables), image, *command)
    try:
        yield Container(name)
    finally:
        _remove(name)


def run(
    image: str, *command: str, mounts: Mapping[str, str] | None = None, variables: Mapping[str, str] | None = None
) -> Ended:
    """A container from its start to its end."""
    found = subprocess.run(
        ["podman", "run", "--rm", *_options(mounts, variables), image, *command],
        env=environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    return Ended(found.returncode, found.stdout, found.stderr)


def inspect(image: str) -> dict[str, Any]:
    """What the image says of itself."""
    found: dict[str, Any] = json.loads(call("podman", "image", "inspect", image))[0]
    return found


def write_settings(folder: Path, name: str, values: Mapping[str, Any]) -> Path:
    """A settings file that the container's user can read."""
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump(dict(values)))
    path.chmod(0o444)
    return path


def free_ports(number: int) -> list[int]:
    """Ports of loopback that nobody listens on."""
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(number)]
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports


def await_serving(container: Container, settings: ClientSettings, service: str) -> None:
    """Returns once the service in the container says SERVING; what it wrote when it does not."""
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        assert container.is_running, container.logs()
        try:
            return wait_serving(settings, [service], timeout_seconds=2.0)
        except DeadlineError:
            continue
    raise AssertionError(f"{service} does not serve: {container.logs()}")


def _options(mounts: Mapping[str, str] | None, variables: Mapping[str, str] | None) -> Sequence[str]:
    found = list(HARDENED)
    for source, target in (mounts or {}).items():
        found.append(f"--volume={source}:{target}" if target.endswith(":rw") else f"--volume={source}:{target}:ro")
    found.extend(f"--env={name}={value}" for name, value in (variables or {}).items())
    return found


def _remove(name: str) -> None:
    call("podman", "rm", "--force", "--ignore", "--volumes", "--time=1", name)
