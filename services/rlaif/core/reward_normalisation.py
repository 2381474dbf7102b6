"""Rewards of different sources on one scale: (value - mean) / sd, both taken over a reference set."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from statistics import fmean, pstdev
from typing import Any

from rlaif.core.canonical import digest
from rlaif.core.errors import InvalidInputError, PreconditionError

MIN_INPUTS = 50
"""Fewest reference inputs: of fewer, the sd is known to worse than about a tenth (1 / √(2n))."""

_SHA256 = re.compile(r"[0-9a-f]{64}")
_ID_DIGITS = 16


@dataclass(frozen=True)
class Normalisation:
    """Mean and standard deviation of a component's raw values over reference inputs, and what it was fitted on.

    `source_sha256` identifies what made the raw values: members and aggregation, or judge, template and constitution.
    Another source makes it stale. `reference_sha256` identifies the reference inputs. Both lower-case hex.
    """

    source_sha256: str
    reference_sha256: str
    component: str
    """Kind of component, for people to read."""
    num_inputs: int
    mean: float
    sd: float
    """Population standard deviation, above 0."""

    @property
    def normalisation_id(self) -> str:
        """First 16 hex digits of the digest of everything it says."""
        return digest(asdict(self))[:_ID_DIGITS]

    def apply(self, value: float) -> float:
        """The value in standard deviations from the mean of the reference set."""
        return (value - self.mean) / self.sd

    def to_json(self) -> dict[str, Any]:
        """Plain values, as the file holds them."""
        return {"id": self.normalisation_id, **asdict(self)}


def fit_normalisation(
    values: Sequence[float], *, source_sha256: str, reference_sha256: str, component: str
) -> Normalisation:
    """The normalisation of these raw values.

    PreconditionError when they are fewer than 50, or all the same; InvalidInputError when one is not finite.
    """
    if not all(map(math.isfinite, values)):
        raise InvalidInputError("a reference value is not finite", field="values")
    check_enough(len(values))
    mean, sd = fmean(values), pstdev(values)
    if sd <= 1e-12 * max(1.0, abs(mean)):
        raise PreconditionError(
            f"all {len(values)} reference values are {mean:g}: without variance there is no scale to bring them to",
            reason="NO_VARIANCE",
        )
    return Normalisation(
        source_sha256=source_sha256,
        reference_sha256=reference_sha256,
        component=component,
        num_inputs=len(values),
        mean=mean,
        sd=sd,
    )


def parse_normalisation(text: str, *, source: str) -> Normalisation:
    """The normalisation of a file's text. InvalidInputError names `source` and what is wrong."""
    try:
        read = json.loads(text)
        fitted = Normalisation(
            source_sha256=_sha256(read["source_sha256"]),
            reference_sha256=_sha256(read["reference_sha256"]),
            component=str(read["component"]),
            num_inputs=int(read["num_inputs"]),
            mean=float(read["mean"]),
            sd=float(read["sd"]),
        )
        given_id = read["id"]
    except (ValueError, KeyError, TypeError) as error:
        raise InvalidInputError(f"{source} is not a fitted normalisation: {error!r}") from error
    if given_id != fitted.normalisation_id:
        raise InvalidInputError(f"{source} was changed after it was fitted: its id does not match what it says")
    if not math.isfinite(fitted.mean) or not math.isfinite(fitted.sd) or fitted.sd <= 0:
        raise InvalidInputError(f"{source}: mean {fitted.mean} and sd {fitted.sd} must be finite, the sd above 0")
    try:
        check_enough(fitted.num_inputs)
    except PreconditionError as error:
        raise InvalidInputError(f"{source}: {error.message}") from error
    return fitted


def check_enough(num_inputs: int) -> None:
    """PreconditionError when so few reference inputs say too little of a standard deviation."""
    if num_inputs < MIN_INPUTS:
        raise PreconditionError(
            f"{num_inputs} reference inputs are too few to fit a normalisation on; {MIN_INPUTS} are needed",
            reason="TOO_FEW_INPUTS",
        )


def _sha256(value: Any) -> str:
    if not isinstance(value, str) or not _SHA256.fullmatch(value):
        raise ValueError(f"{value!r} is no SHA-256 in lower-case hex")
    return value
