"""Settings every process shares, and how they are read: one YAML file, `--set key=value`, secrets from outside."""

from __future__ import annotations

import argparse
import difflib
import os
import signal
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, NoReturn, Self, TypeVar, get_args

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from rlaif.core.errors import SettingsError
from rlaif.runtime.addresses import split_address
from rlaif.runtime.roles import Role
from rlaif.runtime.watched_files import read_file

TOKEN_VARIABLE = "RLAIF_TOKEN"  # noqa: S105 - the name of the variable, not the secret

PositiveSeconds = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class SettingsModel(BaseModel):
    """Base of all settings: frozen, and an unknown key is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, defer_build=True)


class TlsSettings(SettingsModel):
    """Certificates of a server."""

    certificate_path: Path
    """PEM certificate chain of the server."""
    key_path: Path
    """PEM private key of the server."""
    client_ca_path: Path | None = None
    """PEM certificates that must have signed a client's certificate; unset means clients need none."""


class CertificateRoles(SettingsModel):
    """What the holder of a client certificate may do without a token."""

    common_name: str = Field(min_length=1, max_length=64)
    """Common name in the certificate's subject."""
    roles: frozenset[Role] = Field(min_length=1)
    """reader, caller, trainer, reviewer, admin."""


class ListenSettings(SettingsModel):
    """How a service is reached and how it stops."""

    address: str = "127.0.0.1:0"
    """Where gRPC listens, host:port; port 0 takes a free one."""
    metrics_address: str | None = "127.0.0.1:0"
    """Where Prometheus reads /metrics, host:port; null for nowhere."""
    metrics_tls: bool = False
    """Whether /metrics is served over TLS, with the certificate of `tls`; no client certificate is asked for."""
    metrics_token: bool = False
    """Whether /metrics asks for a bearer token: one with the role reader or admin."""
    health_address: str | None = None
    """Where grpc.health.v1 alone is served, always in plaintext, host:port; null for nowhere.

    For probes that speak no TLS, as the kubelet's; health is served on `address` too.
    """
    announce_path: Path | None = None
    """File that gets the bound addresses and the process id as JSON."""
    tls: TlsSettings | None = None
    """Certificates; null for plaintext. Read again when the files change."""
    token_path: Path | None = None
    """File with the bearer token of an admin. RLAIF_TOKEN does the same where `tokens_path` is not set."""
    tokens_path: Path | None = None
    """YAML file with a list of {name, sha256, roles} of bearer tokens, read again when it changes.

    A call needs a token where this, `token_path` or RLAIF_TOKEN is set, unless its certificate is in `certificates`.
    """
    certificates: tuple[CertificateRoles, ...] = Field(default=(), max_length=1000)
    """Client certificates that stand for a token; needs tls.client_ca_path. Others then need a token."""
    max_message_bytes: int = Field(default=16 * 1024 * 1024, ge=1024, le=1024**3)
    """Largest message received or sent, bytes."""
    max_calls_in_flight: int = Field(default=4096, ge=1, le=1_000_000)
    """Calls served at once; those above are answered RESOURCE_EXHAUSTED. Health is not counted."""
    max_connection_age_seconds: PositiveSeconds = 600.0
    """When a client is told to connect anew, so that it finds new replicas and shows its certificate again."""
    max_connection_grace_seconds: PositiveSeconds = 3600.0
    """How long calls on a connection that is too old may still take; longer ones are cut off."""
    default_deadline_seconds: PositiveSeconds = 60.0
    """Deadline of a call whose caller set none."""
    drain_seconds: float = Field(default=20.0, ge=0, allow_inf_nan=False)
    """How long calls in flight may finish after SIGTERM."""
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = "INFO"
    """Least severe record that is logged."""

    @field_validator("address", "metrics_address", "health_address")
    @classmethod
    def _is_an_address(cls, value: str | None) -> str | None:
        if value is not None:
            split_address(value)
        return value

    @model_validator(mode="after")
    def _has_what_it_refers_to(self) -> Self:
        if self.metrics_tls and self.tls is None:
            raise ValueError("metrics_tls needs tls.certificate_path and tls.key_path")
        if self.certificates and (self.tls is None or self.tls.client_ca_path is None):
            raise ValueError("certificates needs tls.client_ca_path: names in unchecked certificates prove nothing")
        names = [each.common_name for each in self.certificates]
        for name in names:
            if names.count(name) > 1:
                raise ValueError(f"certificates: {name} is listed twice")
        return self


