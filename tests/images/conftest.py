"""Images, built once for all checks, and the four services running from them."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from images import builder
from images.stack import Stack, started


@pytest.fixture(scope="session", autouse=True)
def _images_can_be_built() -> Iterator[None]:
    if reason := builder.unable():
        pytest.skip(reason)
    yield
    builder.release()


@pytest.fixture(scope="session")
def images() -> dict[str, str]:
    """References of the images, by name."""
    return {name: builder.image(name, target) for name, target in builder.TARGETS.items()}


@pytest.fixture(scope="module")
def stack(images: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """Ledger, sampler, judge and reward service on loopback, with the models that ship."""
    with started(images, tmp_path_factory.mktemp("stack")) as stack:
        yield stack
