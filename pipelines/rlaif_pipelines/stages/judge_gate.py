"""Is the judge as good as it must be? A run by the clock that fails is one that somebody sees."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rlaif.core.errors import RlaifError
from rlaif_pipelines.context import RunContext, StageOutput, StageResult


class JudgeBelowBoundError(RlaifError, RuntimeError):
    """The judge agrees with given labels less often than the settings ask of it."""

    reason = "JUDGE_BELOW_BOUND"


def judge_gate(context: RunContext) -> StageResult:
    """Nothing more than that it passed; JudgeBelowBoundError where it did not. Without a bound every judge does."""
    accuracy, bound = context.result("benchmark").values["accuracy"], context.settings.gate.min_benchmark_accuracy

    def body(folder: Path) -> StageOutput:
        del folder
        if bound is not None:
            _check(accuracy, bound)
        return StageOutput(values={"bound": bound})

    return context.run_stage("judge_gate", body, inputs={"accuracy": accuracy, "bound": bound})


def _check(accuracy: Mapping[str, Any], bound: float) -> None:
    if accuracy["value"] is None:
        raise JudgeBelowBoundError(
            "the judge decided no pair that was labelled with a preference, and gate.min_benchmark_accuracy asks for "
            f"{bound:.1%}"
        )
    if accuracy["value"] < bound:
        raise JudgeBelowBoundError(
            f"the judge agrees with the given labels on {accuracy['value']:.1%} of the pairs (95 % CI "
            f"{accuracy['low']:.1%} to {accuracy['high']:.1%}), and gate.min_benchmark_accuracy asks for {bound:.1%}"
        )
