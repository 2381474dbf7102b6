"""What every command that talks to Kubeflow Pipelines is told of it."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Concatenate, Final, ParamSpec, TypeVar, get_type_hints

import typer

if TYPE_CHECKING:
    from rlaif_pipelines.submission import PipelinesClient

Parameters = ParamSpec("Parameters")
Answer = TypeVar("Answer")

RunArgument = Annotated[str, typer.Argument(metavar="RUN", help="Id of the run.", show_default=False)]
PollOption = Annotated[
    float, typer.Option("--poll", min=0.1, max=600.0, metavar="SECONDS", help="Pause between two looks.")
]
PlainOption = Annotated[bool, typer.Option("--plain", help="Lines in place of the live picture.")]
LimitOption = Annotated[int, typer.Option("--limit", min=1, max=200, metavar="N", help="Most on a page.")]
PageOption = Annotated[
    str, typer.Option("--page", metavar="TOKEN", help="The page that an earlier one named.", show_default=False)
]
POLL_SECONDS: Final = 5.0


def with_client(
    command: Callable[Concatenate[PipelinesClient, Parameters], Answer],
) -> Callable[Parameters, Answer]:
    """The command with the options of a connection beside its own; it is handed the open client."""

    @functools.wraps(command)
    def run(*arguments: Any, **options: Any) -> Answer:
        from rlaif_pipelines.submission import PipelinesClient, find_connection

        connection = find_connection(**{name: options.pop(name) for name in _CONNECTION})
        with PipelinesClient(connection) as client:
            return command(client, *arguments, **options)

    client, *own = inspect.signature(command).parameters.values()
    run.__annotations__ = {name: hint for name, hint in command.__annotations__.items() if name != client.name}
    # Typer reads options from the signature, and their annotations, resolved here where their names are known.
    hints = get_type_hints(run, globalns=command.__globals__, include_extras=True)
    run.__annotations__ = hints | {name: option.annotation for name, option in _CONNECTION.items()}
    own = [option.replace(annotation=hints[option.name]) for option in own]
    run.__signature__ = inspect.Signature([*own, *_CONNECTION.values()])  # type: ignore[attr-defined]
    return run


def _option(name: str, default: Any, kind: Any, help_: str, *, metavar: str, **more: Any) -> inspect.Parameter:
    flag = f"--{name.removesuffix('_seconds').replace('_', '-')}"
    option = typer.Option(
        flag, metavar=metavar, help=help_, show_default=bool(default), rich_help_panel="Kubeflow Pipelines", **more
    )
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=Annotated[kind, option])


_CONNECTION: Final = {
    option.name: option
    for option in (
        _option(
            "host",
            "",
            str,
            "Address of the API, such as https://kubeflow.example.com/pipeline. Default: RLAIF_KFP_HOST, else the "
            "cluster that this runs in.",
            metavar="URL",
        ),
        _option("ui_host", "", str, "Address of the UI, for links, where it is not that of the API.", metavar="URL"),
        _option("namespace", "", str, "Your namespace, where several users share an installation.", metavar="NAME"),
        _option(
            "token_file",
            None,
            Path | None,
            "File with a bearer token: a service account's, or an OIDC identity token. Default: RLAIF_KFP_TOKEN, else "
            "the token that pods are given.",
            metavar="FILE",
        ),
        _option(
            "header_file",
            None,
            Path | None,
            "File with headers to send, a line each, such as the Cookie of an OIDC login.",
            metavar="FILE",
        ),
        _option("ca_file", None, Path | None, "PEM certificates to trust in place of the usual ones.", metavar="FILE"),
        _option("timeout_seconds", 60.0, float, "How long one answer may take.", metavar="SECONDS", min=1.0),
    )
}
