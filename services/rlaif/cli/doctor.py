"""`rlaif doctor`: an installation looked at from outside, as a person with its address and a token would."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from rlaif.cli.doctor_findings import Finding
    from rlaif.runtime.settings import ClientSettings

EPILOG = """
[bold]rlaif doctor[/bold]

    Look at the services of `rlaif up`.

[bold]rlaif doctor --judge 127.0.0.1:50052 --oversight 127.0.0.1:50050 --tls-ca ca.crt --token-file token[/bold]

    Look at services elsewhere; the variables RLAIF_TLS_CA, _CERTIFICATE, _KEY, _SERVER_NAME and RLAIF_TOKEN count too.

Exit code 0 when nothing failed, 1 otherwise. The comparison is recorded in the ledger, by digest.
"""

_SERVICES, _WAY, _MORE = "Services", "How to reach them", "What else to look at"
_MARKS: Final = {"ok": "[green]✓[/green]", "look": "[yellow]![/yellow]", "failed": "[red]✗[/red]"}


def _address(name: str) -> typer.models.OptionInfo:
    option: typer.models.OptionInfo = typer.Option(
        f"--{name}", metavar="HOST:PORT", help=f"Address of {name}.", rich_help_panel=_SERVICES, show_default=False
    )
    return option


def doctor(
    *,
    oversight: Annotated[str, _address("oversight")] = "",
    sampler: Annotated[str, _address("sampler")] = "",
    judge: Annotated[str, _address("judge")] = "",
    evaluator: Annotated[str, _address("evaluator")] = "",
    reward: Annotated[str, _address("reward")] = "",
    state: Annotated[
        Path,
        typer.Option(help="Folder that `rlaif up` was given, where no address is.", rich_help_panel=_SERVICES),
    ] = Path("runs/services"),
    policy: Annotated[
        str, typer.Option(metavar="NAME", help="Policy that the sampler serves.", rich_help_panel=_SERVICES)
    ] = "policies/served",
    reward_model: Annotated[
        str, typer.Option(metavar="NAME", help="Reward model to ask for a reward.", rich_help_panel=_SERVICES)
    ] = "rewardModels/judge",
    tls_ca: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="PEM certificates to trust; turns TLS on.", rich_help_panel=_WAY),
    ] = None,
    token_file: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Bearer token to send; RLAIF_TOKEN does the same.", rich_help_panel=_WAY),
    ] = None,
    timeout: Annotated[
        float, typer.Option(min=1.0, metavar="SECONDS", help="How long one answer may take.", rich_help_panel=_WAY)
    ] = 30.0,
    metrics: Annotated[
        list[str] | None,
        typer.Option(metavar="URL", help="A /metrics page; may be repeated.", rich_help_panel=_MORE),
    ] = None,
    artifact_root: Annotated[
        str,
        typer.Option(
            metavar="ROOT",
            help="Where models are published: write, read, remove.",
            rich_help_panel=_MORE,
            show_default=False,
        ),
    ] = "",
    host: Annotated[
        str,
        typer.Option(metavar="URL", help="Kubeflow Pipelines.", rich_help_panel=_MORE, show_default=False),
    ] = "",
    json_: Annotated[bool, typer.Option("--json", help="For machines: one JSON document.")] = False,
) -> int:
    """Check an installation from outside: reachable, secured, let in, ready, and a comparison made and recorded."""
    from rlaif.cli.doctor_elsewhere import check_artifact_root, check_metrics, check_pipelines, open_pipelines
    from rlaif.cli.doctor_findings import Findings
    from rlaif.cli.doctor_services import Services
    from rlaif.cli.exits import DONE, FAILED
    from rlaif.cli.remote import remote_settings
    from rlaif.client.channel import open_channel
    from rlaif.runtime.settings import ClientSettings
    from rlaif.runtime.store import check_root

    given = {"oversight": oversight, "sampler": sampler, "judge": judge, "evaluator": evaluator, "reward": reward}
    given = {name: address for name, address in given.items() if address}
    reach = {"tls_ca_path": tls_ca, "token_path": token_file, "timeout_seconds": timeout}
    found: list[Finding] = []
    pages = [_checked_page(url) for url in metrics or ()]
    targets: Mapping[str, ClientSettings] = {name: remote_settings(address, **reach) for name, address in given.items()}
    if not targets and not (pages or artifact_root or host):
        targets, pages = _announced(state, found.append, timeout_seconds=timeout)
    # Pages have addresses of their own: of these settings, certificates and token count.
    way = remote_settings("metrics:9090", **reach) if metrics else ClientSettings(target="metrics:9090")
    for settings in (*targets.values(), way):
        open_channel(settings).close()  # files that are no certificates and no token are wrong input
    root = check_root(artifact_root, field="--artifact-root") if artifact_root else ""
    pipelines = open_pipelines(host) if host else None
    services = Services(policy=policy, reward_model=reward_model)
    for name, settings in targets.items():
        services.check(name, settings, Findings(name, found.append))
    for url in pages:
        check_metrics(url, way, Findings("metrics", found.append))
    if root:
        check_artifact_root(root, Findings("artifact root", found.append))
    if pipelines is not None:
        check_pipelines(pipelines, Findings("Kubeflow Pipelines", found.append))
    _show(found, as_json=json_)
    return FAILED if any(each.state == "failed" for each in found) else DONE


def _announced(
    state: Path, add: Callable[[Finding], None], *, timeout_seconds: float
) -> tuple[dict[str, ClientSettings], list[str]]:
    """(services that run from the folder, their pages of metrics); those that do not run are findings."""
    from rlaif.cli.addresses import GRPC_SERVICES, announce_path, read_announcement
    from rlaif.cli.doctor_findings import Finding
    from rlaif.cli.status import is_service
    from rlaif.core.errors import InvalidInputError
    from rlaif.runtime.settings import ClientSettings

    said = {name: read_announcement(announce_path(state, name)) for name in GRPC_SERVICES}
    if not any(said.values()):
        raise InvalidInputError(
            f"there is nothing to look at: no services were started from {state}; give --judge HOST:PORT and others, "
            "or start some by rlaif up",
            field="--judge",
        )
    targets, pages = {}, []
    for name, announcement in said.items():
        if announcement is None or not is_service(announcement):
            add(Finding(name, "process", "failed", f"no {name} runs from {state}", "rlaif up"))
            continue
        targets[name] = ClientSettings(target=announcement.address, timeout_seconds=timeout_seconds)
        if announcement.metrics_address:
            pages.append(f"http://{announcement.metrics_address}/metrics")
    return targets, pages


def _checked_page(url: str) -> str:
    from rlaif.core.errors import InvalidInputError

    if not url.startswith(("http://", "https://")):
        raise InvalidInputError(f"--metrics {url}: must be an address such as http://127.0.0.1:9090/metrics")
    return url


def _show(found: Sequence[Finding], *, as_json: bool) -> None:
    import json
    from dataclasses import asdict

    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    if as_json:
        failed = any(each.state == "failed" for each in found)
        typer.echo(json.dumps({"ok": not failed, "findings": [asdict(each) for each in found]}, indent=1))
        return
    table = Table(box=None, header_style="bold")
    for title in ("of", "check", "", "seen", "what to do"):
        table.add_column(title)
    last = ""
    for each in found:
        subject = "" if each.subject == last else each.subject
        table.add_row(subject, each.check, _MARKS[each.state], escape(each.seen), escape(each.fix))
        last = each.subject
    Console().print(table)
