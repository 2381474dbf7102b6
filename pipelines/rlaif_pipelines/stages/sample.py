"""Sample what the judge will label: several completions of each of a round's prompts."""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rlaif_pipelines.context import RunContext, StageOutput, StageResult, read_rows, stage_name, write_rows
from rlaif_pipelines.stages.completions import COMPLETIONS_FILE, derive_seed, sample_rows
from rlaif_pipelines.stages.policy import starting_policy
from rlaif_pipelines.stages.prompts import PROMPTS_FILE


def sample(context: RunContext, *, round_number: int = 1) -> StageResult:
    """completions.jsonl of one round, from the policy that the round before left (the base in round 1)."""
    prompts = context.result("prompts")
    start = starting_policy(context, round_number=round_number)
    stage = stage_name("sample", round_number)
    inputs = {
        "prompts": prompts.values["train_sha256"],
        "policy": context.policy,
        "version": start.version,
        "digest": start.digest,
        "sampling": context.settings.sampling.model_dump(),
        "seed": context.settings.seed,
    }

    def body(folder: Path) -> StageOutput:
        sizes = context.settings.sampling
        train = [row for row in read_rows(prompts.path(PROMPTS_FILE)) if row["split"] == "train"]
        seed = derive_seed("sample", context.settings.seed, round_number)
        chosen = choose_prompts(train, num_prompts=sizes.num_prompts, seed=seed)
        with context.sampler() as sampler:
            rows = sample_rows(
                sampler,
                context.policy,
                chosen,
                version=start.version,
                num_completions=sizes.num_completions,
                max_tokens=sizes.max_tokens,
                temperature=sizes.temperature,
                seed=seed,
                prompts_per_request=sizes.prompts_per_request,
                progress=context.progress(stage, message="prompts"),
            )
            num_rows = write_rows(folder / COMPLETIONS_FILE, rows)
        return StageOutput((COMPLETIONS_FILE,), {"num_prompts": num_rows, "policy_version": start.version})

    return context.run_stage(stage, body, inputs=inputs)


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
