"""Dockerfiles and the compose file: what can be said of them without building anything."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

from rlaif.judge.settings import JudgeSettings
from rlaif.oversight.settings import OversightSettings
from rlaif.reward.settings import RewardSettings
from rlaif.runtime.settings import load_settings
from rlaif.sampler.settings import SamplerSettings

ROOT = Path(__file__).parents[2]
DOCKERFILES = sorted((ROOT / "docker").glob("*.Dockerfile"))
COMPOSE_FILE = ROOT / "deploy" / "compose.yaml"
VERSION = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
TOKEN_PATH = Path("/run/secrets/token")
SETTINGS: dict[str, Any] = {
    "judge": JudgeSettings,
    "oversight": OversightSettings,
    "reward": RewardSettings,
    "sampler": SamplerSettings,
}
GRPC_SERVICES = {
    "judge": "rlaif.v1.JudgeService",
    "oversight": "rlaif.v1.LedgerService",
    "reward": "rlaif.v1.RewardService",
    "sampler": "rlaif.v1.SamplerService",
}


def compose() -> dict[str, Any]:
    """The compose file's services."""
    services: dict[str, Any] = yaml.safe_load(COMPOSE_FILE.read_text())["services"]
    return services


def stages(dockerfile: Path) -> dict[str, str]:
    """Stages of a Dockerfile: name to text, comments aside."""
    text = "\n".join(line for line in dockerfile.read_text().splitlines() if not line.startswith("#"))
    found = re.split(r"^FROM (?:\S+) AS (\S+)$", text, flags=re.MULTILINE)
    return {name: body.strip() for name, body in zip(found[1::2], found[2::2], strict=True)}


def finals(dockerfile: Path) -> dict[str, str]:
    """The stages that become images."""
    return {name: body for name, body in stages(dockerfile).items() if "LABEL" in body}


def served_by(service: dict[str, Any]) -> str | None:
    """Which of our services a container runs; None for another program."""
    command = service.get("command") or []
    return command[2].removeprefix("rlaif.") if command[:2] == ["python", "-m"] else None


def test_there_is_a_dockerfile_for_each_image() -> None:
    assert {path.name: sorted(finals(path)) for path in DOCKERFILES} == {
        "engine.Dockerfile": ["cpu", "gpu"],
        "oversight.Dockerfile": ["oversight"],
        "pipelines.Dockerfile": ["pipelines"],
        "trainer.Dockerfile": ["cpu", "gpu"],
    }


def test_hadolint_has_nothing_to_say() -> None:
    hadolint = Path(sys.executable).parent / "hadolint"
    found = subprocess.run([hadolint, *DOCKERFILES], capture_output=True, text=True, check=False)
    assert (found.returncode, found.stdout) == (0, "")


@pytest.mark.parametrize("stage", ["python", "wheel", "torch", "runtime"])
def test_stages_of_one_name_are_the_same_in_all_dockerfiles_so_that_they_are_built_once(stage: str) -> None:
    texts = {found[stage] for path in DOCKERFILES if stage in (found := stages(path))}
    assert len(texts) == 1


@pytest.mark.parametrize("dockerfile", DOCKERFILES, ids=lambda path: path.name)
def test_images_run_as_nobody_and_say_what_they_are(dockerfile: Path) -> None:
    name = dockerfile.name.removesuffix(".Dockerfile")
    for body in finals(dockerfile).values():
        assert re.findall(r"^USER (.*)$", body, flags=re.MULTILINE)[-1] == "65532:65532"
        assert f"ARG VERSION={VERSION}\n" in body
        assert f'image.title="rlaif-{name}"' in body
        for label in ("description", "version", "revision", "source", "licenses"):
            assert f"org.opencontainers.image.{label}=" in body


def test_images_come_from_named_versions() -> None:
    images = re.findall(
        r"^ARG \w+_IMAGE=(.*)$", "\n".join(path.read_text() for path in DOCKERFILES), flags=re.MULTILINE
    )
    images += [service["image"] for service in compose().values()]
    assert len(images) > 10
    assert not [image for image in images if image.endswith(":latest") or ":" not in image]


