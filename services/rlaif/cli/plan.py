"""`rlaif plan`: what a run will need, before anyone pays for it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

EPILOG = """
[bold]rlaif plan --policy Qwen/Qwen3-8B --judge Qwen/Qwen3-32B --num-prompts 100000[/bold]

    Labels, tokens, GPUs, memory, hours and cost of that run on H100s, and all that the numbers rest on.

[bold]rlaif plan … --gpu a100-80gb --gpus judge=4 --gpus trainer=16 --price 1.8 --json[/bold]

    On other GPUs, more of them, at your price, for a program to read.
"""
_RUN, _SIZES, _PLAN = "The run, as of rlaif run", "Sizes", "The plan"
_ROLES = ("sampler", "judge", "reward", "evaluator", "trainer")
_MODEL = "a folder or URI with config.json, a well-known name, or sizes such as num_hidden_layers=36,hidden_size=4096,…"


def plan(
    *,
    policy: Annotated[
        str | None, typer.Option(metavar="MODEL", help=f"Policy to train: {_MODEL}", rich_help_panel=_RUN)
    ] = None,
    judge: Annotated[str | None, typer.Option(metavar="MODEL", help="Judge that labels.", rich_help_panel=_RUN)] = None,
    evaluator: Annotated[
        str | None,
        typer.Option(metavar="MODEL", help="Second judge that only evaluates, or its host:port.", rich_help_panel=_RUN),
    ] = None,
    prompts: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Prompts, whose lengths then count.", rich_help_panel=_RUN),
    ] = None,
    constitution: Annotated[
        str | None, typer.Option(metavar="FILE|NAME", help="Principles to judge by.", rich_help_panel=_RUN)
    ] = None,
    reward: Annotated[
        Literal["judge", "model"] | None, typer.Option(help="GRPO's reward.", rich_help_panel=_RUN)
    ] = None,
    algorithm: Annotated[
        Literal["grpo", "dpo", "sft"] | None, typer.Option(help="How the policy learns.", rich_help_panel=_RUN)
    ] = None,
    constitutional: Annotated[
        bool, typer.Option("--constitutional", help="With the constitutional stage first.", rich_help_panel=_RUN)
    ] = False,
    pipeline: Annotated[
        Literal["rlaif", "label-only"], typer.Option(help="Which pipeline.", rich_help_panel=_RUN)
    ] = "rlaif",
    rounds: Annotated[
        int | None,
        typer.Option(min=1, max=16, metavar="N", help="Times to sample, judge, gate, train.", rich_help_panel=_RUN),
    ] = None,
    num_prompts: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="Prompts labelled in a round.", rich_help_panel=_SIZES)
    ] = None,
    num_completions: Annotated[
        int | None, typer.Option(min=2, metavar="N", help="Completions of each.", rich_help_panel=_SIZES)
    ] = None,
    steps: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="GRPO steps of a round.", rich_help_panel=_SIZES)
    ] = None,
    max_tokens: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="Longest completion.", rich_help_panel=_SIZES)
    ] = None,
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Any other setting; may be repeated.", rich_help_panel=_SIZES),
    ] = None,
    prompt_tokens: Annotated[
        float | None,
        typer.Option(
            min=1,
            metavar="N",
            help="Mean length of a prompt. Default: of --prompts, else 200.",
            rich_help_panel=_SIZES,
            show_default=False,
        ),
    ] = None,
    completion_tokens: Annotated[
        float | None,
        typer.Option(
            min=1,
            metavar="N",
            help="Mean length of a completion. Default: the longest allowed.",
            rich_help_panel=_SIZES,
            show_default=False,
        ),
    ] = None,
    gpu: Annotated[
        str, typer.Option(metavar="NAME", help="Kind of GPU, as the table names it.", rich_help_panel=_PLAN)
    ] = "h100-80gb",
    gpus: Annotated[
        list[str] | None,
        typer.Option(
            metavar="ROLE=N",
            help=f"GPUs of {', '.join(_ROLES)}; may be repeated. Default: the fewest on which its model fits.",
            rich_help_panel=_PLAN,
        ),
    ] = None,
    price: Annotated[
        float | None,
        typer.Option(
            min=0,
            metavar="USD",
            help="Of one GPU and hour. Default: the table's.",
            rich_help_panel=_PLAN,
            show_default=False,
        ),
    ] = None,
    hardware: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="YAML of GPUs, efficiencies and measured rates, before the built-in ones.",
            rich_help_panel=_PLAN,
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.", rich_help_panel=_PLAN)] = False,
) -> None:
    """Say what a run will need: labels, tokens, memory and GPUs, hours, cost, and all that these rest on.

    Nothing is started, and nothing is looked up on a network but the config.json of a model on object storage.
    """
    from rlaif.cli.run_inputs import with_changes
    from rlaif_pipelines.planning import PlanOptions, prepare_plan

    values: dict[str, Any] = {
        "pipeline": pipeline,
        "prompts": prompts,
        "constitution": constitution,
        "policy": policy,
        "judge": judge,
        "evaluator": evaluator,
        "reward": reward,
        "algorithm": algorithm,
        "constitutional": {"enabled": True} if constitutional else None,
        "rounds": rounds,
    }
    sizes = {
        "sampling.num_prompts": num_prompts,
        "sampling.num_completions": num_completions,
        "sampling.max_tokens": max_tokens,
        "rl.steps": steps,
    }
    changes = [*(f"{key}={value}" for key, value in sizes.items() if value is not None), *(set_ or ())]
    found = prepare_plan(
        with_changes(values, changes),
        PlanOptions(
            gpu=gpu,
            gpus=_gpus(gpus or ()),  # type: ignore[arg-type]
            price=price,
            hardware=hardware,
            prompt_tokens=prompt_tokens,
            completion_tokens=completion_tokens,
        ),
    ).plan()
    if as_json:
        typer.echo(json.dumps(found.to_json(), indent=1, ensure_ascii=False))
        return
    from rlaif.cli.plan_display import print_plan

    print_plan(found)


def _gpus(texts: Sequence[str]) -> dict[str, int]:
    from rlaif.core.errors import InvalidInputError

    found = {}
    for text in texts:
        role, _, number = text.partition("=")
        if role not in _ROLES or not number.isdecimal() or not 1 <= int(number) <= 1024:
            raise InvalidInputError(
                f"--gpus {text}: must be ROLE=N, such as judge=4; roles are {', '.join(_ROLES)}, N at most 1024",
                field="--gpus",
            )
        found[role] = int(number)
    return found
