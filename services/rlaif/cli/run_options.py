"""Options that describe a run, for every command that takes them, and the settings that they are."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Final, Literal

import typer

WHAT, HOW, SIZES = "What to train on", "How to train", "Sizes"

PromptsOption = Annotated[
    Path | None,
    typer.Option(
        "--prompts",
        metavar="FILE",
        help='Prompts: {"prompt": …} or {"messages": […]} a line. Without it the playground\'s.',
        rich_help_panel=WHAT,
    ),
]
ConstitutionOption = Annotated[
    str | None,
    typer.Option(
        "--constitution",
        metavar="FILE|NAME",
        help="Principles to judge by: a YAML file or a shipped name.",
        rich_help_panel=WHAT,
    ),
]
PolicyOption = Annotated[
    str | None,
    typer.Option(
        "--policy",
        metavar="MODEL",
        help="Policy to train: a folder, a URI, a Hugging Face id, or 'playground'.",
        rich_help_panel=WHAT,
    ),
]
JudgeOption = Annotated[
    str | None, typer.Option("--judge", metavar="MODEL", help="Judge that labels, likewise.", rich_help_panel=WHAT)
]
EvaluatorOption = Annotated[
    str | None,
    typer.Option(
        "--evaluator",
        metavar="MODEL",
        help="Second judge that only evaluates: a model, the host:port of a judge service, or 'none'.",
        rich_help_panel=WHAT,
    ),
]
RewardOption = Annotated[
    Literal["judge", "model"] | None,
    typer.Option(
        "--reward",
        help="GRPO's reward: the judge's score, or a reward model trained on its labels.",
        rich_help_panel=HOW,
    ),
]
AlgorithmOption = Annotated[
    Literal["grpo", "dpo", "sft"] | None,
    typer.Option(
        "--algorithm", help="How the policy learns; sft is the constitutional stage alone.", rich_help_panel=HOW
    ),
]
ConstitutionalOption = Annotated[
    bool,
    typer.Option(
        "--constitutional",
        help="First let the judge criticise and revise replies of the policy, and fine-tune it on them.",
        rich_help_panel=HOW,
    ),
]
RoundsOption = Annotated[
    int | None,
    typer.Option(
        "--rounds", min=1, max=16, metavar="N", help="Times to sample, judge, gate, train.", rich_help_panel=HOW
    ),
]
NumPromptsOption = Annotated[
    int | None,
    typer.Option("--num-prompts", min=1, metavar="N", help="Prompts labelled in a round.", rich_help_panel=SIZES),
]
NumCompletionsOption = Annotated[
    int | None,
    typer.Option(
        "--num-completions", min=2, metavar="N", help="Completions of each labelled prompt.", rich_help_panel=SIZES
    ),
]
StepsOption = Annotated[
    int | None, typer.Option("--steps", min=1, metavar="N", help="GRPO steps of a round.", rich_help_panel=SIZES)
]
MaxTokensOption = Annotated[
    int | None, typer.Option("--max-tokens", min=1, metavar="N", help="Longest completion.", rich_help_panel=SIZES)
]
SetOption = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="KEY=VALUE",
        help="Any other setting, such as rl.kl_beta=0.1 (rlaif run --show-settings lists all); may be repeated.",
        rich_help_panel=SIZES,
    ),
]

_SETTINGS: Final = (
    "pipeline",
    "prompts",
    "constitution",
    "policy",
    "judge",
    "evaluator",
    "reward",
    "algorithm",
    "rounds",
    "seed",
    "out",
    "artifact_root",
)
"""Options that are settings of the same name."""
_SIZES: Final[Mapping[str, str]] = {
    "num_prompts": "sampling.num_prompts",
    "num_completions": "sampling.num_completions",
    "max_tokens": "sampling.max_tokens",
    "steps": "rl.steps",
}


def settings_of(options: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """(settings, changes to them, as --set has them) of a command's options by name, whichever of these it has."""
    values: dict[str, Any] = {name: options[name] for name in _SETTINGS if options.get(name) is not None}
    if options.get("human_labels"):
        values["human_labels"] = {"path": options["human_labels"]}
    if options.get("constitutional"):
        values["constitutional"] = {"enabled": True}
    sizes = [f"{setting}={options[name]}" for name, setting in _SIZES.items() if options.get(name) is not None]
    return values, [*sizes, *(options.get("set_") or ())]
