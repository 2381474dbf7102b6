"""Label pairs of distinct completions by the judge."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rlaif.core.canonical import sha256_hex
from rlaif.core.conversation import parse_conversation
from rlaif_pipelines.context import RunContext, StageOutput, StageResult, read_rows, stage_name, write_rows
from rlaif_pipelines.stages.completions import COMPLETIONS_FILE, derive_seed
from rlaif_pipelines.stages.constitution import load_constitution

if TYPE_CHECKING:
    from rlaif.client.judge import Verdict

LABELS_FILE = "labels.jsonl"


@dataclass(frozen=True)
class Pair:
    """Two different completions of one prompt."""

    prompt_id: str
    messages: Sequence[Mapping[str, str]]
    category: str | None
    first: str
    second: str


def judge(context: RunContext, *, round_number: int = 1) -> StageResult:
    """labels.jsonl of one round: soft labels with their votes; abstentions are kept, with weight 0."""
    samples = context.result(stage_name("sample", round_number))
    constitution = load_constitution(context.settings.constitution)
    stage = stage_name("judge", round_number)
    inputs = {
        "completions": samples.outputs[COMPLETIONS_FILE],
        "constitution": constitution.sha256,
        "judge": context.result("prepare").values["judge_digest"],
        "template": context.settings.judge_template,
        "pairs_per_prompt": context.settings.sampling.pairs_per_prompt,
        "pairs_per_request": context.settings.judging.pairs_per_request,
        "seed": context.settings.seed,
    }

    def body(folder: Path) -> StageOutput:
        from rlaif.client.judge import ResponsePair

        seed = derive_seed("pairs", context.settings.seed, round_number)
        pairs = choose_pairs(
            read_rows(samples.path(COMPLETIONS_FILE)), per_prompt=context.settings.sampling.pairs_per_prompt, seed=seed
        )
        with context.judge() as client:
            verdicts = client.compare_many(
                constitution.name,
                [
                    ResponsePair(parse_conversation(pair.messages), pair.first, pair.second, pair.category or "")
                    for pair in pairs
                ],
                batch_size=context.settings.judging.pairs_per_request,
                progress=context.progress(stage, message="pairs"),
            )
        write_rows(folder / LABELS_FILE, map(label_row, pairs, verdicts))
        _gather_labels(context, upto_round=round_number, this=folder / LABELS_FILE)
        return StageOutput(
            (LABELS_FILE,),
            {
                "num_pairs": len(pairs),
                "num_abstained": sum(verdict.probability_first is None for verdict in verdicts),
                "judge_digests": sorted({verdict.provenance.model_digest for verdict in verdicts}),
                "num_recorded_before": sum(verdict.recorded_before for verdict in verdicts),
                "num_injections_suspected": sum(verdict.injection_suspected for verdict in verdicts),
            },
        )

    return context.run_stage(stage, body, inputs=inputs)


def training_labels(context: RunContext, *, round_number: int) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """(files of labels as a training takes them, what identifies them): the round's own, and people's."""
    labels = context.result(stage_name("judge", round_number))
    files: list[dict[str, Any]] = [{"path": labels.path(LABELS_FILE)}]
    identity: dict[str, Any] = {"labels": labels.outputs[LABELS_FILE]}
    people = context.settings.human_labels
    if people is not None:
        files.append(people.model_dump())
        shares = people.model_dump(mode="json", exclude={"path"})
        identity["human_labels"] = {**shares, "sha256": sha256_hex(people.path.read_bytes())}
    return files, identity


def choose_pairs(samples: Iterator[Mapping[str, Any]], *, per_prompt: int, seed: int) -> list[Pair]:
    """Up to `per_prompt` pairs of different texts of each prompt, drawn by seed; never equal or empty texts."""
    pairs = []
    for row in samples:
        texts = [
            text for text in dict.fromkeys(completion["text"] for completion in row["completions"]) if text.strip()
        ]
        candidates = list(itertools.combinations(texts, 2))
        random.Random(derive_seed(seed, row["prompt_id"])).shuffle(candidates)  # noqa: S311 - not for secrets
        pairs += [
            Pair(row["prompt_id"], row["messages"], row["category"], first, second)
            for first, second in candidates[:per_prompt]
        ]
    return pairs


def label_row(pair: Pair, verdict: Verdict) -> dict[str, Any]:
    """The label as a row of labels.jsonl."""
    return {
        "label": verdict.label,
        "prompt_id": pair.prompt_id,
        "messages": list(pair.messages),
        "category": pair.category,
        "first": pair.first,
        "second": pair.second,
        "probability_first": verdict.probability_first,
        "preference": verdict.preference,
        "abstention_reason": verdict.abstention_reason,
        "order_consistent": verdict.order_consistent,
        "votes": [
            {
                "principle_id": vote.principle_id,
                "probability_first": None if vote.abstention_reason else vote.probability_first,
                "weight": vote.weight,
            }
            for vote in verdict.votes
        ],
        "weight": 0.0 if verdict.probability_first is None else 1.0,
        "judge_digest": verdict.provenance.model_digest,
        "constitution": verdict.provenance.constitution,
        "constitution_sha256": verdict.provenance.constitution_sha256,
    }


def _gather_labels(context: RunContext, *, upto_round: int, this: Path) -> None:
    """labels.jsonl of the run: the labels of all rounds so far."""
    earlier = [context.result(stage_name("judge", number)).path(LABELS_FILE) for number in range(1, upto_round)]
    write_rows(context.root / LABELS_FILE, itertools.chain.from_iterable(map(read_rows, [*earlier, this])))
