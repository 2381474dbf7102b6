"""Parameters of a run, checked before any request: against what the pipeline defines and, inside, our settings."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, Final, get_args

import yaml
from pydantic import ValidationError

from rlaif.core.errors import InvalidInputError, SettingsError
from rlaif_pipelines.mounts import VOLUME_PATH
from rlaif_pipelines.named_file import read_text
from rlaif_pipelines.parameters import RUN_ROOT, defaults, services_from, settings_from
from rlaif_pipelines.settings import PipelineName, RunSettings, ServiceAddresses, make_settings
from rlaif_pipelines.stages.served import check_addresses
from rlaif_pipelines.submission.package import Parameter

SETTINGS: Final = "settings"
SERVICES: Final = "services"
_OURS: Final = {name if name == "rlaif" else f"rlaif-{name}": name for name in get_args(PipelineName)}
_MAX_FILE_BYTES: Final = 4 << 20
_TYPES: Final[Mapping[str, tuple[tuple[type, ...], str]]] = {
    "STRING": ((str,), "a text"),
    "NUMBER_INTEGER": ((int,), "a whole number"),
    "NUMBER_DOUBLE": ((int, float), "a number"),
    "BOOLEAN": ((bool,), "true or false"),
    "LIST": ((list,), "a list, such as [1, 2]"),
    "STRUCT": ((dict,), "a mapping, such as {key: value}, or NAME.key=value"),
}


def read_parameters(path: Path) -> dict[str, Any]:
    """The parameters that a YAML or JSON file holds."""
    text = read_text(path, option="--params", most_bytes=_MAX_FILE_BYTES)
    try:
        found = yaml.safe_load(text)
    except (yaml.YAMLError, RecursionError) as error:
        line = getattr(getattr(error, "problem_mark", None), "line", None)
        where = "" if line is None else f":{line + 1}"
        raise InvalidInputError(f"--params {path}{where}: is neither YAML nor JSON", field="--params") from None
    if not isinstance(found, dict) or not all(isinstance(name, str) for name in found):
        raise InvalidInputError(f"--params {path}: must hold a mapping of parameters to values", field="--params")
    return found


def parameters_from(
    definitions: Mapping[str, Parameter],
    *,
    given: Mapping[str, Any] | None = None,
    assignments: Sequence[str] = (),
    changes: Sequence[str] = (),
) -> dict[str, Any]:
    """Values of parameters: `given`, overridden by "name=value" and "name.key=value", then by settings' "key=value".

    A text is taken as it stands where the pipeline wants a text, else as YAML. Nothing is checked but the form.
    """
    values: dict[str, Any] = {name: _copied(value) for name, value in (given or {}).items()}
    for text in assignments:
        _assign(values, text, option="--param", definitions=definitions)
    for text in changes:
        _assign(values, f"{SETTINGS}.{text}", option="--set", definitions=definitions)
    return values


def check_parameters(
    values: Mapping[str, Any], *, definitions: Mapping[str, Parameter], pipeline: str = ""
) -> dict[str, Any]:
    """The values as the API takes them; InvalidInputError names every unknown, missing and ill-typed one.

    Of a pipeline of ours, by its name, the run's settings that they make are checked too.
    """
    faults = [_unknown(name, known=definitions) for name in values if name not in definitions]
    checked = {}
    for name, value in values.items():
        parameter = definitions.get(name)
        if parameter is None or (value is None and parameter.optional):
            continue
        wanted, words = _TYPES.get(parameter.type, ((object,), "a value"))
        # To Python a truth value is a number too.
        if not isinstance(value, wanted) or (isinstance(value, bool) and bool not in wanted and object not in wanted):
            faults.append(f"{name} = {_shown(value)}: must be {words}")
            continue
        checked[name] = _without_nulls(value)
    missing = [name for name, each in definitions.items() if not each.optional and values.get(name) in (None, "")]
    if missing:
        faults.append(f"missing: {', '.join(missing)} (--param NAME=VALUE)")
    if not faults:
        faults = _run_faults(checked, pipeline=pipeline)
    if faults:
        raise InvalidInputError(f"wrong parameters: {'; '.join(faults)}", field="parameters")
    return checked


def run_settings(parameters: Mapping[str, Any], *, pipeline: str) -> RunSettings | None:
    """The run's settings as these parameters make them; None where the pipeline is none of ours."""
    if pipeline not in _OURS:
        return None
    name = _OURS[pipeline]
    settings = settings_from({**defaults(name), **parameters})
    if "out" in settings:
        raise SettingsError(f"{SETTINGS}.out: is the parameter {RUN_ROOT.name}", field=f"{SETTINGS}.out")
    if settings.get("pipeline", name) != name:
        wanted = settings["pipeline"]
        raise SettingsError(
            f"{SETTINGS}.pipeline = {wanted!r}, but the pipeline is {name}: name the one you mean by --pipeline",
            field=f"{SETTINGS}.pipeline",
        )
    return make_settings({**settings, "pipeline": name, "out": _on_volume(parameters[RUN_ROOT.name])})


