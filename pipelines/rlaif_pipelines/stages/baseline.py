"""What the policy says before training, to the prompts that training never sees."""

from __future__ import annotations

from pathlib import Path

from rlaif_pipelines.context import RunContext, StageOutput, StageResult, read_rows, write_rows
from rlaif_pipelines.stages.completions import COMPLETIONS_FILE, derive_seed, sample_rows
from rlaif_pipelines.stages.policy import PolicyVersion, base_policy
from rlaif_pipelines.stages.prompts import PROMPTS_FILE


def baseline(context: RunContext) -> StageResult:
    """completions.jsonl: one held-out completion a prompt, of version 0."""
    start = base_policy(context)

    def body(folder: Path) -> StageOutput:
        num_rows = sample_held_out(context, folder, stage="baseline", policy=start)
        return StageOutput((COMPLETIONS_FILE,), {"num_prompts": num_rows})

    return context.run_stage("baseline", body, inputs=held_out_inputs(context, start))


def held_out_inputs(context: RunContext, policy: PolicyVersion) -> dict[str, object]:
    """What held-out completions depend on."""
    return {
        "prompts": context.result("prompts").values["held_out_sha256"],
        "policy": context.policy,
        "version": policy.version,
        "digest": policy.digest,
        "max_tokens": context.settings.sampling.max_tokens,
        "seed": context.settings.seed,
    }


def sample_held_out(context: RunContext, folder: Path, *, stage: str, policy: PolicyVersion) -> int:
    """Write one completion, at temperature 1, of each held-out prompt and return how many; the seed is one for all."""
    held_out = [row for row in read_rows(context.result("prompts").path(PROMPTS_FILE)) if row["split"] == "held_out"]
    with context.sampler() as sampler:
        rows = sample_rows(
            sampler,
            context.policy,
            held_out,
            version=policy.version,
            num_completions=1,
            max_tokens=context.settings.sampling.max_tokens,
            temperature=1.0,
            seed=derive_seed("held_out", context.settings.seed),
            prompts_per_request=context.settings.sampling.prompts_per_request,
            progress=context.progress(stage, message="held-out prompts"),
        )
        return write_rows(folder / COMPLETIONS_FILE, rows)
