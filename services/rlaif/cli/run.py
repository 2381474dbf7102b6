"""`rlaif run`: the whole loop on this machine, services included."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import typer

EPILOG = """
[bold]rlaif run[/bold]

    The playground, in minutes.

[bold]rlaif run --out runs/first[/bold]

    The same; started again after an interruption, it continues where it stopped.

[bold]rlaif run --prompts my.jsonl --constitution my.yaml --policy ./my-policy --judge ./my-judge
--evaluator ./another-judge[/bold]

    Your own prompts, principles and models.
"""
_WHAT, _HOW, _SIZES, _COMMAND = "What to train on", "How to train", "Sizes", "This command"
_MODEL = "a folder, a URI, a Hugging Face id, or 'playground'"


def run(
    *,
    prompts: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help='Prompts: {"prompt": …} or {"messages": […]} a line. Without it the playground\'s.',
            rich_help_panel=_WHAT,
        ),
    ] = None,
    constitution: Annotated[
        str | None,
        typer.Option(
            metavar="FILE|NAME", help="Principles to judge by: a YAML file or a shipped name.", rich_help_panel=_WHAT
        ),
    ] = None,
    policy: Annotated[
        str | None, typer.Option(metavar="MODEL", help=f"Policy to train: {_MODEL}.", rich_help_panel=_WHAT)
    ] = None,
    judge: Annotated[
        str | None, typer.Option(metavar="MODEL", help=f"Judge that labels: {_MODEL}.", rich_help_panel=_WHAT)
    ] = None,
    evaluator: Annotated[
        str | None,
        typer.Option(
            metavar="MODEL",
            help="Second judge that only evaluates: a model, the host:port of a judge service, or 'none'.",
            rich_help_panel=_WHAT,
        ),
    ] = None,
    human_labels: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="People's labels to mix with the judge's, in any form `rlaif labels import` takes.",
            rich_help_panel=_WHAT,
        ),
    ] = None,
    reward: Annotated[
        Literal["judge", "model"] | None,
        typer.Option(
            help="GRPO's reward: the judge's score, or a reward model trained on its labels.", rich_help_panel=_HOW
        ),
    ] = None,
    algorithm: Annotated[
        Literal["grpo", "dpo", "sft"] | None,
        typer.Option(help="How the policy learns; sft is the constitutional stage alone.", rich_help_panel=_HOW),
    ] = None,
    constitutional: Annotated[
        bool,
        typer.Option(
            "--constitutional",
            help="First let the judge criticise and revise replies of the policy, and fine-tune it on them.",
            rich_help_panel=_HOW,
        ),
    ] = False,
    rounds: Annotated[
        int | None,
        typer.Option(min=1, max=16, metavar="N", help="Times to sample, judge, gate, train.", rich_help_panel=_HOW),
    ] = None,
    seed: Annotated[
        int, typer.Option(min=0, metavar="N", help="Every random choice follows from it.", rich_help_panel=_HOW)
    ] = 0,
    num_prompts: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="Prompts labelled in a round.", rich_help_panel=_SIZES)
    ] = None,
    num_completions: Annotated[
        int | None,
        typer.Option(min=2, metavar="N", help="Completions of each labelled prompt.", rich_help_panel=_SIZES),
    ] = None,
    steps: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="GRPO steps of a round.", rich_help_panel=_SIZES)
    ] = None,
    max_tokens: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="Longest completion.", rich_help_panel=_SIZES)
    ] = None,
    set_: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="KEY=VALUE",
            help="Any other setting, such as rl.kl_beta=0.1; may be repeated.",
            rich_help_panel=_SIZES,
        ),
    ] = None,
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
) -> int:
    """Train a policy from AI feedback: sample, judge, gate, train, evaluate, report.

    Starts the services it needs on loopback, shows what happens, and always stops them.
    Without options it plays in the embedded playground.
    """
    from rlaif.cli.runner import RunOptions, run_loop

    values: dict[str, Any] = {
        "prompts": prompts,
        "constitution": constitution,
        "policy": policy,
        "judge": judge,
        "evaluator": evaluator,
        "human_labels": {"path": human_labels} if human_labels else None,
        "reward": reward,
        "algorithm": algorithm,
        "constitutional": {"enabled": True} if constitutional else None,
        "rounds": rounds,
        "seed": seed,
        "out": out,
        "artifact_root": artifact_root,
    }
    sizes = {
        "sampling.num_prompts": num_prompts,
        "sampling.num_completions": num_completions,
        "sampling.max_tokens": max_tokens,
        "rl.steps": steps,
    }
    return run_loop(
        values,
        changes=[*(f"{key}={value}" for key, value in sizes.items() if value is not None), *(set_ or ())],
        options=RunOptions(num_threads=threads, restart=restart, plain=plain, engine=engine),
    )
