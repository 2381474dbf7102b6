"""Load the prompts: validated, deduplicated, split into training and held-out."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rlaif.core.canonical import digest
from rlaif.core.errors import InvalidInputError
from rlaif.playground import world
from rlaif_pipelines.context import RunContext, StageOutput, StageResult, file_sha256, write_rows
from rlaif_pipelines.stages import prompt_length
from rlaif_pipelines.stages.prompts_file import SPLITS, PromptSet, read_prompts

PROMPTS_FILE = "prompts.jsonl"


def prompts(context: RunContext) -> StageResult:
    """prompts.jsonl of the run: training prompts, and the held-out ones that the evaluation uses."""
    settings = context.settings
    inputs: dict[str, Any] = {"num_other": settings.evaluation.num_other}
    if settings.prompts is None:
        inputs |= {"source": digest(list(world.prompt_rows())), "num_harmful": settings.evaluation.num_harmful}
        return context.run_stage("prompts", lambda folder: _playground(context, folder), inputs=inputs)
    path = settings.prompts
    found = read_prompts(path, held_out_share=settings.held_out_share)
    inputs |= {
        "source": file_sha256(path),
        "held_out_share": settings.held_out_share,
        "policy": context.result("prepare").values["policy_digest"],
        "max_tokens": settings.sampling.max_tokens,
    }
    return context.run_stage("prompts", lambda folder: _own(context, folder, path=path, found=found), inputs=inputs)


def _playground(context: RunContext, folder: Path) -> StageOutput:
    sizes = context.settings.evaluation
    held_out = world.evaluation_prompts(num_harmful=sizes.num_harmful, num_other=sizes.num_other)
    return _output(folder, [*world.prompt_rows("train"), *map(world.prompt_row, held_out)])


def _own(context: RunContext, folder: Path, *, path: Path, found: PromptSet) -> StageOutput:
    fitter = prompt_length.PromptFitter(
        context.result("prepare").values["policy_uri"], max_tokens=context.settings.sampling.max_tokens
    )
    fitting = [prompt for prompt in found.prompts if fitter.fits(prompt.messages)]
    num_too_long = len(found.prompts) - len(fitting)
    train = [prompt for prompt in fitting if prompt.split == "train"]
    held_out = sorted(
        (prompt for prompt in fitting if prompt.split == "held_out"), key=lambda prompt: digest(prompt.prompt_id)
    )
    for split, left in zip(SPLITS, (train, held_out), strict=True):
        if not left:
            raise InvalidInputError(
                f"no {split} prompt of {path} is within {fitter.max_prompt_tokens} tokens, what the policy's context "
                f"leaves beside completions of {context.settings.sampling.max_tokens}: give shorter prompts, or fewer "
                "--max-tokens",
                field="prompts",
            )
    rows = [prompt.to_row() for prompt in (*train, *held_out[: context.settings.evaluation.num_other])]
    return _output(folder, rows, num_duplicates=found.num_duplicates, num_too_long=num_too_long)


def _output(folder: Path, rows: Sequence[Mapping[str, Any]], **counts: int) -> StageOutput:
    write_rows(folder / PROMPTS_FILE, rows)
    splits = Counter(str(row["split"]) for row in rows)
    values = {
        # Apart, so that another evaluation does not change what was trained on.
        **{f"{split}_sha256": digest([row for row in rows if row["split"] == split]) for split in SPLITS},
        "num_train": splits["train"],
        "num_held_out": splits["held_out"],
        "num_duplicates": counts.get("num_duplicates", 0),
        "num_too_long": counts.get("num_too_long", 0),
        "categories": sorted({str(row["category"]) for row in rows if row["category"] is not None}),
    }
    return StageOutput((PROMPTS_FILE,), values)
