"""A compiled pipeline: what is uploaded, under a name that its content decides, and what it wants to be told."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Final

import yaml

from rlaif.core.canonical import digest
from rlaif.core.errors import InvalidInputError
from rlaif_pipelines.named_file import read_text

MAX_PACKAGE_BYTES: Final = 32 << 20
"""The API takes no larger files."""


@dataclass(frozen=True)
class Parameter:
    """An input of a pipeline; `type` is STRING, NUMBER_INTEGER, NUMBER_DOUBLE, BOOLEAN, LIST or STRUCT."""

    name: str
    type: str
    optional: bool
    description: str = ""


@dataclass(frozen=True)
class Package:
    """A pipeline as YAML, checked against the schema of pipelines."""

    text: str
    documents: tuple[Mapping[str, Any], ...]
    """The graph and, where it has one, what of it is Kubernetes'."""

    @classmethod
    def of_text(cls, text: str, *, source: str) -> Package:
        """The pipeline in that text; InvalidInputError when it is none."""
        from google.protobuf import json_format

        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # kfp's own
            from kfp.pipeline_spec import pipeline_spec_pb2

        try:
            # The loader in C, where there is one: it takes a tenth of the time.
            loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
            documents = tuple(document for document in yaml.load_all(text, loader) if document is not None)
        except (yaml.YAMLError, RecursionError):
            raise _no_pipeline(source, "is not YAML") from None
        if not 1 <= len(documents) <= 2 or not isinstance(documents[0], dict) or "pipelineInfo" not in documents[0]:
            raise _no_pipeline(source, "is no compiled pipeline; `rlaif compile -o FILE` writes one")
        messages = (pipeline_spec_pb2.PipelineSpec(), pipeline_spec_pb2.PlatformSpec())
        try:
            for document, message in zip(documents, messages, strict=False):
                json_format.ParseDict(document, message)
        except json_format.ParseError as error:
            raise _no_pipeline(source, f"is no pipeline that this version understands ({error})") from None
        return cls(text=text, documents=documents)

    @classmethod
    def of_file(cls, path: Path) -> Package:
        """The pipeline in that file."""
        text = read_text(path, option="--pipeline", most_bytes=MAX_PACKAGE_BYTES)
        return cls.of_text(text, source=str(path))

    @property
    def spec(self) -> Mapping[str, Any]:
        """The graph."""
        return self.documents[0]

    @property
    def name(self) -> str:
        """Name of the pipeline."""
        return str(self.spec["pipelineInfo"]["name"])

    @cached_property
    def version(self) -> str:
        """Name of its version: the same for the same content, whatever its layout."""
        return f"{self.name}-{digest(self.documents)[:12]}"

    @cached_property
    def parameters(self) -> Mapping[str, Parameter]:
        """What the pipeline can be told."""
        defined = self.spec["root"].get("inputDefinitions", {}).get("parameters", {})
        return {
            name: Parameter(
                name,
                type=str(given["parameterType"]),
                optional=bool(given.get("isOptional")) or "defaultValue" in given,
                description=str(given.get("description", "")),
            )
            for name, given in defined.items()
        }

    @cached_property
    def titles(self) -> Mapping[str, str]:
        """Names that tasks and groups were given, by those that the API tells of."""
        return titles_of(self.spec)


def titles_of(spec: Mapping[str, Any]) -> dict[str, str]:
    """Names that tasks and groups of a pipeline were given, by those that the API tells of."""
    graphs = [spec.get("root", {}), *spec.get("components", {}).values()]
    return {
        key: str(task.get("taskInfo", {}).get("name", key))
        for graph in graphs
        for key, task in graph.get("dag", {}).get("tasks", {}).items()
    }


def _no_pipeline(source: str, why: str) -> InvalidInputError:
    return InvalidInputError(f"--pipeline {source}: {why}", field="--pipeline")
