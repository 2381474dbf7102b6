"""The command that does a run again."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator, Mapping
from typing import Any, Final

from rlaif_pipelines.settings import make_settings

_OPTIONS: Final = ("prompts", "constitution", "policy", "judge", "evaluator", "reward", "algorithm", "rounds", "seed")
_DECIDING_OPTIONS: Final = ("prompts", "policy", "judge", "reward")
_DECIDING_SETTINGS: Final = ("pipeline", "pairs", "candidate")
"""What other defaults depend on."""


def command_line(settings: Mapping[str, Any]) -> str:
    """`rlaif run …` with every option that differs from its default, and a new --out."""
    deciding = (*_DECIDING_OPTIONS, *_DECIDING_SETTINGS)
    given = {name: settings.get(name) for name in deciding if settings.get(name) is not None}
    defaults = make_settings(given).model_dump(mode="json")
    plain = make_settings({}).model_dump(mode="json")
    own = settings.get("prompts") is not None or settings.get("pairs") is not None
    words = ["rlaif", "run"]
    for name in _OPTIONS:
        value = settings.get(name)
        reference = plain if name in _DECIDING_OPTIONS and not own else defaults
        needed = own and name in ("prompts", "policy", "judge")
        if value is not None and (needed or value != reference.get(name)):
            words += [f"--{name}", str(value)]
    for key, value in _differences(settings, defaults | {name: plain[name] for name in _DECIDING_SETTINGS}):
        if (key, value) == ("constitutional.enabled", True):
            words.append("--constitutional")
            continue
        words += ["--set", f"{key}={json.dumps(value)}"]
    return shlex.join([*words, "--out", "runs/again"])


def _differences(
    settings: Mapping[str, Any], defaults: Mapping[str, Any], prefix: str = ""
) -> Iterator[tuple[str, Any]]:
    for name, value in settings.items():
        if not prefix and (name in _OPTIONS or name == "out"):
            continue
        default = defaults.get(name)
        # Settings have the same keys on both sides; whatever else is a mapping is a value, whose keys may hold dots.
        if isinstance(value, Mapping) and isinstance(default, Mapping) and value.keys() == default.keys():
            yield from _differences(value, default, f"{prefix}{name}.")
        elif value != default:
            yield f"{prefix}{name}", value
