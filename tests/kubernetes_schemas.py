"""What an API server would refuse of a manifest, unknown fields included: built-in kinds by version, others by CRD."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml
from jsonschema import Draft202012Validator
from kubernetes_validate.utils import schema_contents
from referencing import Registry, Resource

KUBERNETES_VERSIONS = ("1.31", "1.32", "1.33", "1.34", "1.35", "1.36")

Schema = dict[str, Any]


def problems(manifest: dict[str, Any], *, version: str) -> list[str]:
    """A sentence for each fault of the manifest on Kubernetes of that version."""
    errors = _validator(version, manifest["apiVersion"], manifest["kind"]).iter_errors(manifest)
    return [f"{error.json_path}: {error.message}" for error in errors]


def is_custom(manifest: dict[str, Any]) -> bool:
    """Whether the kind is an operator's."""
    group = str(manifest["apiVersion"]).rpartition("/")[0]
    return "." in group and not group.endswith(".k8s.io")


@cache
def _validator(version: str, api_version: str, kind: str) -> Draft202012Validator:
    if is_custom({"apiVersion": api_version}):
        return Draft202012Validator(_custom_schemas()[api_version, kind])
    folder = f"kubernetes-json-schema/v{version}.0-local-strict"
    group = re.sub(r"^([^./]*)(?:\.[^/]*)?/", r"\1-", api_version)
    schema = schema_contents(f"{folder}/{kind.lower()}-{group}.json", version)
    return Draft202012Validator(schema, registry=_definitions(version))


@cache
def _definitions(version: str) -> Registry[Any]:
    definitions = schema_contents(f"kubernetes-json-schema/v{version}.0-local-strict/_definitions.json", version)
    registry: Registry[Any] = Resource.from_contents(definitions) @ Registry()
    return registry


@cache
def _custom_schemas() -> dict[tuple[str, str], Schema]:
    folder = Path(os.environ.get("RLAIF_SHARED", "../shared")) / "crds"
    if not folder.is_dir():
        pytest.skip(f"definitions of custom resources are looked for in {folder}, which is not there; set RLAIF_SHARED")
    found: dict[tuple[str, str], Schema] = {}
    for path in folder.glob("*.yaml"):
        for document in yaml.load_all(path.read_text(encoding="utf-8"), Loader=yaml.CSafeLoader):
            for api_version, kind, schema in _versions(document):
                found[api_version, kind] = schema
    return found


def _versions(definition: dict[str, Any]) -> Iterator[tuple[str, str, Schema]]:
    spec = definition["spec"]
    for version in spec["versions"]:
        schema = version["schema"]["openAPIV3Schema"]
        # The API server knows what metadata is.
        schema["properties"]["metadata"] = {"type": "object", "x-kubernetes-preserve-unknown-fields": True}
        yield f"{spec['group']}/{version['name']}", spec["names"]["kind"], _strict(schema)


def _strict(schema: Any) -> Any:
    """An OpenAPI schema of Kubernetes as a JSON schema that refuses unknown fields."""
    if isinstance(schema, list):
        return [_strict(each) for each in schema]
    if not isinstance(schema, dict):
        return schema
    made = {key: _strict(value) for key, value in schema.items() if key not in ("properties", "format", "nullable")}
    if "properties" in schema:
        made["properties"] = {name: _strict(value) for name, value in schema["properties"].items()}
        if not schema.get("x-kubernetes-preserve-unknown-fields"):
            made.setdefault("additionalProperties", False)
    if schema.get("x-kubernetes-int-or-string"):
        made["type"] = ["integer", "string"]
    if schema.get("nullable") and isinstance(made.get("type"), str):
        made["type"] = [made["type"], "null"]
    return made
