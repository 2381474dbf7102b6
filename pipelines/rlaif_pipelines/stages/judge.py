"""Label pairs of distinct completions by the judge."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rlaif.core.canonical import sha256_hex
from rlaif.core.constitution import Constitution
from rlaif.core.conversation import parse_conversation
from rlaif_pipelines.context import RunContext, StageResult, read_rows, stage_name, write_rows
from rlaif_pipelines.stages.completions import COMPLETIONS_FILE, derive_seed
from rlaif_pipelines.stages.constitution import load_constitution
from rlaif_pipelines.stages.pairs import PAIRS_FILE
from rlaif_pipelines.stages.parts import Part, gather_parts, num_parts, run_part
from rlaif_pipelines.stages.served import judge_identity

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


def judge(context: RunContext, *, round_number: int = 1, part: int = 1) -> StageResult:
    """labels.jsonl of one round, or of one part of it: soft labels with their votes; abstentions have weight 0."""
    constitution = load_constitution(context.settings.constitution)

    def work(folder: Path, name: str, part: Part) -> dict[str, Any]:
        pairs = _pairs(context, round_number=round_number)
        mine = part.positions(len(pairs), per_request=context.settings.judging.pairs_per_request)
        pairs = pairs[mine.start : mine.stop]
        verdicts = compare_pairs(context, pairs, constitution=constitution, name=name)
        write_rows(folder / LABELS_FILE, map(label_row, pairs, verdicts))
        if part.of == 1:
            _gather_labels(context, upto_round=round_number, this=folder / LABELS_FILE)
        return {
            "num_pairs": len(pairs),
            "num_abstained": sum(verdict.probability_first is None for verdict in verdicts),
            "judge_digests": sorted({verdict.provenance.model_digest for verdict in verdicts}),
            "num_recorded_before": sum(verdict.recorded_before for verdict in verdicts),
            "num_injections_suspected": sum(verdict.injection_suspected for verdict in verdicts),
        }

    return run_part(
        context,
        stage_name("judge", round_number),
        work,
        file=LABELS_FILE,
        inputs=_inputs(context, constitution, round_number=round_number),
        part=Part(part, num_parts(context)),
    )


def gather_judge(context: RunContext, *, round_number: int = 1) -> StageResult:
    """labels.jsonl of one round, put together from its parts."""

    def values(parts: list[Mapping[str, Any]]) -> dict[str, Any]:
        digests = sorted({digest for part in parts for digest in part["judge_digests"]})
        counts = {key: sum(part[key] for part in parts) for key in parts[0] if key.startswith("num_")}
        return {"judge_digests": digests, **counts}

    return gather_parts(
        context,
        stage_name("judge", round_number),
        file=LABELS_FILE,
        inputs=_inputs(context, load_constitution(context.settings.constitution), round_number=round_number),
        total=num_parts(context),
        values=values,
        after=lambda path: _gather_labels(context, upto_round=round_number, this=path),
    )


def compare_pairs(
    context: RunContext, pairs: Sequence[Pair], *, constitution: Constitution, name: str
) -> list[Verdict]:
    """The judge's verdict on each pair, in order; progress is told under that name."""
    from rlaif.client.judge import ResponsePair

    with context.judge() as client:
        return client.compare_many(
            constitution.name,
            [
                ResponsePair(parse_conversation(pair.messages), pair.first, pair.second, pair.category or "")
                for pair in pairs
            ],
            batch_size=context.settings.judging.pairs_per_request,
            progress=context.progress(name, message="pairs"),
        )


def _pairs(context: RunContext, *, round_number: int) -> list[Pair]:
    """The pairs that were given, else pairs of the round's completions."""
    if context.settings.pairs is not None:
        rows = read_rows(context.result("pairs").path(PAIRS_FILE))
        return [Pair(row["prompt_id"], row["messages"], row["category"], row["first"], row["second"]) for row in rows]
    return choose_pairs(
        read_rows(context.result(stage_name("sample", round_number)).path(COMPLETIONS_FILE)),
        per_prompt=context.settings.sampling.pairs_per_prompt,
        seed=derive_seed("pairs", context.settings.seed, round_number),
    )


def _inputs(context: RunContext, constitution: Constitution, *, round_number: int) -> dict[str, Any]:
    settings = context.settings
    asked = {
        "constitution": constitution.sha256,
        "judge": judge_identity(context),
        "template": settings.judge_template,
        "pairs_per_request": settings.judging.pairs_per_request,
    }
    if settings.pairs is not None:
        return asked | {"pairs": context.result("pairs").outputs[PAIRS_FILE]}
    return asked | {
        "completions": context.result(stage_name("sample", round_number)).outputs[COMPLETIONS_FILE],
        "pairs_per_prompt": settings.sampling.pairs_per_prompt,
        "seed": settings.seed,
    }


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
