"""Where the shipped playground models lie: plain Hugging Face folders inside the package."""

from __future__ import annotations

from pathlib import Path
from typing import Final

PLAYGROUND: Final = "playground"
"""Stands for the shipped model where a service's settings name one."""
MODELS_DIR: Final = Path(__file__).parent / "models"
POLICY_DIR: Final = MODELS_DIR / "policy"
JUDGE_DIR: Final = MODELS_DIR / "judge"
BUILD_RECORD: Final = MODELS_DIR / "playground.json"
"""How the shipped models were built: seed, steps, digests, held-out figures."""
