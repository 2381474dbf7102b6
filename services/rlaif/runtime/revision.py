"""Which code is running."""

from __future__ import annotations

import os
from functools import cache
from importlib.metadata import PackageNotFoundError, version


@cache
def service_revision() -> str:
    """RLAIF_REVISION, which images set to their commit, else the installed version, else "unknown"."""
    if revision := os.environ.get("RLAIF_REVISION"):
        return revision
    try:
        return version("kube-rlaif")
    except PackageNotFoundError:
        return "unknown"
