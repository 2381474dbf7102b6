"""From what a user names to what is submitted: the pipeline compiled for the run's settings, and its parameters."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, cast, get_args

from rlaif.core.errors import InvalidInputError
from rlaif_pipelines.parameters import parameters_of
from rlaif_pipelines.settings import ConstitutionalStage, PipelineName
from rlaif_pipelines.submission.package import Package, Parameter
from rlaif_pipelines.submission.parameters import (
    SETTINGS,
    check_parameters,
    parameters_from,
    read_parameters,
    run_settings,
)

_YAML: Final = (".yaml", ".yml")
_TYPES: Final = {
    str: "STRING",
    int: "NUMBER_INTEGER",
    float: "NUMBER_DOUBLE",
    bool: "BOOLEAN",
    list: "LIST",
    dict: "STRUCT",
}


@dataclass(frozen=True)
class Submission:
    """A pipeline, and checked parameters for it."""

    package: Package
    parameters: dict[str, Any]


def prepare_submission(
    pipeline: str,
    *,
    params_file: Path | None = None,
    assignments: Sequence[str] = (),
    changes: Sequence[str] = (),
    rounds: int | None = None,
) -> Submission:
    """A pipeline by its name, compiled for the settings, or a compiled file, with its parameters from a file and texts.

    InvalidInputError names what is wrong with either; nothing is sent.
    """
    given = read_parameters(params_file) if params_file else {}
    if pipeline.endswith(_YAML):
        if rounds is not None:
            raise InvalidInputError(
                "--rounds: a compiled file has its rounds; compile another, or name a pipeline", field="--rounds"
            )
        package = Package.of_file(Path(pipeline))
        values = parameters_from(package.parameters, given=given, assignments=assignments, changes=changes)
        checked = check_parameters(values, definitions=package.parameters, pipeline=package.name)
        return Submission(package, checked)
    name = _known(pipeline)
    definitions = {
        each.name: Parameter(each.name, _TYPES[each.kind], optional=not each.required) for each in parameters_of(name)
    }
    values = parameters_from(definitions, given=given, assignments=assignments, changes=changes)
    if rounds is not None and isinstance(values.get(SETTINGS, {}), dict):
        known = values.setdefault(SETTINGS, {}).setdefault("rounds", rounds)
        if known != rounds:
            raise InvalidInputError(f"--rounds {rounds}, but settings.rounds is {known!r}: give one of them")
    compiled_name = name if name == "rlaif" else f"rlaif-{name}"
    checked = check_parameters(values, definitions=definitions, pipeline=compiled_name)
    settings = run_settings(checked, pipeline=compiled_name)
    assert settings is not None, "the pipeline is ours"
    package = compile_package(name, rounds=settings.rounds, constitutional=settings.constitutional_stage)
    return Submission(package, checked)


def compile_package(
    name: PipelineName = "rlaif", *, rounds: int = 1, constitutional: ConstitutionalStage = "none"
) -> Package:
    """The pipeline of that name, compiled."""
    from rlaif_pipelines.flow import GraphOptions, compiled_pipeline

    text = compiled_pipeline(name, GraphOptions(rounds=rounds, constitutional=constitutional))
    return Package.of_text(text, source=name)


def _known(name: str) -> PipelineName:
    names = get_args(PipelineName)
    if name not in names:
        close = difflib.get_close_matches(name, names, n=1)
        hint = f"did you mean {close[0]}?" if close else f"there are {', '.join(names)}, and files that end in .yaml"
        raise InvalidInputError(f"--pipeline {name}: there is no such pipeline; {hint}", field="--pipeline")
    return cast(PipelineName, name)
