"""The constitutional stage's data: the policy's own replies, criticised and revised round after round.

Bai et al. 2022 (2212.08073), the supervised stage: sample, criticise by a principle drawn by chance, revise, repeat.
Deviations: principles are drawn by their weights and none twice for one reply before all have been, and replies to
prompts of every kind are revised, so that the harmless ones go on teaching how to help.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from rlaif.core.canonical import sha256_hex
from rlaif.core.errors import InvalidInputError
from rlaif_pipelines.context import RunContext, StageOutput, StageResult, read_rows, write_rows
from rlaif_pipelines.stages.completions import COMPLETIONS_FILE, derive_seed, sample_rows
from rlaif_pipelines.stages.constitution import load_constitution
from rlaif_pipelines.stages.journal import Journal
from rlaif_pipelines.stages.policy import base_policy
from rlaif_pipelines.stages.prompts import PROMPTS_FILE
from rlaif_pipelines.stages.revising import Reviser
from rlaif_pipelines.stages.sample import choose_prompts
from rlaif_pipelines.stages.served import judge_identity

REVISIONS_FILE: Final = "revisions.jsonl"
_JOURNAL_FILE: Final = "answers.jsonl"
_ROWS_PER_EVENT: Final = 100


def revise(context: RunContext) -> StageResult:
    """revisions.jsonl: each reply with its critiques, principles, seeds and revisions, or why it has none."""
    settings = context.settings
    if settings.constitutional_stage == "none":
        raise InvalidInputError(
            "this pipeline has a constitutional stage and the run's settings have none: compile it for these settings",
            field="constitutional.enabled",
        )
    start, constitution = base_policy(context), load_constitution(settings.constitution)
    inputs = {
        "prompts": context.result("prompts").values["train_sha256"],
        "policy": context.policy,
        "digest": start.digest,
        "constitution": constitution.sha256,
        "judge": judge_identity(context),
        "template": settings.judge_template,
        "num_prompts": settings.constitutional.num_prompts,
        "rounds": settings.constitutional.rounds,
        "max_tokens": settings.sampling.max_tokens,
        "temperature": settings.sampling.temperature,
        "seed": settings.seed,
    }

    def body(folder: Path) -> StageOutput:
        replies = _replies(context, folder, version=start.version)
        with Journal(folder / _JOURNAL_FILE) as journal:
            rows = list(_revised(context, replies, journal=journal))
        write_rows(folder / REVISIONS_FILE, rows)
        _record(context, rows)
        return StageOutput((REVISIONS_FILE, COMPLETIONS_FILE), {"policy_version": start.version, **summarise(rows)})

    return context.run_stage("revise", body, inputs=inputs, resumable=True)


def summarise(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """How many replies were criticised, revised, left as they were and dropped, and why; also by principle."""
    rounds = [each for row in rows for each in row["rounds"]]
    usable = [row for row in rows if row["dropped"] is None]
    num_revised = sum(row["revised"] != row["original"] for row in usable)
    return {
        "num_replies": len(rows),
        "num_critiques": sum(each["critique"] is not None for each in rounds),
        "num_usable": len(usable),
        "num_revised": num_revised,
        "num_unchanged": len(usable) - num_revised,
        "num_dropped": len(rows) - len(usable),
        "dropped": dict(sorted(Counter(row["dropped"] for row in rows if row["dropped"] is not None).items())),
        "by_principle": {
            principle_id: _outcomes([each for each in rounds if each["principle_id"] == principle_id])
            for principle_id in sorted({each["principle_id"] for each in rounds})
        },
        "judge_digests": sorted({each["judge_digest"] for each in rounds if each["judge_digest"] is not None}),
    }


def _outcomes(rounds: Sequence[Mapping[str, Any]]) -> dict[str, int]:
    return {
        "num_critiques": sum(each["critique"] is not None for each in rounds),
        "num_revised": sum(each["unchanged"] is False for each in rounds),
        "num_unchanged": sum(each["unchanged"] is True for each in rounds),
        "num_dropped": sum(each["revision"] is None for each in rounds),
    }


def _replies(context: RunContext, folder: Path, *, version: int) -> list[dict[str, Any]]:
    """One reply of the policy to each prompt that was drawn; what an attempt before has sampled is kept."""
    path, settings = folder / COMPLETIONS_FILE, context.settings
    if not path.is_file():
        train = [row for row in read_rows(context.result("prompts").path(PROMPTS_FILE)) if row["split"] == "train"]
        seed = derive_seed("revise", settings.seed)
        with context.sampler() as sampler:
            rows = sample_rows(
                sampler,
                context.policy,
                choose_prompts(train, num_prompts=settings.constitutional.num_prompts, seed=seed),
                version=version,
                num_completions=1,
                max_tokens=settings.sampling.max_tokens,
                temperature=settings.sampling.temperature,
                seed=seed,
                prompts_per_request=settings.sampling.prompts_per_request,
            )
            write_rows(path, rows)
    return list(read_rows(path))


def _revised(
    context: RunContext, replies: Sequence[Mapping[str, Any]], *, journal: Journal
) -> Iterator[dict[str, Any]]:
    from rlaif.client.bulk import Bulk, run_bulk

    settings, sizes = context.settings, context.settings.constitutional
    progress = context.progress("revise", message="replies")
    # The rounds of one reply follow each other, so its time is that of all its calls.
    seconds = 2 * sizes.rounds * context.services.timeout_seconds
    with context.judge() as judge:
        reviser = Reviser(
            judge=judge,
            constitution=load_constitution(settings.constitution),
            journal=journal,
            num_rounds=sizes.rounds,
            seed=settings.seed,
        )
        bulk = Bulk(batch_size=1, concurrency=sizes.concurrency, timeout_seconds=seconds, errors="raise")
        for number, [row] in enumerate(run_bulk(replies, lambda one, _: [reviser.row(one[0])], bulk), start=1):
            assert isinstance(row, dict), "errors are raised"
            yield row
            if number % sizes.concurrency == 0 or number == len(replies):
                progress(number, len(replies))


def _record(context: RunContext, rows: Sequence[Mapping[str, Any]]) -> None:
    """Every revision into the ledger: by whom, under which principle, from which text to which, as digests."""
    constitution = load_constitution(context.settings.constitution)
    for start in range(0, len(rows), _ROWS_PER_EVENT):
        context.record_event(
            "replies_revised",
            subject=context.policy,
            payload={
                "constitution": constitution.name,
                "constitution_sha256": constitution.sha256,
                "replies": [_provenance(row) for row in rows[start : start + _ROWS_PER_EVENT]],
            },
        )


def _provenance(row: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "prompt_id": row["prompt_id"],
        "policy_version": row["policy_version"],
        "original_sha256": _sha256(row["original"]),
        "revised_sha256": _sha256(row["revised"]),
        "dropped": row["dropped"] or "",
        "rounds": [
            {
                "principle_id": each["principle_id"],
                "seed": str(each["seed"]),  # 63 bits are more than a JSON number keeps
                "critique_sha256": _sha256(each["critique"]),
                "revision_sha256": _sha256(each["revision"]),
                "judge_digest": each["judge_digest"] or "",
                "template_sha256": each["template_sha256"] or "",
            }
            for each in row["rounds"]
        ],
    }


def _sha256(text: str | None) -> str:
    return "" if text is None else sha256_hex(text.encode())