def test_compose_runs_our_images_in_this_version() -> None:
    ours = {service["image"] for service in compose().values() if "rlaif-" in service["image"]}
    prefix, suffix = "${RLAIF_REGISTRY:-ghcr.io/kube-rlaif}/rlaif-", f":${{RLAIF_VERSION:-{VERSION}}}"
    assert ours == {f"{prefix}{name}{suffix}" for name in ("oversight", "engine", "pipelines", "trainer")} | {
        f"{prefix}engine{suffix}-gpu"
    }


@pytest.mark.parametrize("name", compose())
def test_containers_can_change_nothing_but_their_volumes(name: str) -> None:
    service = compose()[name]
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert service["user"].split(":")[0] not in ("0", "root")
    assert service["pids_limit"] > 0
    assert "privileged" not in service
    assert "cap_add" not in service


@pytest.mark.parametrize("name", [name for name, service in compose().items() if served_by(service)])
def test_compose_services_read_settings_that_are_right_ask_for_the_token_and_are_watched(name: str) -> None:
    service = compose()[name]
    program = served_by(service)
    assert program in SETTINGS
    (source,) = (volume.split(":")[0] for volume in service["volumes"] if f":/etc/rlaif/{program}.yaml:ro" in volume)
    assert service["command"][3:] == ["--config", f"/etc/rlaif/{program}.yaml"]
    settings = load_settings(SETTINGS[program], COMPOSE_FILE.parent / source)
    assert settings.listen.token_path == TOKEN_PATH
    assert service["secrets"] == ["token"]
    assert settings.listen.drain_seconds < float(service["stop_grace_period"].removesuffix("s"))
    assert settings.listen.health_address is not None
    assert service["healthcheck"]["test"] == [
        *("CMD", "python", "-m", "rlaif.client.probe"),
        *(settings.listen.health_address, GRPC_SERVICES[program]),
    ]
    (port,) = service["ports"]
    assert re.fullmatch(rf"127\.0\.0\.1:5005\d:{settings.listen.address.rpartition(':')[2]}", port)


def test_a_service_has_its_name_in_the_network_on_cpus_and_gpus() -> None:
    services = compose()
    names = set(services) | {
        alias
        for service in services.values()
        for network in (service.get("networks") or {}).values()
        for alias in network["aliases"]
    }
    for path in sorted((COMPOSE_FILE.parent / "compose").glob("*.yaml")):
        for key, value in yaml.safe_load(path.read_text()).items():
            if isinstance(value, dict) and "target" in value:
                assert value["target"].split(":")[0] in names, f"{path.name}: {key}"
                assert value["token_path"] == str(TOKEN_PATH)
    for name in ("sampler", "judge"):
        assert services[f"{name}-gpu"]["networks"]["default"]["aliases"] == [name]
        assert (services[name]["profiles"], services[f"{name}-gpu"]["profiles"]) == (["cpu"], ["gpu"])


def test_the_first_of_the_compose_files_commands_makes_the_token_and_leaves_the_next_ones_where_they_are_meant_to_run(
    tmp_path: Path,
) -> None:
    (tmp_path / "deploy" / "compose").mkdir(parents=True)
    shutil.copy(COMPOSE_FILE, tmp_path / "deploy")
    command = next(line for line in COMPOSE_FILE.read_text().splitlines() if "openssl" in line).removeprefix("#")
    subprocess.run(["bash", "-ec", f"{command}\ntest -f deploy/compose.yaml"], cwd=tmp_path, check=True)
    token = tmp_path / "deploy" / "compose" / "secrets" / "token"
    assert re.fullmatch(r"[0-9a-f]{64}\n", token.read_text())
    # Its folder is closed to others of the machine; in the container somebody else reads it.
    assert (token.parent.stat().st_mode & 0o777, token.stat().st_mode & 0o777) == (0o700, 0o444)
