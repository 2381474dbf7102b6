"""Load pairs that were labelled elsewhere, for the judge to be held against."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from rlaif.core.canonical import sha256_hex
from rlaif.core.conversation import to_json
from rlaif_pipelines.context import RunContext, StageOutput, StageResult, write_rows
from rlaif_pipelines.training.labels import read_labels

PAIRS_FILE: Final = "pairs.jsonl"


def pairs(context: RunContext) -> StageResult:
    """pairs.jsonl: validated, those without a verdict left out, several people's votes on one pair put together."""
    file = context.settings.pairs
    assert file is not None, "settings see to it"
    inputs = {"sha256": sha256_hex(file.path.read_bytes()), "source": file.source}

    def body(folder: Path) -> StageOutput:
        found = read_labels([file], allow_one_class=True)
        rows = [
            {
                "prompt_id": pair.prompt_id,
                "messages": to_json(pair.conversation),
                "category": pair.category,
                "first": pair.first,
                "second": pair.second,
                "wanted": pair.probability_first,
            }
            for pair in found.pairs
        ]
        write_rows(folder / PAIRS_FILE, rows)
        left_out = {name: found.total(name) for name in ("num_abstained", "num_weightless", "num_identical")}
        return StageOutput((PAIRS_FILE,), {"num_pairs": len(rows), **left_out, "num_merged": found.total("num_merged")})

    return context.run_stage("pairs", body, inputs=inputs)
