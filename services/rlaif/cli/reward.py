"""`rlaif reward`: what reward models are in force, and normalisations fitted on a reference set."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from rlaif.cli.json_values import json_value

if TYPE_CHECKING:
    from rlaif.client.reward import RewardClient

app = typer.Typer(no_args_is_help=True, help="Reward models: what is in force, and bringing components to one scale.")

Name = Annotated[str, typer.Argument(metavar="NAME", help='Reward model: "rewardModels/{id}", or its id.')]
Address = Annotated[str, typer.Option("--address", metavar="HOST:PORT", help="A running reward service.")]
State = Annotated[Path, typer.Option("--state", metavar="FOLDER", help="Folder that `rlaif up` was given.")]
TlsCa = Annotated[
    Path | None, typer.Option("--tls-ca", metavar="FILE", help="PEM certificates to trust; turns TLS on.")
]
TokenFile = Annotated[
    Path | None, typer.Option("--token-file", metavar="FILE", help="File with the bearer token; else RLAIF_TOKEN.")
]
Timeout = Annotated[float, typer.Option("--timeout", min=0.1, metavar="SECONDS", help="Time for each request.")]
DEFAULT_STATE = Path("runs/services")
_PREFIX = "rewardModels/"


@app.command(epilog="Example: rlaif reward show judge")
def show(
    name: Name,
    *,
    address: Address = "",
    state: State = DEFAULT_STATE,
    tls_ca: TlsCa = None,
    token_file: TokenFile = None,
    timeout: Timeout = 60.0,
) -> None:
    """Print a reward model's components in force as JSON: weights, members, aggregation, normalisation."""
    from dataclasses import asdict

    with _client(address, state, tls_ca, token_file, timeout) as client:
        typer.echo(json.dumps(asdict(client.get_reward_model(_full(name))), indent=2, default=json_value))


@app.command(
    "fit-normalisation",
    epilog="A line is {messages or prompt, response}, and category where the judge should know it. Exit code 1 when "
    "there are too few inputs or their values do not vary. Example: rlaif reward fit-normalisation reference.jsonl "
    "--reward-model helpful --component quality -o quality.json",
)
def fit_normalisation(
    reference: Annotated[Path, typer.Argument(metavar="REFERENCE", help="File of JSON lines, 50 or more.")],
    *,
    reward_model: Annotated[str, typer.Option(help="Reward model that has the component.")],
    component: Annotated[str, typer.Option(help="Component to fit; may be left out where there is only one.")] = "",
    output: Annotated[Path, typer.Option("--output", "-o", help="File to write, for the setting normalisation.")],
    constitution: Annotated[str, typer.Option(help="Constitution, where a component is the judge.")] = "",
    concurrency: Annotated[int, typer.Option(min=1, max=64, help="Requests in flight.")] = 4,
    address: Address = "",
    state: State = DEFAULT_STATE,
    tls_ca: TlsCa = None,
    token_file: TokenFile = None,
    timeout: Timeout = 600.0,
) -> None:
    """Score a reference set and keep mean and sd of a component's raw values: its values then are in sds from there."""
    from rlaif.cli.reward_normalisation import fit, read_reference
    from rlaif.runtime.artifacts import atomic_write_text

    read = read_reference(reference)
    with _client(address, state, tls_ca, token_file, timeout) as client:
        fitted = fit(
            client,
            _full(reward_model),
            read,
            component=component,
            constitution=constitution,
            concurrency=concurrency,
        )
    atomic_write_text(output, json.dumps(fitted.to_json(), indent=2) + "\n")
    typer.echo(
        f"{output}: {fitted.num_inputs} of {len(read.inputs)} inputs, mean {fitted.mean:.6g}, sd {fitted.sd:.6g}; name "
        "it in the component's setting normalisation"
    )


@contextmanager
def _client(
    address: str, state: Path, tls_ca: Path | None, token_file: Path | None, timeout_seconds: float
) -> Iterator[RewardClient]:
    from rlaif.cli.addresses import announce_path, read_announcement
    from rlaif.cli.remote import remote_settings
    from rlaif.cli.status import is_service
    from rlaif.client.reward import RewardClient
    from rlaif.core.errors import InvalidInputError
    from rlaif.runtime.settings import ClientSettings

    connect = remote_settings if address else ClientSettings
    if not address:
        announcement = read_announcement(announce_path(state, "reward"))
        if announcement is None or not is_service(announcement):
            raise InvalidInputError(
                f"no reward service runs from {state}: start one with `rlaif up`, or give --address", field="--address"
            )
        address = announcement.address
    settings = connect(target=address, tls_ca_path=tls_ca, token_path=token_file, timeout_seconds=timeout_seconds)
    with RewardClient(settings) as client:
        yield client


def _full(name: str) -> str:
    return name if name.startswith(_PREFIX) else f"{_PREFIX}{name}"
