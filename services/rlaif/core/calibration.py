"""Calibrations: from a judge's raw probability to how often people agree, for one judge, template and constitution."""

from __future__ import annotations

import json
import math
import re
from bisect import bisect_right
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Any, Literal, cast, get_args

from rlaif.core.canonical import digest
from rlaif.core.errors import InvalidInputError

Method = Literal["temperature", "isotonic"]
SMALLEST_PROBABILITY = 1e-6
"""Probabilities are taken as no nearer than this to 0 and 1: a certain judge that errs must not cost infinity."""

_ID_DIGITS = 16
_SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class CalibrationKey:
    """What a calibration holds for, SHA-256 digests in lower-case hex; change one, and it is stale."""

    judge_digest: str
    template_sha256: str
    constitution_sha256: str


@dataclass(frozen=True)
class CalibrationScores:
    """How far probabilities are from what people said: Brier score, log-loss in nats, expected calibration error."""

    brier: float
    nll: float
    ece: float


@dataclass(frozen=True)
class Calibration:
    """A monotone map of P(first) that treats both responses alike: apply(1 - p) = 1 - apply(p)."""

    key: CalibrationKey
    constitution: str
    """Resource name of the constitution, for people to read."""
    method: Method
    temperature: float
    """Above 0; 1 when the method is isotonic."""
    knots: tuple[tuple[float, float], ...]
    """(raw, calibrated) by rising raw probability, interpolated between; empty when the method is temperature."""
    num_labels: int
    """Human-reviewed labels it was fitted on."""
    num_folds: int
    before: CalibrationScores
    """Of the raw probabilities."""
    after: CalibrationScores
    """Of probabilities calibrated by maps that had not seen them (cross-validation)."""

    @property
    def calibration_id(self) -> str:
        """First 16 hex digits of the digest of everything it says."""
        return digest(asdict(self))[:_ID_DIGITS]

    @property
    def name(self) -> str:
        """Resource name, "calibrations/{id}"."""
        return f"calibrations/{self.calibration_id}"

    def apply(self, probability: float) -> float:
        """The calibrated P(first) of a raw one; InvalidInputError outside [0, 1] and for NaN.

        Temperature scaling is σ(logit(p) / T) (Guo et al. 2017, arXiv 1706.04599, eq. 9 for two classes).
        """
        if not 0.0 <= probability <= 1.0:
            raise InvalidInputError(f"probability is {probability}, not within 0 to 1", field="probability")
        if self.method == "isotonic":
            return _interpolate(self.knots, probability)
        return scale(probability, temperature=self.temperature)

    def to_json(self) -> dict[str, Any]:
        """Plain values, as the file holds them."""
        return {"id": self.calibration_id, **asdict(self)}


def scale(probability: float, *, temperature: float) -> float:
    """σ(logit(p) / T), p taken as no nearer than SMALLEST_PROBABILITY to 0 and 1."""
    clipped = min(max(probability, SMALLEST_PROBABILITY), 1 - SMALLEST_PROBABILITY)
    logit = (math.log(clipped) - math.log1p(-clipped)) / temperature
    return 1 / (1 + math.exp(-logit)) if logit >= 0 else math.exp(logit) / (1 + math.exp(logit))


def parse_calibration(text: str, *, source: str = "calibration") -> Calibration:
    """A calibration from the JSON text of its file; InvalidInputError names source and field of what is wrong."""
    try:
        values = json.loads(text)
    except ValueError as error:
        raise InvalidInputError(f"{source}: not valid JSON: {error}", field="calibration") from error
    if not isinstance(values, dict):
        raise InvalidInputError(f"{source}: must be a JSON object", field="calibration")
    read = _Reader(source)
    key = read.mapping(values, "key")
    calibration = Calibration(
        key=CalibrationKey(
            **{field: read.sha256(key, field) for field in ("judge_digest", "template_sha256", "constitution_sha256")}
        ),
        constitution=read.text(values, "constitution"),
        method=read.method(values),
        temperature=read.number(values, "temperature", least=0.0, least_excluded=True),
        knots=read.knots(values),
        num_labels=read.count(values, "num_labels"),
        num_folds=read.count(values, "num_folds"),
        before=read.scores(values, "before"),
        after=read.scores(values, "after"),
    )
    if values.get("id") != calibration.calibration_id:
        raise InvalidInputError(f"{source}: id is not the digest of the file's values; it was altered", field="id")
    return calibration