def _on_volume(run_root: str) -> str:
    path = PurePosixPath(run_root)
    if not path.is_relative_to(VOLUME_PATH) or path == PurePosixPath(VOLUME_PATH) or ".." in path.parts:
        raise SettingsError(
            f"{RUN_ROOT.name} = {run_root!r}: must be a folder of the volume that all tasks share, such as "
            f"{VOLUME_PATH}/runs/first",
            field=RUN_ROOT.name,
        )
    return run_root


def _assign(values: dict[str, Any], text: str, *, option: str, definitions: Mapping[str, Parameter]) -> None:
    path, separator, written = text.partition("=")
    name, *keys = path.strip().split(".")
    shown = path if option == "--param" else path.removeprefix(f"{SETTINGS}.")
    if not separator or not name or not all(keys):
        raise InvalidInputError(f"{option} {shown}: must be NAME=VALUE", field=option)
    place, parts = values, [name, *keys]
    for part in parts[:-1]:
        place = place.setdefault(part, {})
        if not isinstance(place, dict):
            raise InvalidInputError(f"{option} {shown}: {part} holds a value, not a mapping", field=option)
    literal = not keys and name in definitions and definitions[name].type == "STRING"
    place[parts[-1]] = written if literal else _parsed(written, where=f"{option} {shown}", option=option)


def _parsed(text: str, *, where: str, option: str) -> Any:
    try:
        return yaml.safe_load(text)
    except (yaml.YAMLError, RecursionError):
        raise InvalidInputError(f"{where}: the value is not YAML; quote it", field=option) from None


def _run_faults(parameters: Mapping[str, Any], *, pipeline: str) -> list[str]:
    """What the run itself would refuse; nothing is known of pipelines that are none of ours."""
    if pipeline not in _OURS:
        return []
    faults = [
        *_faults(lambda: run_settings(parameters, pipeline=pipeline)),
        *_faults(lambda: _run_services(parameters, pipeline=pipeline)),
    ]
    return faults or _faults(lambda: _check_together(parameters, pipeline=pipeline))


def _run_services(parameters: Mapping[str, Any], *, pipeline: str) -> ServiceAddresses:
    try:
        return ServiceAddresses.model_validate(services_from({**defaults(_OURS[pipeline]), **parameters}))
    except ValidationError as error:
        first = error.errors()[0]
        name = ".".join(map(str, first["loc"]))
        if first["type"] == "extra_forbidden":
            raise SettingsError(f"{SERVICES}: {_unknown(name, known=ServiceAddresses.model_fields)}") from None
        raise SettingsError(f"{SERVICES}.{name}: {first['msg'][0].lower()}{first['msg'][1:]}") from None


def _check_together(parameters: Mapping[str, Any], *, pipeline: str) -> None:
    settings = run_settings(parameters, pipeline=pipeline)
    assert settings is not None, "the pipeline is ours"
    check_addresses(settings, _run_services(parameters, pipeline=pipeline))


def _faults(check: Callable[[], object]) -> list[str]:
    try:
        check()
    except (SettingsError, InvalidInputError) as error:
        return [error.message]
    return []


def _unknown(name: str, *, known: Iterable[str]) -> str:
    names = sorted(known)
    close = difflib.get_close_matches(name, names, n=1)
    hint = f"did you mean {close[0]}?" if close else f"there are {', '.join(names) or 'none'}"
    return f"there is no {name}; {hint}"


def _without_nulls(value: Any) -> Any:
    """Parameters of Kubeflow Pipelines have no null: what is null was not given."""
    if isinstance(value, Mapping):
        return {str(key): _without_nulls(each) for key, each in value.items() if each is not None}
    return value


def _copied(value: Any) -> Any:
    return {key: _copied(each) for key, each in value.items()} if isinstance(value, Mapping) else value


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:80]}…"
