"""A judge that is worse than it must be fails the run that measures it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from rlaif_pipelines.context import RunContext, StageOutput
from rlaif_pipelines.settings import ServiceAddresses, make_settings
from rlaif_pipelines.stages.judge_gate import JudgeBelowBoundError, judge_gate


def measured(root: Path, value: float | None, *, bound: float | None) -> RunContext:
    """A run whose benchmark is done."""
    low, high = (None, None) if value is None else (value - 0.05, value + 0.05)
    given: dict[str, Any] = {"pipeline": "judge-benchmark", "judge": "playground", "pairs": {"path": "p.jsonl"}}
    context = RunContext(root, make_settings({**given, "gate": {"min_benchmark_accuracy": bound}}), ServiceAddresses())
    accuracy = {"value": value, "low": low, "high": high}
    context.run_stage("benchmark", lambda folder: StageOutput(values={"accuracy": accuracy}), inputs={"value": value})
    return context


@pytest.mark.parametrize(("value", "bound"), [(0.1, None), (None, None), (0.8, 0.8), (0.9, 0.8)])
def test_a_judge_at_its_bound_passes_and_without_one_every_judge_does(
    value: float | None, bound: float | None, tmp_path: Path
) -> None:
    assert judge_gate(measured(tmp_path, value, bound=bound)).values == {"bound": bound}


@pytest.mark.parametrize(
    ("value", "sentence"),
    [
        (
            0.75,
            r"on 75\.0% of the pairs \(95 % CI 70\.0% to 80\.0%\), and gate\.min_benchmark_accuracy asks for 80\.0%",
        ),
        (None, r"decided no pair .*, and gate\.min_benchmark_accuracy asks for 80\.0%"),
    ],
)
def test_a_judge_under_its_bound_fails_the_run_and_again_when_it_is_started_again(
    value: float | None, sentence: str, tmp_path: Path
) -> None:
    context = measured(tmp_path, value, bound=0.8)
    for _ in range(2):
        with pytest.raises(JudgeBelowBoundError, match=sentence):
            judge_gate(context)
    assert not context.finished("judge_gate")
    assert judge_gate(measured(tmp_path, 0.85, bound=0.8)).values == {"bound": 0.8}
