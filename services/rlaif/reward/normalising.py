"""The normalisations that settings name: read at start, refused when they were fitted on anything else."""

from __future__ import annotations

from pathlib import Path

from rlaif.core.errors import InvalidInputError, SettingsError
from rlaif.core.reward_normalisation import Normalisation, parse_normalisation


def read_normalisation(path: Path, *, place: str) -> Normalisation:
    """The normalisation of that file; SettingsError names `place`, the setting, and what is wrong."""
    try:
        return parse_normalisation(path.read_text(encoding="utf-8"), source=str(path))
    except OSError as error:
        raise SettingsError(f"{place}: {path} cannot be read: {error.strerror}", field=place) from error
    except UnicodeDecodeError as error:
        raise SettingsError(f"{place}: {path} is not UTF-8", field=place) from error
    except InvalidInputError as error:
        raise SettingsError(f"{place}: {error.message}", field=place) from error


def check_fresh(fitted: Normalisation, *, source_sha256: str, place: str) -> None:
    """SettingsError when the component's raw values come from something else than what it was fitted on."""
    if fitted.source_sha256 != source_sha256:
        raise SettingsError(
            f"{place}: normalisation {fitted.normalisation_id} is stale: it was fitted on "
            f"{fitted.source_sha256[:12]}, and these members so combined are {source_sha256[:12]}; fit it anew or "
            "remove it",
            field=place,
            reason="STALE_NORMALISATION",
        )
