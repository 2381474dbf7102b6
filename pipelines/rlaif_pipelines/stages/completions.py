"""Completions of prompts as rows of completions.jsonl, sampled in requests cut by position."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rlaif.core.canonical import digest
from rlaif.core.conversation import parse_conversation
from rlaif.core.errors import PreconditionError
from rlaif_pipelines.context import Progress
from rlaif_pipelines.stages.parts import WHOLE, Part

if TYPE_CHECKING:
    from rlaif.client.sampler import SamplerClient

COMPLETIONS_FILE = "completions.jsonl"


def derive_seed(*parts: object) -> int:
    """A seed in [0, 2**63) that depends on every part."""
    return int(digest([str(part) for part in parts])[:16], 16) >> 1


def sample_rows(
    sampler: SamplerClient,
    policy: str,
    prompts: Sequence[Mapping[str, Any]],
    *,
    version: int,
    num_completions: int,
    max_tokens: int,
    temperature: float,
    seed: int,
    prompts_per_request: int,
    part: Part = WHOLE,
    progress: Progress | None = None,
) -> Iterator[dict[str, Any]]:
    """A row of completions for each prompt row of the part, all from exactly that version of the policy.

    Besides the prompt's fields a row holds `prompt_token_ids` and `completions`.
    """
    mine = part.positions(len(prompts), per_request=prompts_per_request)
    for start in mine[::prompts_per_request]:
        chunk = prompts[start : start + prompts_per_request]
        batch = sampler.sample(
            policy,
            [parse_conversation(row["messages"]) for row in chunk],
            num_completions=num_completions,
            max_tokens=max_tokens,
            temperature=temperature,
            seed=derive_seed(seed, start),
            min_policy_version=version,
        )
        for row, token_ids, completions in zip(chunk, batch.prompt_token_ids, batch.completions, strict=True):
            for completion in completions:
                _check_version(policy, wanted=version, sampled=completion.policy_version)
            yield {
                "prompt_id": row["prompt_id"],
                "messages": row["messages"],
                "category": row["category"],
                "prompt_token_ids": list(token_ids),
                "completions": [
                    {
                        "text": completion.text,
                        "token_ids": list(completion.token_ids),
                        "logprobs": list(completion.logprobs),
                        "stop_reason": completion.stop_reason,
                        "policy_version": completion.policy_version,
                    }
                    for completion in completions
                ],
            }
        if progress is not None:
            progress(start + len(chunk) - mine.start, len(mine))


def _check_version(policy: str, *, wanted: int, sampled: int) -> None:
    if sampled != wanted:
        raise PreconditionError(
            f"the sampler serves version {sampled} of {policy} where version {wanted} is wanted: start again with a "
            "new --out, or with --restart",
            reason="POLICY_VERSION_MISMATCH",
        )