def _interpolate(knots: tuple[tuple[float, float], ...], probability: float) -> float:
    """Linear between knots, constant beyond the outermost ones."""
    index = bisect_right(knots, probability, key=lambda knot: knot[0])
    if index == 0:
        return knots[0][1]
    if index == len(knots):
        return knots[-1][1]
    (x0, y0), (x1, y1) = knots[index - 1], knots[index]
    return y0 + (y1 - y0) * (probability - x0) / (x1 - x0)


class _Reader:
    """Takes values out of a parsed file, each of the right kind or an error that names it."""

    def __init__(self, source: str) -> None:
        self._source = source

    def mapping(self, values: Mapping[str, Any], field: str) -> Mapping[str, Any]:
        value = values.get(field)
        if not isinstance(value, dict):
            raise self._error(field, f"must be an object, not {value!r}")
        return value

    def text(self, values: Mapping[str, Any], field: str) -> str:
        value = values.get(field)
        if not isinstance(value, str):
            raise self._error(field, f"must be text, not {value!r}")
        return value

    def sha256(self, values: Mapping[str, Any], field: str) -> str:
        value = self.text(values, field)
        if not _SHA256.fullmatch(value):
            raise self._error(f"key.{field}", "must be 64 lower-case hex digits")
        return value

    def number(
        self, values: Mapping[str, Any], field: str, *, least: float = -math.inf, least_excluded: bool = False
    ) -> float:
        value = values.get(field)
        usable = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
        if not usable or not (value > least if least_excluded else value >= least):  # type: ignore[operator]  # a number
            raise self._error(field, f"must be a number {'above' if least_excluded else 'from'} {least:g}: {value!r}")
        return float(cast(float, value))

    def count(self, values: Mapping[str, Any], field: str) -> int:
        value = values.get(field)
        if not isinstance(value, int) or isinstance(value, bool) or value < 0:
            raise self._error(field, f"must be a whole number from 0, not {value!r}")
        return value

    def method(self, values: Mapping[str, Any]) -> Method:
        value = values.get("method")
        if value not in get_args(Method):
            raise self._error("method", f"must be one of {', '.join(get_args(Method))}, not {value!r}")
        return cast(Method, value)

    def knots(self, values: Mapping[str, Any]) -> tuple[tuple[float, float], ...]:
        rows = values.get("knots")
        if not isinstance(rows, list) or any(not isinstance(row, list) or len(row) != 2 for row in rows):
            raise self._error("knots", "must be a list of [raw, calibrated] pairs")
        knots = tuple(
            (self.number({"knots": raw}, "knots", least=0.0), self.number({"knots": calibrated}, "knots", least=0.0))
            for raw, calibrated in rows
        )
        rising = all(a[0] < b[0] and a[1] <= b[1] for a, b in pairwise(knots))
        if not rising or any(max(knot) > 1 for knot in knots):
            raise self._error("knots", "must rise within 0 to 1")
        if bool(knots) != (values.get("method") == "isotonic"):
            raise self._error("knots", "must be given exactly when the method is isotonic")
        return knots

    def scores(self, values: Mapping[str, Any], field: str) -> CalibrationScores:
        scores = self.mapping(values, field)
        return CalibrationScores(**{name: self.number(scores, name, least=0.0) for name in ("brier", "nll", "ece")})

    def _error(self, field: str, problem: str) -> InvalidInputError:
        return InvalidInputError(f"{self._source}: {field} {problem}", field=field)
