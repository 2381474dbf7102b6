"""All settings of a model as commented YAML: what is required, what each is, by default or as given, and means."""

from __future__ import annotations

import textwrap
import types
import typing
from collections.abc import Iterator
from typing import Any

import yaml
from pydantic import BaseModel
from pydantic.fields import FieldInfo

_WIDTH = 100


def example(model: type[BaseModel], values: BaseModel | None = None) -> str:
    """The settings of a model with these values, else the defaults; what is required then has a placeholder."""
    return "\n".join(_lines(model, values or model.model_construct())) + "\n"


def _lines(model: type[BaseModel], values: BaseModel) -> Iterator[str]:
    fields = sorted(model.model_fields.items(), key=lambda item: not item[1].is_required())
    for name, field in fields:
        inner = _model_of(field.annotation)
        yield from _comment(field.description or (inner.__doc__ if inner else None))
        if inner is None:
            yield _scalar(name, field, values)
            continue
        value = getattr(values, name, None)
        unset = value is None and not field.is_required()
        # Unset by default: shown, but as a comment.
        mark = "# " if unset else ""
        yield f"{mark}{name}:"
        yield from (f"{mark}  {line}" for line in _lines(inner, value or inner.model_construct()))


def _scalar(name: str, field: FieldInfo, values: BaseModel) -> str:
    value = getattr(values, name, None)
    if value is None and field.is_required():
        return f"{name}: …  # required"
    plain: Any = list(value) if isinstance(value, tuple) else value if _is_plain(value) else str(value)
    shown = yaml.safe_dump(plain, default_flow_style=True, allow_unicode=True).removesuffix("...\n").strip()
    return f"{name}: {shown}"


def _is_plain(value: Any) -> bool:
    return value is None or isinstance(value, bool | int | float | str | dict | list)


def _comment(text: str | None) -> Iterator[str]:
    summary = " ".join((text or "").split("\n\n")[0].split())
    return (f"# {line}" for line in textwrap.wrap(summary, _WIDTH))


def _model_of(annotation: Any) -> type[BaseModel] | None:
    """The settings model that a field holds, if it holds one."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    if typing.get_origin(annotation) in (typing.Union, types.UnionType):
        return next(filter(None, map(_model_of, typing.get_args(annotation))), None)
    return None
