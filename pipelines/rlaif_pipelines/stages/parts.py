"""A stage's requests cut into parts that are worked on side by side.

A part is a run of whole requests: cutting changes neither what is asked nor what is answered.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rlaif.core.canonical import digest
from rlaif.core.errors import PreconditionError
from rlaif_pipelines.context import RunContext, StageOutput, StageResult, read_rows, write_rows


@dataclass(frozen=True)
class Part:
    """One part of so many; the first is number 1."""

    number: int = 1
    of: int = 1

    def positions(self, num_items: int, *, per_request: int) -> range:
        """Which of the items are the part's, where requests are cut in order."""
        num_requests = -(-num_items // per_request)
        first, end = (num_requests * place // self.of for place in (self.number - 1, self.number))
        return range(first * per_request, min(end * per_request, num_items))


WHOLE = Part()

Work = Callable[[Path, str, Part], dict[str, Any]]
"""(folder, name to report progress under, part) to the part's values, having written the part's rows."""


def num_parts(context: RunContext) -> int:
    """Into how many parts the run's work is cut: never more than there are requests for completions, or for labels."""
    settings = context.settings
    if settings.pipeline == "judge-benchmark":
        num_items, per_request = context.result("pairs").values["num_pairs"], settings.judging.pairs_per_request
    else:
        num_items = min(settings.sampling.num_prompts, context.result("prompts").values["num_train"])
        per_request = settings.sampling.prompts_per_request
    return max(1, min(settings.num_shards, -(-num_items // per_request)))


def part_name(stage: str, part: Part) -> str:
    """Folder and display name of a part: "judge.part-2-of-4"; of an only one that of the stage."""
    return stage if part.of == 1 else f"{stage}.part-{part.number}-of-{part.of}"


def run_part(
    context: RunContext, stage: str, work: Work, *, file: str, inputs: Mapping[str, Any], part: Part
) -> StageResult:
    """What one part left; the only part is the stage itself."""
    name = part_name(stage, part)
    return context.run_stage(
        name,
        lambda folder: StageOutput((file,), work(folder, name, part)),
        inputs=inputs if part.of == 1 else _part_inputs(inputs, part),
        in_ledger=part.of == 1,
    )


def gather_parts(
    context: RunContext,
    stage: str,
    *,
    file: str,
    inputs: Mapping[str, Any],
    total: int,
    values: Callable[[list[Mapping[str, Any]]], dict[str, Any]],
    after: Callable[[Path], None] = lambda path: None,
) -> StageResult:
    """The stage put together from its parts, as if it had been done in one; `values` makes its values from theirs."""
    if total == 1:
        return context.result(stage)

    def body(folder: Path) -> StageOutput:
        found = [_finished(context, stage, inputs, Part(number, total)) for number in range(1, total + 1)]
        write_rows(folder / file, _rows(found, file))
        after(folder / file)
        return StageOutput((file,), values([part.values for part in found]))

    return context.run_stage(stage, body, inputs=inputs)


def _part_inputs(inputs: Mapping[str, Any], part: Part) -> dict[str, Any]:
    return {**inputs, "part": [part.number, part.of]}


def _finished(context: RunContext, stage: str, inputs: Mapping[str, Any], part: Part) -> StageResult:
    found = context.result(part_name(stage, part))
    if found.inputs_sha256 != digest(_part_inputs(inputs, part)):
        raise PreconditionError(
            f"{found.stage} is of other inputs than {stage}: start the pipeline again", reason="STAGE_NOT_FINISHED"
        )
    return found


def _rows(parts: list[StageResult], file: str) -> Iterator[dict[str, Any]]:
    return itertools.chain.from_iterable(read_rows(part.path(file)) for part in parts)
