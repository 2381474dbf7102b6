"""Python loads this in every child whose PYTHONPATH begins with this folder; see pipeline_hooks."""

import os

if os.environ.get("RLAIF_TEST_HOOKS"):
    import pipeline_hooks

    pipeline_hooks.install()
