"""What GPUs can do and cost: a table of their peaks, of the shares that our work reaches, and of measured rates."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Final, Literal

import yaml
from pydantic import Field, ValidationError

from rlaif.core.errors import InvalidInputError, SettingsError
from rlaif.runtime.settings import SettingsModel
from rlaif_pipelines.named_file import read_text

Work = Literal["training", "prefill", "decode"]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
_MAX_FILE_BYTES: Final = 1 << 20


class Gpu(SettingsModel):
    """Peaks of one GPU, and its price."""

    memory_gb: Positive
    """Memory, 10⁹ bytes."""
    tflops: Positive
    """10¹² floating-point operations a second, bfloat16 matrix products without sparsity."""
    bandwidth_gb_per_second: Positive
    """Bytes read from memory a second, 10⁹."""
    usd_per_hour: Annotated[float, Field(ge=0, allow_inf_nan=False)]
    """Price; 0 for none."""
    source: str
    """Where the peaks are from."""

    @property
    def memory_bytes(self) -> float:
        """Memory."""
        return self.memory_gb * 1e9

    @property
    def flops(self) -> float:
        """Operations a second."""
        return self.tflops * 1e12

    @property
    def bandwidth(self) -> float:
        """Bytes a second."""
        return self.bandwidth_gb_per_second * 1e9


class Efficiency(SettingsModel):
    """Share of a peak that a kind of work reaches."""

    share: Annotated[float, Field(gt=0, le=1)]
    measured: bool
    """Whether by us."""
    source: str
    """Where it is from."""


class Rate(SettingsModel):
    """Tokens a second of one GPU, where it was measured."""

    gpu: str
    model: str
    """Name of the model, as a plan names it."""
    work: Work
    tokens_per_second: Positive
    """Tokens a second of one GPU."""
    measured: bool
    """Whether by us."""
    source: str
    """Where it is from."""


class Hardware(SettingsModel):
    """The table."""

    gpus: dict[str, Gpu]
    efficiencies: dict[Work, Efficiency]
    rates: tuple[Rate, ...] = ()

    def gpu(self, name: str) -> Gpu:
        """The GPU of that name; InvalidInputError if there is none."""
        if name not in self.gpus:
            close = difflib.get_close_matches(name.lower(), self.gpus, n=1, cutoff=0.4)
            hint = f"did you mean {close[0]}?" if close else "describe it in a file for --hardware"
            raise InvalidInputError(
                f"--gpu {name}: is not in the table, which has {', '.join(sorted(self.gpus))}; {hint}", field="--gpu"
            )
        return self.gpus[name]

    def rate(self, *, gpu: str, model: str, work: Work) -> Rate | None:
        """What is known of that work; None leaves it to the formulas."""
        wanted = (gpu, model.casefold(), work)
        return next((each for each in self.rates if (each.gpu, each.model.casefold(), each.work) == wanted), None)


def load_hardware(path: Path | None = None) -> Hardware:
    """The built-in table, with the entries of a file of the user's in the place of its own."""
    text = resources.files("rlaif_pipelines.planning").joinpath("hardware.yaml").read_text(encoding="utf-8")
    values: dict[str, Any] = yaml.safe_load(text)
    if path is None:
        return Hardware.model_validate(values)
    given = _read(path)
    unknown = sorted(set(given) - set(values))
    if unknown:
        raise SettingsError(f"--hardware {path}: there is no {unknown[0]!r}; there are {', '.join(values)}")
    for name in ("gpus", "efficiencies"):
        values[name] = values[name] | _mapping(given.get(name), path, name)
    values["rates"] = [*(given.get("rates") or ()), *values["rates"]]
    try:
        return Hardware.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"]))
        raise SettingsError(f"--hardware {path}: {place}: {first['msg'][0].lower()}{first['msg'][1:]}") from None


def _read(path: Path) -> Mapping[str, Any]:
    text = read_text(path, option="--hardware", most_bytes=_MAX_FILE_BYTES)
    try:
        found = yaml.safe_load(text)
    except (yaml.YAMLError, RecursionError):
        raise InvalidInputError(f"--hardware {path}: is not YAML", field="--hardware") from None
    return _mapping(found, path, "the file")


def _mapping(value: Any, path: Path, name: str) -> Mapping[str, Any]:
    if value is None:
        return {}
    if not isinstance(value, Mapping):
        raise SettingsError(f"--hardware {path}: {name} must be a mapping", field="--hardware")
    return value
