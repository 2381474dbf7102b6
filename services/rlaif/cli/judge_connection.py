"""Which judge a command asks: one at a given address, the running stack's, or one started for the call."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from rlaif.cli.addresses import announce_path, module_of, read_announcement
from rlaif.cli.inputs import PLAYGROUND
from rlaif.cli.processes import ProcessFamily, child_environment, num_cores, temporary_place
from rlaif.cli.remote import remote_settings
from rlaif.cli.services import start_judge
from rlaif.cli.status import is_service
from rlaif.client.judge import JudgeClient, Rules
from rlaif.client.judge_values import ConstitutionAudit, ResponsePair
from rlaif.core.errors import RlaifError, UnsupportedError
from rlaif.playground.paths import JUDGE_DIR
from rlaif.runtime.settings import ClientSettings


@dataclass(frozen=True)
class Where:
    """How the user named the judge; an empty address means the stack that runs from `state`, else one of our own."""

    address: str
    state: Path
    tls_ca: Path | None
    token_file: Path | None
    timeout_seconds: float


@dataclass(frozen=True)
class Connection:
    """An open client, and the address of its judge."""

    client: JudgeClient
    address: str
    embedded: bool


@contextmanager
def connect(where: Where) -> Iterator[Connection]:
    """The judge of that address, the one that runs from the folder, or the playground's, started for this call."""
    announcement = read_announcement(announce_path(where.state, "judge"))
    if where.address:
        address, embedded = where.address, False
    elif announcement and is_service(announcement):
        address, embedded = announcement.address, False
    else:
        sys.stderr.write(
            f"No judge runs from {where.state}: starting the playground's for this call (`rlaif up` keeps one "
            "running, --address names another).\n"
        )
        with _embedded_judge() as address, _client(where, address) as client:
            yield Connection(client, address, embedded=True)
        return
    with _client(where, address) as client:
        yield Connection(client, address, embedded=embedded)


@contextmanager
def explained(what: str) -> Iterator[None]:
    """A judge that does not serve a call is told from a call that is wrong."""
    try:
        yield
    except UnsupportedError as error:
        if error.reason != "NOT_SERVED":
            raise
        raise RlaifError(f"this judge does not {what}", reason=error.reason) from error


def audited(
    client: JudgeClient, rules: Rules, pairs: Sequence[ResponsePair], *, written: bool
) -> tuple[ConstitutionAudit, str]:
    """(the audit, why the judge wrote none although asked to)."""
    try:
        return client.audit(rules, probe_pairs=pairs, written_audit=written), ""
    except UnsupportedError as error:
        if error.reason != "WRITTEN_AUDIT_UNSUPPORTED":
            raise
        return client.audit(rules, probe_pairs=pairs), error.message


def _client(where: Where, address: str) -> JudgeClient:
    settings = remote_settings if where.address else ClientSettings
    return JudgeClient(
        settings(
            target=address,
            tls_ca_path=where.tls_ca,
            token_path=where.token_file,
            timeout_seconds=where.timeout_seconds,
        )
    )


@contextmanager
def _embedded_judge() -> Iterator[str]:
    threads = num_cores()
    environment = child_environment(os.environ, num_threads=threads, offline=True)
    # A token in the environment is for other services; a judge that has one for itself would ask us for it.
    environment.pop("RLAIF_TOKEN", None)
    with temporary_place() as place, ProcessFamily(owner=f"judge:{place}") as family:
        announcement = start_judge(
            place,
            model=str(JUDGE_DIR),
            constitution=PLAYGROUND,
            template="compact",
            num_threads=threads,
            launch=lambda service, config: family.start(
                service,
                module_of(service),
                "--config",
                str(config),
                log_path=place / "logs" / f"{service}.log",
                environment=environment,
            ),
        )
        yield announcement.address
