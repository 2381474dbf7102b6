"""What a run publishes outside its folder: its own, and only its own, is continued or thrown away."""

from __future__ import annotations

import json
from pathlib import Path

from rlaif.cli.folder import RUN_FILE
from rlaif.core.errors import InvalidInputError
from rlaif.runtime.store import open_store
from rlaif_pipelines.settings import RunSettings


def check_unpublished(settings: RunSettings) -> None:
    """InvalidInputError where a run of the same settings, with another folder, has published its policy already."""
    if settings.artifact_root is None:
        return
    found = open_store(settings.artifact_root).read_desired(settings.policy_name)
    if found is not None:
        raise InvalidInputError(
            f"--artifact-root {settings.artifact_root} holds version {found.version} of {found.policy}, which a run "
            "with these settings and another --out has published: continue that run, or give another root or --seed",
            field="--artifact-root",
        )


def remove_published(folder: Path) -> None:
    """Removes what the run that this folder holds has published elsewhere; nothing to do for other folders."""
    if not (folder / RUN_FILE).is_file():
        return
    try:
        record = json.loads((folder / RUN_FILE).read_text(encoding="utf-8"))
        policy, root = record["policy"], record["settings"].get("artifact_root")
    except (ValueError, KeyError, TypeError, AttributeError):
        return  # a run that cannot be read was never continued, and is thrown away as it is
    if root is not None:
        open_store(root).remove_policy(policy)
