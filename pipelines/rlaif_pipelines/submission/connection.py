"""Where Kubeflow Pipelines is reached, and with what we are let in."""

from __future__ import annotations

import ipaddress
import os
import re
import ssl
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

from rlaif.core.errors import InvalidInputError
from rlaif_pipelines.named_file import read_text

HOST_VARIABLES: Final = ("RLAIF_KFP_HOST", "KF_PIPELINES_ENDPOINT")
UI_HOST_VARIABLES: Final = ("RLAIF_KFP_UI_HOST", "KF_PIPELINES_UI_ENDPOINT")
NAMESPACE_VARIABLE: Final = "RLAIF_KFP_NAMESPACE"
TOKEN_VARIABLE: Final = "RLAIF_KFP_TOKEN"  # noqa: S105 - the name of the variable, not the secret
TOKEN_FILE_VARIABLES: Final = ("RLAIF_KFP_TOKEN_FILE", "KF_PIPELINES_SA_TOKEN_PATH")
HEADER_FILE_VARIABLE: Final = "RLAIF_KFP_HEADER_FILE"
CA_FILE_VARIABLE: Final = "RLAIF_KFP_CA_FILE"

PROJECTED_TOKEN: Final = Path("/var/run/secrets/kubeflow/pipelines/token")
"""Where a pod that talks to Kubeflow Pipelines has its service account's token, renewed by the kubelet."""
IN_CLUSTER_HOST: Final = "http://ml-pipeline.kubeflow.svc.cluster.local:8888"

_MAX_SECRET_BYTES: Final = 64 * 1024
_HEADER: Final = re.compile(r"([A-Za-z0-9-]{1,64}):[ \t]*([\x20-\x7e]+)")
_IN_CLUSTER: Final = re.compile(r"[^.]+|.+\.svc|.+\.svc\.cluster\.local")


@dataclass(frozen=True)
class Credentials:
    """A bearer token, headers, or both. Secrets are not shown."""

    token_file: Path | None = None
    """Read anew for each request, because tokens are renewed."""
    token: str = field(default="", repr=False)
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)
    source: str = ""
    """Where they come from, for sentences; empty for nowhere."""

    def bearer(self) -> str:
        """The token as it is now; empty without one."""
        if self.token_file is None:
            return self.token
        return _read_secret(self.token_file, option="--token-file")


@dataclass(frozen=True)
class Connection:
    """How to reach the API: `host` as in https://kubeflow.example.com/pipeline, `namespace` empty for one user."""

    host: str
    ui_host: str = ""
    namespace: str = ""
    credentials: Credentials = Credentials()
    ca_file: Path | None = None
    timeout_seconds: float = 60.0
    retry_pause_seconds: float = 0.5
    """First pause before a read is tried again; doubled each time."""

    def run_link(self, run_id: str) -> str:
        """Address of a run in the UI."""
        return f"{self.ui_host or self.host}/#/runs/details/{run_id}"


def find_connection(
    *,
    host: str = "",
    ui_host: str = "",
    namespace: str = "",
    token_file: Path | None = None,
    header_file: Path | None = None,
    ca_file: Path | None = None,
    timeout_seconds: float = 60.0,
    environment: Mapping[str, str] = os.environ,
) -> Connection:
    """The connection that options name, else environment variables, else the cluster that this process runs in.

    InvalidInputError says what is missing or wrong; nothing is connected to.
    """
    in_cluster = "KUBERNETES_SERVICE_HOST" in environment
    host = host or _first(environment, HOST_VARIABLES) or (IN_CLUSTER_HOST if in_cluster else "")
    if not host:
        raise InvalidInputError(
            f"--host: where is Kubeflow Pipelines? Give its address or set {HOST_VARIABLES[0]}; for a look from "
            "outside the cluster: kubectl port-forward -n kubeflow svc/ml-pipeline 8888, then --host "
            "http://127.0.0.1:8888",
            field="--host",
        )
    ca_file = ca_file or _path(environment.get(CA_FILE_VARIABLE))
    connection = Connection(
        host=_checked_url(host, option="--host"),
        ui_host=_checked_url(found, option="--ui-host")
        if (found := ui_host or _first(environment, UI_HOST_VARIABLES))
        else "",
        namespace=namespace or environment.get(NAMESPACE_VARIABLE, ""),
        credentials=_find_credentials(token_file, header_file, environment=environment),
        ca_file=_checked_ca(ca_file) if ca_file else None,
        timeout_seconds=timeout_seconds,
    )
    _check_not_in_the_clear(connection)
    return connection


