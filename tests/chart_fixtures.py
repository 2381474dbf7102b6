"""The chart, rendered as `helm install` would."""

from __future__ import annotations

import copy
from functools import cache
from pathlib import Path
from typing import Any

import yaml
from helm_python.chart import Chart

from chart_variations import VARIATIONS, Values

Manifest = dict[str, Any]

CHART = Path(__file__).parents[1] / "deploy" / "helm" / "rlaif"
SERVICES = ("sampler", "judge", "evaluator", "reward", "oversight")


def read_profile(name: str) -> Values:
    """Values of ci/{name}-values.yaml."""
    values: Values = yaml.safe_load((CHART / "ci" / f"{name}-values.yaml").read_text(encoding="utf-8"))
    return values


def values_of(variation: str) -> Values:
    """Its profile's values with what it changes."""
    profile, changes = VARIATIONS[variation]
    return changed(read_profile(profile), changes)


def changed(values: Values, changes: Values) -> Values:
    """The values with others at dotted keys."""
    made = copy.deepcopy(values)
    for key, value in changes.items():
        *parents, last = key.split(".")
        place = made
        for parent in parents:
            place = place.setdefault(parent, {})
        place[last] = value
    return made


def render_text(values: Values, *, name: str = "rlaif", namespace: str = "rlaif") -> dict[str, str]:
    """Rendered text by template."""
    return _chart().render(values, name=name, namespace=namespace)


def render(values: Values, *, name: str = "rlaif", namespace: str = "rlaif") -> list[Manifest]:
    """All manifests, hooks and tests included."""
    found: list[Manifest] = []
    for path, text in sorted(render_text(values, name=name, namespace=namespace).items()):
        if not path.endswith(".txt"):
            found += [document for document in yaml.load_all(text, Loader=_UniqueKeyLoader) if document]
    return found


@cache
def rendered(variation: str) -> tuple[Manifest, ...]:
    """Manifests of a variation; not to be changed."""
    return tuple(render(values_of(variation)))


def of_kind(manifests: list[Manifest] | tuple[Manifest, ...], *kinds: str) -> dict[str, Manifest]:
    """Manifests of these kinds by name."""
    return {each["metadata"]["name"]: each for each in manifests if each["kind"] in kinds}


def pod_specs(manifests: list[Manifest] | tuple[Manifest, ...]) -> dict[str, dict[str, Any]]:
    """Pod templates (metadata and spec) by "Kind/name" of what makes them."""
    found = {}
    for each in manifests:
        kind, name, spec = each["kind"], each["metadata"]["name"], each.get("spec")
        if kind == "Pod":
            found[f"{kind}/{name}"] = {"metadata": each["metadata"], "spec": spec}
        elif kind in ("Deployment", "StatefulSet", "Job"):
            found[f"{kind}/{name}"] = spec["template"]
        elif kind == "CronJob":
            found[f"{kind}/{name}"] = spec["jobTemplate"]["spec"]["template"]
        elif kind == "TrainingRuntime":
            (job,) = spec["template"]["spec"]["replicatedJobs"]
            found[f"{kind}/{name}"] = {"metadata": {"labels": {}}, **job["template"]["spec"]["template"]}
    return found


def containers(pod: dict[str, Any]) -> list[dict[str, Any]]:
    """Init containers and containers of a pod template."""
    return [*pod["spec"].get("initContainers", []), *pod["spec"]["containers"]]


class _UniqueKeyLoader(yaml.CSafeLoader):
    """Refuses a key given twice, of which a cluster would take the last without a word."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [key.value for key, _ in node.value]
        assert len(set(keys)) == len(keys), f"a key is given twice at {node.start_mark}"
        return dict(super().construct_mapping(node, deep=deep))


@cache
def _chart() -> Chart:
    return Chart.load(CHART)
