"""The calibrations of a judge: read at start, refused when they were fitted on anything else than what is loaded."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

from rlaif.core.calibration import Calibration, parse_calibration
from rlaif.core.errors import InvalidInputError, SettingsError

CalibrationKey = tuple[str, str]
"""(template digest, constitution digest)."""


def load_calibrations(
    paths: Sequence[Path],
    *,
    judge_digest: str,
    template_sha256s: Collection[str],
    constitutions: Mapping[str, str],
) -> dict[CalibrationKey, Calibration]:
    """Calibrations by what they hold for; `constitutions` are names to digests. SettingsError names the stale file."""
    found: dict[CalibrationKey, Calibration] = {}
    for path in paths:
        calibration = _read(path)
        key = calibration.key
        if not judge_digest or key.judge_digest != judge_digest:
            raise _stale(path, f"was fitted on the judge {_short(key.judge_digest)}, not {_short(judge_digest)}")
        if key.template_sha256 not in template_sha256s:
            loaded = " or ".join(map(_short, template_sha256s))
            raise _stale(path, f"was fitted on the template {_short(key.template_sha256)}, not {loaded}")
        if key.constitution_sha256 not in constitutions.values():
            current = constitutions.get(calibration.constitution)
            now = f"which is now {_short(current)}" if current else "which is not loaded"
            raise _stale(path, f"was fitted on {calibration.constitution} {_short(key.constitution_sha256)}, {now}")
        place = (key.template_sha256, key.constitution_sha256)
        if place in found:
            raise SettingsError(f"two calibrations hold for {calibration.constitution}: {path}", field="calibrations")
        found[place] = calibration
    return found


def _read(path: Path) -> Calibration:
    try:
        return parse_calibration(path.read_text(encoding="utf-8"), source=str(path))
    except OSError as error:
        raise SettingsError(f"calibration {path} cannot be read: {error.strerror}", field="calibrations") from error
    except UnicodeDecodeError as error:
        raise SettingsError(f"calibration {path} is not UTF-8", field="calibrations") from error
    except InvalidInputError as error:
        raise SettingsError(error.message, field="calibrations") from error


def _stale(path: Path, why: str) -> SettingsError:
    return SettingsError(
        f"calibration {path} is stale: it {why}; fit it anew or remove it", field="calibrations", reason="STALE"
    )


def _short(digest: str) -> str:
    return digest[:12] or "of unknown weights"
