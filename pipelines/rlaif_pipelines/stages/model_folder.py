"""A model that settings name, as a folder of this machine."""

from __future__ import annotations

from pathlib import Path

from rlaif.core.errors import InvalidInputError
from rlaif.playground.paths import POLICY_DIR
from rlaif.runtime.store import fetch_model, is_remote
from rlaif_pipelines.settings import PLAYGROUND


def model_folder(name: str, *, field: str) -> Path:
    """The folder of a path, URI or hub id; what is elsewhere is fetched once. InvalidInputError names the field."""
    if name == PLAYGROUND:
        return POLICY_DIR
    if is_remote(name):
        return fetch_model(name)  # each machine fetches its own
    if Path(name).is_dir():
        return Path(name).absolute()
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(name, allow_patterns=["*.json", "*.safetensors", "*.jinja", "*.model"]))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise InvalidInputError(
            f"{field} {name!r} is neither a model folder nor a Hugging Face id that can be fetched: {reason}",
            field=field,
        ) from error
