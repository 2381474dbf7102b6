"""`rlaif run`: the whole loop on this machine, services included."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from rlaif.cli.run_options import (
    HOW,
    WHAT,
    AlgorithmOption,
    ConstitutionalOption,
    ConstitutionOption,
    EvaluatorOption,
    JudgeOption,
    MaxTokensOption,
    NumCompletionsOption,
    NumPromptsOption,
    PolicyOption,
    PromptsOption,
    RewardOption,
    RoundsOption,
    SetOption,
    StepsOption,
    settings_of,
)

EPILOG = """
[bold]rlaif run[/bold]

    The playground, in minutes.

[bold]rlaif run --out runs/first[/bold]

    The same; started again after an interruption, it continues where it stopped.

[bold]rlaif run --prompts my.jsonl --constitution my.yaml --policy ./my-policy --judge ./my-judge
--evaluator ./another-judge[/bold]

    Your own prompts, principles and models.
"""
_COMMAND = "This command"


def run(
    *,
    prompts: PromptsOption = None,
    constitution: ConstitutionOption = None,
    policy: PolicyOption = None,
    judge: JudgeOption = None,
    evaluator: EvaluatorOption = None,
    human_labels: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="People's labels to mix with the judge's, in any form `rlaif labels import` takes.",
            rich_help_panel=WHAT,
        ),
    ] = None,
    reward: RewardOption = None,
    algorithm: AlgorithmOption = None,
    constitutional: ConstitutionalOption = False,
    rounds: RoundsOption = None,
    seed: Annotated[
        int, typer.Option(min=0, metavar="N", help="Every random choice follows from it.", rich_help_panel=HOW)
    ] = 0,
    num_prompts: NumPromptsOption = None,
    num_completions: NumCompletionsOption = None,
    steps: StepsOption = None,
    max_tokens: MaxTokensOption = None,
    set_: SetOption = None,
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER",
            help="Run folder; the same folder continues. Default: runs/<time>-<seed>.",
            rich_help_panel=_COMMAND,
        ),
    ] = None,
    artifact_root: Annotated[
        str | None,
        typer.Option(
            metavar="URI",
            help="Where the run's models are published: a folder or s3://bucket/path. Default: in --out.",
            rich_help_panel=_COMMAND,
        ),
    ] = None,
    restart: Annotated[
        bool,
        typer.Option("--restart", help="Throw away the run that --out holds and begin anew.", rich_help_panel=_COMMAND),
    ] = False,
    engine: Annotated[
        Literal["hf", "vllm"],
        typer.Option(
            help="What runs sampler and judge: hf is transformers, vllm is vLLM (from an environment that has it).",
            rich_help_panel=_COMMAND,
        ),
    ] = "hf",
    threads: Annotated[
        int,
        typer.Option(min=0, metavar="N", help="Threads of each model. 0: one a core.", rich_help_panel=_COMMAND),
    ] = 0,
    plain: Annotated[
        bool, typer.Option("--plain", help="Lines in place of the live picture.", rich_help_panel=_COMMAND)
    ] = False,
    show_settings: Annotated[
        bool,
        typer.Option(
            "--show-settings",
            help="Print all settings that --set can change, what each means and what it would be, and run nothing.",
            rich_help_panel=_COMMAND,
        ),
    ] = False,
) -> int:
    """Train a policy from AI feedback: sample, judge, gate, train, evaluate, report.

    Starts the services it needs on loopback, shows what happens, and always stops them.
    Without options it plays in the embedded playground.
    """
    options = dict(locals())
    values, changes = settings_of(options)
    if show_settings:
        from rlaif.cli.run_inputs import with_changes
        from rlaif_pipelines.settings import RunSettings, make_settings
        from rlaif_pipelines.training.config.example import example

        typer.echo(example(RunSettings, make_settings(with_changes(values, changes))), nl=False)
        return 0
    from rlaif.cli.runner import RunOptions, run_loop

    return run_loop(
        values,
        changes=changes,
        options=RunOptions(num_threads=threads, restart=restart, plain=plain, engine=engine),
    )
