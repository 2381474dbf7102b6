"""What a run will be: settings and the files they name, looked at before anything is started or written."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Final, TypeVar

import yaml

from rlaif.cli.inputs import check_space, find_model
from rlaif.core.errors import SettingsError
from rlaif.playground.paths import JUDGE_DIR, POLICY_DIR
from rlaif.runtime.store import is_remote
from rlaif_pipelines.settings import NO_EVALUATOR, RunSettings, make_settings
from rlaif_pipelines.stages.constitution import load_constitution
from rlaif_pipelines.stages.prompts_file import read_prompts
from rlaif_pipelines.training.config.pairs import LabelFile
from rlaif_pipelines.training.labels import read_labels

Labels = TypeVar("Labels", bound=LabelFile)

_ADDRESS: Final = re.compile(r"[\w.\-]+:\d{1,5}")


@dataclass(frozen=True)
class CheckedRun:
    """A run whose inputs have been looked at; nothing has been written yet."""

    settings: RunSettings
    root: Path
    offline: bool
    evaluator_address: str | None
    evaluator_model: str | None
    remarks: tuple[str, ...]


def check_inputs(values: Mapping[str, Any], *, changes: Sequence[str]) -> CheckedRun:
    """Settings and the files they name, checked; raises the sentence that says what is wrong."""
    settings = make_settings(with_changes(values, changes))
    if values.get("out") is None:
        name = f"{datetime.now().astimezone():%Y%m%d-%H%M%S}-{settings.seed}"
        settings = settings.model_copy(update={"out": Path("runs") / name})
    settings = settings.model_copy(update={"constitution": _resolved_constitution(settings.constitution)})
    if settings.artifact_root is not None and not is_remote(settings.artifact_root):
        folder = Path(settings.artifact_root.removeprefix("file://")).expanduser().absolute()
        settings = settings.model_copy(update={"artifact_root": str(folder)})
    load_constitution(settings.constitution)
    remarks = []
    if settings.prompts is not None:
        duplicates = read_prompts(settings.prompts, held_out_share=settings.held_out_share).num_duplicates
        if duplicates:
            remarks.append(f"{settings.prompts}: {duplicates} lines repeat an earlier prompt and count once")
    if settings.human_labels is not None:
        people = _placed(settings.human_labels)
        settings = settings.model_copy(update={"human_labels": people})
        read_labels([people])
    if settings.pairs is not None:
        pairs = _placed(settings.pairs)
        settings = settings.model_copy(update={"pairs": pairs})
        read_labels([pairs], allow_one_class=True)
    models = [
        find_model(settings.policy, option="--policy", playground=POLICY_DIR),
        find_model(settings.judge, option="--judge", playground=JUDGE_DIR),
    ]
    if settings.candidate is not None:
        models.append(find_model(settings.candidate, option="--set candidate", playground=POLICY_DIR))
    named = settings.evaluator if settings.evaluator != NO_EVALUATOR else None
    address = named if named and _ADDRESS.fullmatch(named) else None
    evaluator = find_model(named, option="--evaluator", playground=JUDGE_DIR) if named and not address else None
    offline = all(model.local for model in models) and (evaluator is None or evaluator.local)
    if not offline:
        remarks.append("what the cache lacks of the hub's models is fetched first: logs/ tells how far that is")
    check_space(settings.out.absolute())
    return CheckedRun(
        settings=settings,
        root=settings.out.absolute(),
        offline=offline,
        evaluator_address=address,
        evaluator_model=None if evaluator is None else evaluator.uri,
        remarks=tuple(remarks),
    )


def _placed(file: Labels) -> Labels:
    """With an absolute path: stages may run elsewhere."""
    return file.model_copy(update={"path": file.path.expanduser().absolute()})


def with_changes(values: Mapping[str, Any], changes: Sequence[str]) -> dict[str, Any]:
    """The values with each "a.b=value" put in its place; values are YAML."""
    merged: dict[str, Any] = {key: value for key, value in values.items() if value is not None}
    for change in changes:
        key, separator, text = change.partition("=")
        *parents, last = key.split(".")
        place = merged
        for parent in parents:
            place = place.setdefault(parent, {})
            if not isinstance(place, dict):
                raise SettingsError(f"--set {change}: {parent} holds a value, not settings", field="--set")
        if not separator or not last:
            raise SettingsError(f"--set {change}: must be KEY=VALUE", field="--set")
        try:
            place[last] = yaml.safe_load(text)
        except yaml.YAMLError as error:
            raise SettingsError(f"--set {change}: the value is not YAML", field="--set") from error
    return merged


def _resolved_constitution(constitution: str) -> str:
    """A file as an absolute path, because services and stages may run elsewhere; a shipped name as it is."""
    path = Path(constitution).expanduser()
    return str(path.resolve()) if path.is_file() else constitution
