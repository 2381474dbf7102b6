"""`rlaif plan`: what a run will need, before anyone pays for it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

import typer

from rlaif.cli.run_options import (
    HOW,
    SIZES,
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
[bold]rlaif plan --policy Qwen/Qwen3-8B --judge Qwen/Qwen3-32B --num-prompts 100000[/bold]

    Labels, tokens, GPUs, memory, hours and cost of that run on H100s, and all that the numbers rest on.

[bold]rlaif plan … --gpu a100-80gb --gpus judge=4 --gpus trainer=16 --price 1.8 --json[/bold]

    On other GPUs, more of them, at your price, for a program to read.
"""
_PLAN = "The plan"
_ROLES = ("sampler", "judge", "reward", "evaluator", "trainer")


def plan(
    *,
    prompts: PromptsOption = None,
    constitution: ConstitutionOption = None,
    policy: PolicyOption = None,
    judge: JudgeOption = None,
    evaluator: EvaluatorOption = None,
    pipeline: Annotated[
        Literal["rlaif", "label-only"], typer.Option(help="The whole loop, or labels alone.", rich_help_panel=HOW)
    ] = "rlaif",
    reward: RewardOption = None,
    algorithm: AlgorithmOption = None,
    constitutional: ConstitutionalOption = False,
    rounds: RoundsOption = None,
    num_prompts: NumPromptsOption = None,
    num_completions: NumCompletionsOption = None,
    steps: StepsOption = None,
    max_tokens: MaxTokensOption = None,
    set_: SetOption = None,
    prompt_tokens: Annotated[
        float | None,
        typer.Option(
            min=1,
            metavar="N",
            help="Mean length of a prompt. Default: of --prompts, else 200.",
            rich_help_panel=SIZES,
            show_default=False,
        ),
    ] = None,
    completion_tokens: Annotated[
        float | None,
        typer.Option(
            min=1,
            metavar="N",
            help="Mean length of a completion. Default: the longest allowed.",
            rich_help_panel=SIZES,
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

    The run is described as to `rlaif run`. Of a model its config.json is enough,
    a well-known name, or its sizes: num_hidden_layers=36,hidden_size=4096,…
    Nothing is started. Of models on object storage the config.json is read, and nothing else on a network.
    """
    options = dict(locals())
    from rlaif.cli.run_inputs import with_changes
    from rlaif_pipelines.planning import PlanOptions, prepare_plan

    values, changes = settings_of(options)
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
