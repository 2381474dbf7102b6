"""Which judge a command asks, and by which rules: a given address, the running stack, or one started for the call."""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from rlaif.cli.addresses import announce_path, module_of, read_announcement
from rlaif.cli.inputs import PLAYGROUND, find_constitution, shipped_constitutions
from rlaif.cli.judge_texts import check_text
from rlaif.cli.processes import ProcessFamily, child_environment, num_cores
from rlaif.cli.remote import remote_settings
from rlaif.cli.services import start_judge
from rlaif.cli.status import is_service
from rlaif.client.judge import JudgeClient, Rules
from rlaif.client.judge_values import ConstitutionAudit, ResponsePair
from rlaif.core.constitution import Constitution, Principle
from rlaif.core.errors import InvalidInputError, RlaifError, UnsupportedError
from rlaif.playground.paths import JUDGE_DIR
from rlaif.runtime.settings import ClientSettings

_PREFIX = "constitutions/"


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


def given_rules(*, constitution: str, principles: Sequence[str]) -> Constitution | None:
    """The rules that the command line holds, as texts or in a file; None where it names some, or none."""
    if principles and constitution:
        raise InvalidInputError("give --constitution or --principle, not both", field="--principle")
    if principles:
        return command_line_constitution(principles)
    return find_constitution(constitution).constitution if _is_file(constitution) else None


def named_rules(connection: Connection, constitution: str) -> Rules:
    """The constitution of that name: one that the judge has, else a shipped one; without a name its only one."""
    has = [each.name for each in connection.client.list_constitutions()]
    if not constitution:
        if len(has) == 1:
            return has[0]
        raise InvalidInputError(
            f"--constitution: the judge at {connection.address} has {', '.join(has) or 'none'}; name one of them, a "
            "shipped one or a file",
            field="--constitution",
        )
    name = constitution if constitution.startswith(_PREFIX) else f"{_PREFIX}{constitution}"
    if name in has:
        return name
    if constitution in shipped_constitutions():
        return find_constitution(constitution).constitution
    raise InvalidInputError(
        f"--constitution {constitution}: is no file, the judge at {connection.address} has {', '.join(has) or 'none'}, "
        f"and shipped are {', '.join(sorted(shipped_constitutions()))}",
        field="--constitution",
    )


def command_line_constitution(principles: Sequence[str]) -> Constitution:
    """Principles given as texts, all of one weight."""
    for text in principles:
        if not check_text(text, name="--principle").strip():
            raise InvalidInputError("--principle: is empty; give the wording of a principle", field="--principle")
    return Constitution(
        "command-line",
        1,
        "Given on the command line.",
        tuple(Principle(f"principle-{number}", text.strip()) for number, text in enumerate(principles, start=1)),
    )


def digest_of(connection: Connection, rules: Rules) -> str:
    """SHA-256 of the rules, asked of the judge when it has them."""
    return rules.sha256 if isinstance(rules, Constitution) else connection.client.get_constitution(rules).sha256


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


def _is_file(constitution: str) -> bool:
    """Whether the text names a file; "constitutions/{id}" does not, even where a folder is called so."""
    path = Path(constitution).expanduser()
    return path.suffix in (".yaml", ".yml") or (not constitution.startswith(_PREFIX) and path.is_file())


@contextmanager
def _embedded_judge() -> Iterator[str]:
    threads = num_cores()
    environment = child_environment(os.environ, num_threads=threads, offline=True)
    # A token in the environment is for other services; a judge that has one for itself would ask us for it.
    environment.pop("RLAIF_TOKEN", None)
    with tempfile.TemporaryDirectory(prefix="rlaif-") as name, ProcessFamily(owner=f"judge:{name}") as family:
        place = Path(name)
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