class ClientSettings(SettingsModel):
    """How to reach a service."""

    target: str = Field(min_length=1)
    """gRPC target, for example "127.0.0.1:50051"; several replicas as "dns:///rlaif-judge:50051" or "ipv4:a:1,b:1".

    Calls go to all replicas in turn, but to none that says it is not ready.
    """
    tls_ca_path: Path | None = None
    """PEM certificates to trust; unset means plaintext. All files here are read again when they change."""
    tls_certificate_path: Path | None = None
    """PEM certificate chain of this client, where the server asks for one."""
    tls_key_path: Path | None = None
    """PEM private key of this client."""
    tls_server_name: str | None = Field(default=None, min_length=1)
    """Name to expect in the server's certificate, where it is not the host of `target`, as with lists of addresses."""
    token_path: Path | None = None
    """File with the bearer token to send; RLAIF_TOKEN does the same; neither means no token."""
    wait_for_ready: bool = False
    """Whether calls wait, until their deadline, while no replica can be reached, in place of failing at once."""
    timeout_seconds: PositiveSeconds = 60.0
    """Deadline of each call, unless the call sets its own."""
    max_message_bytes: int = Field(default=64 * 1024 * 1024, ge=1024, le=1024**3)
    """Largest message sent or received, bytes."""

    @model_validator(mode="after")
    def _has_whole_pairs(self) -> Self:
        if (self.tls_certificate_path is None) != (self.tls_key_path is None):
            raise ValueError("tls_certificate_path and tls_key_path go together")
        for key in ("tls_certificate_path", "tls_server_name"):
            if getattr(self, key) is not None and self.tls_ca_path is None:
                raise ValueError(f"{key} needs tls_ca_path, without which there is no TLS")
        return self


Settings = TypeVar("Settings", bound=BaseModel)


def load_settings(model_class: type[Settings], path: Path | None = None, overrides: Sequence[str] = ()) -> Settings:
    """Checked settings from a YAML file, then overrides such as "listen.address=0.0.0.0:50051".

    Raises SettingsError, whose message names the file, the key and the fix.
    """
    source = str(path) if path else "settings"
    values = _read_yaml(path) if path else {}
    for override in overrides:
        _apply_override(values, override)
    try:
        return model_class.model_validate(values)
    except ValidationError as error:
        problems = [_explain(model_class, problem) for problem in error.errors()]
        first = ".".join(str(part) for part in error.errors()[0]["loc"])
        raise SettingsError(f"{source}: {'; '.join(problems)}", field=first) from error


def settings_from_command_line(
    model_class: type[Settings], *, program: str, arguments: Sequence[str] | None = None
) -> Settings:
    """Settings of `program --config FILE [--set key=value …]`; wrong ones end the process with code 2."""
    parser = argparse.ArgumentParser(prog=program, description=f"Runs {program} until it is stopped.")
    parser.add_argument("--config", type=Path, metavar="FILE", help="YAML file of settings")
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", dest="overrides", help="one setting, dotted key"
    )
    options = parser.parse_args(arguments)
    if arguments is None:
        # The first process of a container ignores SIGTERM until it is handled, which a server does once it is loaded.
        signal.signal(signal.SIGTERM, _end_at_once)
    try:
        return load_settings(model_class, options.config, options.overrides)
    except SettingsError as error:
        _exit(f"{program}: {error.message}")


def _end_at_once(number: int, frame: object) -> NoReturn:
    raise SystemExit(128 + number)


def read_token(token_path: Path | None) -> str | None:
    """The bearer token from the file, else from RLAIF_TOKEN; None when neither is set."""
    if token_path is not None:
        return parse_token(read_file(token_path, key="token_path"), source=str(token_path))
    token = os.environ.get(TOKEN_VARIABLE)
    return parse_token(token.encode("utf-8", "replace"), source=TOKEN_VARIABLE) if token else None


def read_own_token() -> str | None:
    """What RLAIF_TOKEN says that callers of a service must send, None where it is not set; SettingsError if empty."""
    if os.environ.get(TOKEN_VARIABLE) == "":
        raise SettingsError(
            f"{TOKEN_VARIABLE} is set and holds nothing: give it the token, or unset it to let everyone call",
            field="listen.token_path",
        )
    return read_token(None)


