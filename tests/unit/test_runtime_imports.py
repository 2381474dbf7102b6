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
    "openai",
    "vllm",
)


@pytest.mark.parametrize(
    "modules",
    [
        "rlaif.client, rlaif.client.channel, rlaif.client.ledger",
        "rlaif.client.judge, rlaif.client.sampler, rlaif.client.reward",
        "rlaif.client.review, rlaif.client.judged_pairs, rlaif.core.calibration, rlaif.core.calibration_fit",
        "rlaif.runtime.settings, rlaif.runtime.store, rlaif.runtime.logging",
        "rlaif.sampler.settings, rlaif.judge.settings, rlaif.engine.openai.settings, rlaif.oversight.settings",
    ],
)
def test_clients_and_settings_load_nothing_heavy(modules: str) -> None:
    program = f"import sys, {modules}\nprint(*[name for name in {HEAVY!r} if name in sys.modules])"
    loaded = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert loaded.stdout.split() == []


def test_asking_a_server_by_messages_loads_no_model_library() -> None:
    heavy = ("torch", "transformers", "tokenizers", "numpy", "vllm")
    program = f"import sys, rlaif.engine.openai.engine\nprint(*[name for name in {heavy!r} if name in sys.modules])"
    loaded = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert loaded.stdout.split() == []
