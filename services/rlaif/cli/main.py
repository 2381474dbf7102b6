"""The `rlaif` command: one module a verb; what a verb needs is imported when it runs."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import Any, NoReturn

import typer

from rlaif.cli import (
    cancel,
    constitution,
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
app.command("run", epilog=run.EPILOG)(run.run)
app.command("report", epilog=report.EPILOG)(report.report)
app.command("up", epilog=up.EPILOG)(up.up)
app.command("status", epilog=status.EPILOG)(status.status)
app.command("down", epilog=down.EPILOG)(down.down)
app.command("serve", epilog=serve.EPILOG)(serve.serve)
app.command("compile", epilog=compile_verb.EPILOG)(compile_verb.compile_)
app.command("plan", epilog=plan.EPILOG)(plan.plan)
app.command("submit", epilog=submit.EPILOG)(submit.submit)
app.command("logs", epilog=logs.EPILOG)(logs.logs)
app.command("cancel", epilog=cancel.EPILOG)(cancel.cancel)
app.add_typer(runs.app, name="runs")
app.add_typer(schedule.app, name="schedule")
app.add_typer(constitution.app, name="constitution")
app.add_typer(judge.app, name="judge")
app.add_typer(labels.app, name="labels")
app.add_typer(ledger.app, name="ledger")
app.add_typer(playground.app, name="playground")
app.add_typer(reward.app, name="reward")
app.add_typer(token.app, name="token")


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
        full = exits.disk_full_error(error)
        if full is None:
            raise
        return _explain(full)
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
