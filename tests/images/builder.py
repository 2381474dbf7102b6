"""Builds our images as a user would, on a machine that pulls nothing: on a base bootstrapped from Debian's packages.

Everything lies below build/images: image storage, the base, logs of the builds. `make clean` removes it.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from functools import cache
from pathlib import Path

from images import pip_configuration

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "build" / "images"
REGISTRY = "ghcr.io/kube-rlaif"
TARGETS = {"oversight": "", "pipelines": "", "engine": "cpu", "trainer": "cpu"}
"""The images that are built here, in this order, and the stage that each is."""
TOOLS = ("apt-get", "buildah", "debootstrap", "podman", "runc")
BASE_IMAGE = re.search(r"^ARG BASE_IMAGE=(\S+)$", (ROOT / "docker/oversight.Dockerfile").read_text(), re.M)[1]  # type: ignore[index]
# Debian's own python3, and what makes environments with it.
BASE_PACKAGES = ("ca-certificates", "python3-venv")
# What images of Debian leave out too.
NOT_IN_IMAGES = (
    "var/cache/apt",
    "var/lib/apt/lists",
    "usr/share/doc",
    "usr/share/info",
    "usr/share/locale",
    "usr/share/man",
)


def unable() -> str:
    """Why images cannot be built here, "" when they can."""
    if lacking := [tool for tool in TOOLS if shutil.which(tool) is None]:
        return f"images are built with {', '.join(TOOLS)}: {', '.join(lacking)} not found (apt-get install, on Debian)"
    if os.geteuid() != 0:
        return "images are built on a bootstrapped base, which takes root"
    return ""


def environment() -> dict[str, str]:
    """Environment of buildah and podman: storage of our own, settings that need neither systemd nor a registry."""
    settings = {
        "containers.conf": """\
[containers]
# Podman's own are more than a container's root may have on some machines.
default_ulimits = ["nofile=4096:4096", "nproc=4096:4096"]
[engine]
runtime = "runc"
cgroup_manager = "cgroupfs"
events_logger = "file"
""",
        "storage.conf": f"""\
[storage]
driver = "overlay"
graphroot = "{FOLDER / "storage"}"
runroot = "/run/rlaif-images"
""",
    }
    FOLDER.mkdir(parents=True, exist_ok=True)
    for name, text in settings.items():
        (FOLDER / name).write_text(text)
    return {
        **os.environ,
        "CONTAINERS_CONF": str(FOLDER / "containers.conf"),
        "CONTAINERS_STORAGE_CONF": str(FOLDER / "storage.conf"),
    }


def call(*command: str | Path, check: bool = True) -> str:
    """What the command writes to stdout; an AssertionError with its last words when it fails."""
    found = subprocess.run(command, env=environment(), cwd=ROOT, capture_output=True, text=True, check=False)
    assert not check or found.returncode == 0, f"{command[:4]} ended with {found.returncode}: {found.stderr[-4000:]}"
    return found.stdout


@cache
def image(name: str, target: str = "") -> str:
    """Reference of the image `rlaif-{name}`, built from the working tree."""
    _base()
    reference = f"{REGISTRY}/rlaif-{name}:{target or 'test'}"
    pip, folders = pip_configuration.find(FOLDER)
    mounts = [f"--volume={folder}:{folder}:ro" for folder in folders]
    command = [
        *("buildah", "build", "--layers", "--isolation=chroot", "--network=host", "--pull-never"),
        *(f"--secret=id=pip,src={pip}", *mounts, f"--build-arg=REVISION={revision()}"),
        *(f"--file=docker/{name}.Dockerfile", *([f"--target={target}"] if target else []), f"--tag={reference}", "."),
    ]
    log_path = FOLDER / f"{name}.log"
    with log_path.open("wb") as log:
        ended = subprocess.run(
            command, env=environment(), cwd=ROOT, stdout=log, stderr=subprocess.STDOUT, check=False
        ).returncode
    assert ended == 0, f"{name} was not built: {log_path}\n{log_path.read_text(errors='replace')[-4000:]}"
    return reference


@cache
def revision() -> str:
    """The commit that images are built from."""
    return subprocess.run(
        ["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.strip()


def release() -> None:
    """Lets `make clean` remove the storage, which Buildah and Podman leave mounted on itself."""
    subprocess.run(["umount", FOLDER / "storage" / "overlay"], capture_output=True, check=False)


def _base() -> None:
    """The image that the Dockerfiles start from, under its name there."""
    if call("buildah", "images", "--quiet", "--filter", f"reference={BASE_IMAGE}").strip():
        return
    _, _, suite = BASE_IMAGE.rpartition("-")
    folder = FOLDER / "base"
    shutil.rmtree(folder, ignore_errors=True)
    call("debootstrap", "--variant=minbase", f"--include={','.join(BASE_PACKAGES)}", suite, str(folder), _mirror(suite))
    for path in NOT_IN_IMAGES:
        shutil.rmtree(folder / path, ignore_errors=True)
    container = call("buildah", "from", "scratch").strip()
    call("buildah", "add", "--quiet", container, folder, "/")
    call("buildah", "config", "--env=PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", container)
    call("buildah", "commit", "--quiet", "--rm", container, BASE_IMAGE)
    shutil.rmtree(folder)


def _mirror(suite: str) -> str:
    """Where this machine's apt gets that suite of Debian from."""
    found = call("apt-get", "indextargets", "--format", "$(CODENAME) $(COMPONENT) $(REPO_URI)")
    repositories = [line.split(" ", 2) for line in found.splitlines()]
    uris = [uri for codename, component, uri in repositories if (codename, component) == (suite, "main")]
    assert uris, f"apt knows no mirror of Debian {suite} (apt-get update)"
    return uris[0]
