"""The `rlaif` command: one module a verb; what a verb needs is imported when it runs."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import Annotated, Any, NoReturn

import typer

from rlaif.cli import (
    cancel,
    constitution,
    doctor,
    down,
    exits,
    judge,
    labels,
    ledger,
    logs,
    plan,
    playground,
    report,
    reward,
    run,
    runs,
    schedule,
    serve,
    status,
    submit,
    token,
    up,
)
from rlaif.cli import compile as compile_verb
from rlaif.core.errors import RlaifError

_UsageError: Any = next(base for base in typer.BadParameter.__mro__ if base.__name__ == "ClickException")
"""Typer vendors Click, or depends on it, by version; either way this is what it raises for a wrong command line."""

app = typer.Typer(
    name="rlaif",
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    help="Train a language model from AI feedback: a policy proposes, a judge bound by a written constitution decides, "
    "a ledger remembers, and a report says from independent evidence whether the policy became better.",
    epilog="Start here: [bold]rlaif run[/bold] takes the built-in playground through the whole loop in minutes. "
    "Exit codes: 0 done, 1 failed, 2 wrong input or settings, 3 stopped by a gate or guard, 130 interrupted.",
)
_TRAIN, _CHECK, _SERVE, _CLUSTER = "Train", "Judge, labels, evidence", "Services", "On Kubeflow Pipelines"

app.command("run", epilog=run.EPILOG, rich_help_panel=_TRAIN)(run.run)
app.command("plan", epilog=plan.EPILOG, rich_help_panel=_TRAIN)(plan.plan)
app.command("report", epilog=report.EPILOG, rich_help_panel=_TRAIN)(report.report)
app.add_typer(playground.app, name="playground", rich_help_panel=_TRAIN)
app.add_typer(judge.app, name="judge", rich_help_panel=_CHECK)
app.add_typer(constitution.app, name="constitution", rich_help_panel=_CHECK)
app.add_typer(labels.app, name="labels", rich_help_panel=_CHECK)
app.add_typer(reward.app, name="reward", rich_help_panel=_CHECK)
app.add_typer(ledger.app, name="ledger", rich_help_panel=_CHECK)
app.command("up", epilog=up.EPILOG, rich_help_panel=_SERVE)(up.up)
app.command("status", epilog=status.EPILOG, rich_help_panel=_SERVE)(status.status)
app.command("doctor", epilog=doctor.EPILOG, rich_help_panel=_SERVE)(doctor.doctor)
app.command("down", epilog=down.EPILOG, rich_help_panel=_SERVE)(down.down)
app.command("serve", epilog=serve.EPILOG, rich_help_panel=_SERVE)(serve.serve)
app.add_typer(token.app, name="token", rich_help_panel=_SERVE)
app.command("compile", epilog=compile_verb.EPILOG, rich_help_panel=_CLUSTER)(compile_verb.compile_)
app.command("submit", epilog=submit.EPILOG, rich_help_panel=_CLUSTER)(submit.submit)
app.add_typer(runs.app, name="runs", rich_help_panel=_CLUSTER)
app.command("logs", epilog=logs.EPILOG, rich_help_panel=_CLUSTER)(logs.logs)
app.command("cancel", epilog=cancel.EPILOG, rich_help_panel=_CLUSTER)(cancel.cancel)
app.add_typer(schedule.app, name="schedule", rich_help_panel=_CLUSTER)


def _tell_version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        typer.echo(f"rlaif {version('kube-rlaif')}")
        raise typer.Exit


@app.callback()
def _app(
    *,
    version: Annotated[
        bool, typer.Option("--version", callback=_tell_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    pass


def main() -> NoReturn:
    """Entry point of the `rlaif` script."""
    sys.exit(execute(sys.argv[1:]))


def execute(arguments: Sequence[str]) -> int:
    """Run one command line and return its exit code; an error of ours becomes one sentence on stderr."""
    try:
        answer: Any = app(args=list(arguments), prog_name="rlaif", standalone_mode=False)
    except (RlaifError, KeyboardInterrupt, typer.Abort) as error:
        return _explain(error)
    except BrokenPipeError:  # the reader of our output left, as `head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return exits.DONE
    except OSError as error:
        told = exits.disk_full_error(error) or exits.wrong_place_error(error)
        if told is None:
            raise
        return _explain(told)
    except _UsageError as error:
        error.show()
        return exits.WRONG_INPUT
    return answer if isinstance(answer, int) else exits.DONE


def _explain(error: BaseException) -> int:
    code = exits.exit_code_of(error) if not isinstance(error, typer.Abort) else exits.INTERRUPTED
    text = exits.sentence(error) if isinstance(error, RlaifError) else "interrupted"
    sys.stderr.write(f"rlaif: {text}\n")
    return code


if __name__ == "__main__":
    main()
