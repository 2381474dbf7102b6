from __future__ import annotations

import subprocess
import sys

import pytest

HEAVY = (
    "torch",
    "transformers",
    "sqlalchemy",
    "alembic",
    "kfp",
    "deepspeed",
    "prometheus_client",
    "opentelemetry",
    "numpy",
    "scipy",
    "statsmodels",
    "fsspec",
    "s3fs",
    "botocore",
    "aiohttp",
)


@pytest.mark.parametrize(
    "modules",
    [
        "rlaif.client, rlaif.client.channel, rlaif.client.ledger",
        "rlaif.client.judge, rlaif.client.sampler, rlaif.client.reward",
        "rlaif.client.review, rlaif.client.judged_pairs, rlaif.core.calibration, rlaif.core.calibration_fit",
        "rlaif.runtime.settings, rlaif.runtime.store, rlaif.runtime.logging",
        "rlaif.sampler.settings, rlaif.oversight.settings",
    ],
)
def test_clients_and_settings_load_nothing_heavy(modules: str) -> None:
    program = f"import sys, {modules}\nprint(*[name for name in {HEAVY!r} if name in sys.modules])"
    loaded = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert loaded.stdout.split() == []