def _find_credentials(
    token_file: Path | None, header_file: Path | None, *, environment: Mapping[str, str]
) -> Credentials:
    header_file = header_file or _path(environment.get(HEADER_FILE_VARIABLE))
    headers = _read_headers(header_file) if header_file else {}
    token, sources = "", [f"the file {header_file}"] if header_file else []
    if token_file is None and environment.get(TOKEN_VARIABLE):
        token = environment[TOKEN_VARIABLE].strip()
        sources.append(f"the variable {TOKEN_VARIABLE}")
    elif token_file is None and not headers:
        token_file = _path(_first(environment, TOKEN_FILE_VARIABLES))
        if token_file is None and PROJECTED_TOKEN.is_file():
            token_file = PROJECTED_TOKEN
    if token_file is not None:
        _read_secret(token_file, option="--token-file")
        sources.append(f"the file {token_file}")
    return Credentials(token_file=token_file, token=token, headers=headers, source=" and ".join(sources))


def _read_headers(path: Path) -> dict[str, str]:
    headers = {}
    for number, line in enumerate(_read_secret(path, option="--header-file").splitlines(), start=1):
        if not line.strip():
            continue
        found = _HEADER.fullmatch(line.strip())
        if found is None:  # the line may be a secret: it is not shown
            raise InvalidInputError(
                f"--header-file {path}:{number}: must be a line such as 'Cookie: name=value'", field="--header-file"
            )
        headers[found[1]] = found[2]
    return headers


def _read_secret(path: Path, *, option: str) -> str:
    text = read_text(path, option=option, most_bytes=_MAX_SECRET_BYTES).strip()
    if not text:
        raise InvalidInputError(f"{option} {path}: is empty", field=option)
    return text


def _checked_url(url: str, *, option: str) -> str:
    if "://" not in url:
        raise InvalidInputError(f"{option} {url}: begin it with https:// or http://", field=option)
    if "@" in url.partition("://")[2].partition("/")[0]:
        raise InvalidInputError(
            f"{option}: holds a user or a password, which addresses must not; use --header-file", field=option
        )
    try:
        parts = urlsplit(url)
        valid = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
        valid = valid and url.isprintable() and " " not in url and not (parts.query or parts.fragment)
    except ValueError:
        valid = False
    if not valid:
        raise InvalidInputError(
            f"{option} {url}: is no address such as https://kubeflow.example.com/pipeline", field=option
        )
    return url.rstrip("/")


def _checked_ca(path: Path) -> Path:
    try:
        ssl.create_default_context(cafile=str(path))
    except OSError as error:  # ssl.SSLError is one
        why = "holds no PEM certificates" if isinstance(error, ssl.SSLError) else error.strerror
        raise InvalidInputError(f"--ca-file {path}: {why}", field="--ca-file") from None
    return path


def _check_not_in_the_clear(connection: Connection) -> None:
    """Secrets travel unencrypted on this machine and inside a cluster, where Kubeflow Pipelines listens so; nowhere
    else."""
    parts = urlsplit(connection.host)
    name = parts.hostname or ""
    if not connection.credentials.source or parts.scheme == "https" or name == "localhost":
        return
    try:
        near = ipaddress.ip_address(name).is_loopback
    except ValueError:
        near = _IN_CLUSTER.fullmatch(name) is not None
    if not near:
        raise InvalidInputError(
            f"--host {connection.host}: {connection.credentials.source} would be sent unencrypted; use https://",
            field="--host",
        )


def _first(environment: Mapping[str, str], names: tuple[str, ...]) -> str:
    return next((environment[name] for name in names if environment.get(name)), "")


def _path(value: str | None) -> Path | None:
    return Path(value) if value else None