def parse_token(content: bytes, *, source: str) -> str:
    """A bearer token from what a file or variable holds; SettingsError, which does not repeat it, if it is none."""
    token = content.decode("utf-8", "replace").strip()
    if not token or not token.isascii() or not token.isprintable() or " " in token:
        raise SettingsError(f"{source} must hold one line of printable ASCII without spaces", field="token_path")
    return token


class _UniqueKeyLoader(yaml.SafeLoader):
    """SafeLoader that refuses a key given twice, which YAML would silently take the last of."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        for key in keys:
            if keys.count(key) > 1:
                raise yaml.constructor.ConstructorError(None, None, f"key {key!r} is given twice", node.start_mark)
        return dict(super().construct_mapping(node, deep=deep))


def parse_yaml(content: bytes, *, source: str, secret: bool = False) -> Any:
    """What YAML bytes say; SettingsError, naming `source` and the line, when they are no YAML or give a key twice.

    With `secret` the error repeats nothing of what they hold.
    """
    try:
        return yaml.load(content.decode("utf-8"), Loader=_UniqueKeyLoader)  # noqa: S506 - a SafeLoader
    except UnicodeDecodeError as error:
        raise SettingsError(f"{source} is not UTF-8") from (None if secret else error)
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        problem = "this cannot be read as YAML" if secret else error.problem
        raise SettingsError(f"{source}, line {line}: {problem}") from (None if secret else error)
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # a date such as 2026-13-45 is a ValueError
        problem = "" if secret else f": {error}"
        raise SettingsError(f"{source} cannot be read as YAML{problem}") from (None if secret else error)


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        content = path.read_bytes()
    except FileNotFoundError as error:
        raise SettingsError(f"settings file {path} does not exist") from error
    except OSError as error:
        raise SettingsError(f"cannot read settings file {path}: {error.strerror}") from error
    values = parse_yaml(content, source=str(path))
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise SettingsError(f"{path} must hold keys and values at its top level")
    return values


def _apply_override(values: dict[str, Any], override: str) -> None:
    key, separator, text = override.partition("=")
    if not separator or not key:
        raise SettingsError(f"--set {override}: expected KEY=VALUE", field=key or None)
    try:
        value = yaml.safe_load(text)
    except (yaml.YAMLError, ValueError) as error:
        raise SettingsError(f"--set {override}: the value is not YAML", field=key) from error
    *parents, last = key.split(".")
    place = values
    for parent in parents:
        child = place.setdefault(parent, {})
        if not isinstance(child, dict):
            raise SettingsError(f"--set {override}: {parent} holds a value, not keys", field=key)
        place = child
    place[last] = value


def _explain(model_class: type[BaseModel], problem: Any) -> str:
    location: tuple[Any, ...] = problem["loc"]
    key = ".".join(str(part) for part in location) or "settings"
    if problem["type"] == "missing":
        return f"{key} is required"
    if problem["type"] == "extra_forbidden":
        return f"unknown key {key}; {suggest_key(model_class, location)}"
    return f"{key}: {problem['msg'].removeprefix('Value error, ')}"


def suggest_key(model_class: type[BaseModel], location: Sequence[Any]) -> str:
    """What to write in the place of a key that is not known there: one that is close, else all there are."""
    known = list(_known_keys(model_class, location[:-1]))
    close = difflib.get_close_matches(str(location[-1]), known, n=1)
    return f"did you mean {close[0]}?" if close else f"known keys: {', '.join(known)}"


def _known_keys(model_class: type[BaseModel], location: Sequence[Any]) -> Iterator[str]:
    models: list[type[BaseModel]] = [model_class]
    for part in location:
        fields = [model.model_fields[part].annotation for model in models if part in model.model_fields]
        # Parts that are no field are list positions, dictionary keys or union tags: stay where we are.
        models = [found for field in fields for found in _models_in(field)] or models
    for model in models:
        yield from model.model_fields


def _models_in(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for argument in get_args(annotation):
        yield from _models_in(argument)


def _exit(sentence: str) -> NoReturn:
    sys.stderr.write(f"{sentence}\n")
    raise SystemExit(2)
