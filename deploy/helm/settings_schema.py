"""Writes into values.schema.json what the services' settings are, so that Helm refuses a wrong key before a pod does.

Run it after a change of settings: `make chart-schema`. A test fails while it has not been.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from rlaif.judge.settings import JudgeSettings
from rlaif.oversight.settings import OversightSettings
from rlaif.reward.settings import RewardSettings
from rlaif.sampler.settings import SamplerSettings

SCHEMA_PATH = Path(__file__).parent / "rlaif" / "values.schema.json"
_MARK = '  "$defs": {'

# What the chart itself writes, from values of its own.
_LISTEN = frozenset(
    {
        *("address", "metrics_address", "health_address", "announce_path", "drain_seconds", "log_level"),
        *("metrics_tls", "metrics_token", "tls", "token_path", "tokens_path"),
    }
)
_WRITTEN: dict[type[BaseModel], frozenset[str]] = {
    JudgeSettings: frozenset({"model", "constitutions", "ledger"}),
    SamplerSettings: frozenset({"model", "policy", "artifact_root"}),
    RewardSettings: frozenset({"judge", "artifact_root", "remember_loads"}),
    OversightSettings: frozenset({"database_url", "migrate"}),
}


def definitions() -> dict[str, Any]:
    """JSON schemas of the settings that values may hold, by name; those of the services are partial."""
    models = list(_WRITTEN)
    _, schema = models_json_schema([(model, "validation") for model in models], ref_template="#/$defs/{model}")
    found: dict[str, Any] = schema["$defs"]
    for model, written in _WRITTEN.items():
        _leave_out(found[model.__name__], written)
    for name in ("ListenSettings", "OversightListenSettings"):
        _leave_out(found[name], _LISTEN)
    # Short for a single trained component; the settings accept it before they are checked.
    recipe = found["RecipeSettings"]
    found["RecipeSettings"] = {"anyOf": [recipe, {"type": "array", "minItems": 1, "items": {"type": "string"}}]}
    return {name: _plain(found[name]) for name in sorted(_reached(found, [model.__name__ for model in models]))}


def updated(text: str) -> str:
    """The schema file with today's definitions, one a line; what is written by hand stays as it is."""
    by_hand, mark, _ = text.partition(_MARK)
    assert mark, f"{SCHEMA_PATH} has no line {_MARK!r}"
    lines = ",\n".join(f"    {json.dumps(name)}: {json.dumps(schema)}" for name, schema in definitions().items())
    return f"{by_hand}{mark}\n{lines}\n  }}\n}}\n"


def _leave_out(schema: dict[str, Any], names: frozenset[str]) -> None:
    for name in names:
        del schema["properties"][name]
    schema["required"] = [name for name in schema.get("required", []) if name not in names]


def _reached(found: dict[str, Any], names: list[str]) -> set[str]:
    """The names, and those that they refer to."""
    reached: set[str] = set()
    while names:
        name = names.pop()
        if name not in reached:
            reached.add(name)
            names += [other for other in found if f'"#/$defs/{other}"' in json.dumps(found[name])]
    return reached


def _plain(value: Any) -> Any:
    """Without what only says the key once more, and without defaults, which are the services' own."""
    if isinstance(value, list):
        return [_plain(each) for each in value]
    if not isinstance(value, dict):
        return value
    return {
        key: {name: _plain(each) for name, each in item.items()} if key == "properties" else _plain(item)
        for key, item in value.items()
        if key not in ("title", "default", "discriminator", "format") and not (key == "required" and not item)
    }


if __name__ == "__main__":
    SCHEMA_PATH.write_text(updated(SCHEMA_PATH.read_text(encoding="utf-8")), encoding="utf-8")
