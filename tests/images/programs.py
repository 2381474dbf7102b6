"""What images are asked to run from inside: small programs, handed to their own Python."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

IMPORT_ALL = """
import importlib, pkgutil, sys
for name in sys.argv[1:]:
    package = importlib.import_module(name)
    for module in pkgutil.walk_packages(getattr(package, "__path__", []), f"{name}."):
        # Only Alembic itself can load its own files.
        if ".migrations" not in module.name:
            importlib.import_module(module.name)
"""
"""Imports packages and every module of them."""

TOOLS = """
import importlib.util, json, os, shutil
names = ("buildah", "cc", "g++", "gcc", "git", "make", "nvcc", "pip", "pip3", "uv")
paths = ("/dist", "/etc/pip.conf", "/opt/added", "/opt/build", "/root/.cache", "/src", "/tmp/pip-build")
print(json.dumps([
    *filter(shutil.which, names),
    *filter(importlib.util.find_spec, ("pip",)),
    *filter(os.path.exists, paths),
]))
"""
"""Prints what of the build is still there."""

PROCESS_1 = """
import json
lines = dict(line.rstrip().split(":", 1) for line in open("/proc/1/status"))
names = ("Uid", "Gid", "CapPrm", "CapEff", "CapBnd", "CapAmb", "NoNewPrivs")
print(json.dumps({name: lines[name].split() for name in names}))
"""
"""Prints as whom the container's own program runs."""

CAUGHT_SIGNALS = """
import json
mask = next(int(line.split()[1], 16) for line in open("/proc/1/status") if line.startswith("SigCgt"))
print(json.dumps([number for number in range(1, 65) if mask >> (number - 1) & 1]))
"""
"""Prints the signals that the container's own program handles."""


def pipeline_task(compiled: Mapping[str, Any], name: str, given: Mapping[str, Any]) -> list[str]:
    """The command by which Kubeflow Pipelines runs a task of a compiled pipeline, its outputs below /tmp/outputs."""
    container = compiled["deploymentSpec"]["executors"][f"exec-{name}"]["container"]
    outputs = compiled["components"][f"comp-{name}"].get("outputDefinitions", {})
    message = {
        "inputs": {"parameterValues": dict(given)},
        "outputs": {
            "outputFile": "/tmp/outputs/executor_output.json",
            "parameters": {key: {"outputFile": f"/tmp/outputs/{key}"} for key in outputs.get("parameters", {})},
            "artifacts": {
                key: {
                    "artifacts": [
                        {"name": key, "type": value["artifactType"], "uri": f"/tmp/outputs/{key}", "metadata": {}}
                    ]
                }
                for key, value in outputs.get("artifacts", {}).items()
            },
        },
    }
    return [*container["command"], *(word.replace("{{$}}", json.dumps(message)) for word in container["args"])]
