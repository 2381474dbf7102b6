"""Sample what the judge will label: several completions of each of a round's prompts."""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rlaif_pipelines.context import RunContext, StageResult, read_rows, stage_name, write_rows
from rlaif_pipelines.stages.completions import COMPLETIONS_FILE, derive_seed, sample_rows
from rlaif_pipelines.stages.parts import Part, gather_parts, num_parts, run_part
from rlaif_pipelines.stages.policy import PolicyVersion, starting_policy
from rlaif_pipelines.stages.prompts import PROMPTS_FILE


def sample(context: RunContext, *, round_number: int = 1, part: int = 1) -> StageResult:
    """completions.jsonl of one round, or of one part of it: from the policy the round before left, or the base."""
    start = starting_policy(context, round_number=round_number)
    seed = derive_seed("sample", context.settings.seed, round_number)

    def work(folder: Path, name: str, part: Part) -> dict[str, Any]:
        sizes = context.settings.sampling
        rows = read_rows(context.result("prompts").path(PROMPTS_FILE))
        train = [row for row in rows if row["split"] == "train"]
        with context.sampler() as sampler:
            completions = sample_rows(
                sampler,
                context.policy,
                choose_prompts(train, num_prompts=sizes.num_prompts, seed=seed),
                version=start.version,
                num_completions=sizes.num_completions,
                max_tokens=sizes.max_tokens,
                temperature=sizes.temperature,
                seed=seed,
                prompts_per_request=sizes.prompts_per_request,
                part=part,
                progress=context.progress(name, message="prompts"),
            )
            num_rows = write_rows(folder / COMPLETIONS_FILE, completions)
        return {"num_prompts": num_rows, "policy_version": start.version}

    return run_part(
        context,
        stage_name("sample", round_number),
        work,
        file=COMPLETIONS_FILE,
        inputs=_inputs(context, start),
        part=Part(part, num_parts(context)),
    )


def gather_sample(context: RunContext, *, round_number: int = 1) -> StageResult:
    """completions.jsonl of one round, put together from its parts."""
    start = starting_policy(context, round_number=round_number)

    def values(parts: list[Mapping[str, Any]]) -> dict[str, Any]:
        return {"num_prompts": sum(part["num_prompts"] for part in parts), "policy_version": start.version}

    return gather_parts(
        context,
        stage_name("sample", round_number),
        file=COMPLETIONS_FILE,
        inputs=_inputs(context, start),
        total=num_parts(context),
        values=values,
    )


def _inputs(context: RunContext, start: PolicyVersion) -> dict[str, Any]:
    return {
        "prompts": context.result("prompts").values["train_sha256"],
        "policy": context.policy,
        "version": start.version,
        "digest": start.digest,
        "sampling": context.settings.sampling.model_dump(),
        "seed": context.settings.seed,
    }


def choose_prompts(prompts: Sequence[Mapping[str, Any]], *, num_prompts: int, seed: int) -> list[Mapping[str, Any]]:
    """That many prompts, the categories in turn, each shuffled by seed; all of them where there are fewer."""
    rng = random.Random(seed)  # noqa: S311 - not for secrets
    by_category: dict[str, list[Mapping[str, Any]]] = defaultdict(list)
    for prompt in prompts:
        by_category[str(prompt["category"])].append(prompt)
    pools = [by_category[category] for category in sorted(by_category)]
    for pool in pools:
        rng.shuffle(pool)
    chosen: list[Mapping[str, Any]] = []
    while len(chosen) < num_prompts and any(pools):
        chosen += [pool.pop() for pool in pools if pool][: num_prompts - len(chosen)]
    return chosen
