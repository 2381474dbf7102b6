"""The command that does a run again."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator, Mapping
from typing import Any, Final

from rlaif_pipelines.settings import make_settings

_OPTIONS: Final = ("prompts", "constitution", "policy", "judge", "evaluator", "reward", "algorithm", "rounds", "seed")
_DECIDES_DEFAULTS: Final = ("prompts", "policy", "judge", "reward")
"""Options that other defaults depend on."""


def command_line(settings: Mapping[str, Any]) -> str:
    """`rlaif run …` with every option that differs from its default, and a new --out."""
    given = {name: settings.get(name) for name in _DECIDES_DEFAULTS if settings.get(name) is not None}
    defaults = make_settings(given).model_dump(mode="json")
    plain = make_settings({}).model_dump(mode="json")
    words = ["rlaif", "run"]
    for name in _OPTIONS:
        value = settings.get(name)
        reference = plain if name in _DECIDES_DEFAULTS and settings.get("prompts") is None else defaults
        needed = settings.get("prompts") is not None and name in ("prompts", "policy", "judge")
        if value is not None and (needed or value != reference.get(name)):
            words += [f"--{name}", str(value)]
    for key, value in _differences(settings, defaults):
        if (key, value) == ("constitutional.enabled", True):
            words.append("--constitutional")
            continue
        words += ["--set", f"{key}={json.dumps(value)}"]
    return shlex.join([*words, "--out", "runs/again"])


def _differences(settings: Mapping[str, Any], defaults: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    for name, value in settings.items():
        if name in _OPTIONS or name == "out":
            continue
        if isinstance(value, Mapping):
            nested = defaults.get(name) or {}
            yield from ((f"{name}.{key}", inner) for key, inner in value.items() if inner != nested.get(key))
        elif value != defaults.get(name):
            yield name, value
