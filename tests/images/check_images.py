"""What images hold: run by `make images-test`, which builds them first."""

from __future__ import annotations

import json
import re
import tomllib

import pytest

from images import builder, programs
from images.containers import inspect, run

MOST_BYTES = {"oversight": 400_000_000}
VERSION = tomllib.loads((builder.ROOT / "pyproject.toml").read_text())["project"]["version"]
PACKAGES = {
    "oversight": ["rlaif.oversight", "rlaif.client", "rlaif.core"],
    "pipelines": ["rlaif.cli", "rlaif_pipelines.stages", "rlaif_pipelines.flow", "rlaif_pipelines.report"],
    "engine": ["rlaif.sampler", "rlaif.judge", "rlaif.reward", "rlaif.engine.hf", "rlaif.engine.openai"],
    "trainer": ["rlaif_pipelines.training"],
}
# Of what is large, each image holds what it needs.
LACKING = {
    "oversight": {"torch", "transformers", "scipy", "numpy", "kfp", "deepspeed"},
    "pipelines": {"deepspeed", "sqlalchemy"},
    "engine": {"kfp", "deepspeed", "sqlalchemy", "scipy"},
    "trainer": {"kfp", "sqlalchemy"},
}
each_image = pytest.mark.parametrize("name", builder.TARGETS)


def test_images_are_as_large_as_the_documentation_says(
    images: dict[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    sizes = {name: inspect(image)["Size"] for name, image in images.items()}
    base = inspect(builder.BASE_IMAGE)["Size"]
    with capsys.disabled():
        print("\n\nMB, unpacked")
        for name, size in {"base": base, **sizes}.items():
            print(f"  {name:<10} {size / 1e6:6.0f}")
    for name, most in MOST_BYTES.items():
        assert sizes[name] <= most


@each_image
def test_an_image_runs_as_nobody_and_says_what_it_is(images: dict[str, str], name: str) -> None:
    found = inspect(images[name])
    assert found["Config"]["User"] == "65532:65532"
    labels = found["Labels"]
    assert labels["org.opencontainers.image.title"] == f"rlaif-{name}"
    assert labels["org.opencontainers.image.version"] == VERSION
    assert labels["org.opencontainers.image.revision"] == builder.revision()
    assert labels["org.opencontainers.image.licenses"] == "Apache-2.0"
    assert f"RLAIF_REVISION={builder.revision()}" in found["Config"]["Env"]


@each_image
def test_an_image_holds_no_build_tool_and_nothing_that_it_was_built_from(images: dict[str, str], name: str) -> None:
    found = run(images[name], "python", "-c", programs.TOOLS)
    assert (found.exit_code, json.loads(found.stdout)) == (0, [])


@each_image
def test_every_module_loads_from_the_image_alone_and_none_has_to_be_compiled(images: dict[str, str], name: str) -> None:
    found = run(images[name], "python", "-v", "-c", programs.IMPORT_ALL, *PACKAGES[name])
    assert found.exit_code == 0, found.stderr[-4000:]
    compiled = re.findall(r"^# code object from (/\S+\.py)$", found.stderr, re.MULTILINE)
    assert [path for path in compiled if path.startswith("/opt/rlaif")] == []
    loaded = set(re.findall(r"^import '(\w+)'", found.stderr, re.MULTILINE))
    assert "rlaif" in loaded
    assert loaded & LACKING[name] == set()


def test_the_layer_with_torch_is_one_of_all_images_that_have_it(images: dict[str, str]) -> None:
    layers = {name: inspect(images[name])["RootFS"]["Layers"] for name in ("engine", "trainer", "pipelines")}
    shared = set.intersection(*map(set, layers.values()))
    # base, user, torch; and each image has what it adds
    assert len(shared) == 3
    assert {len(each) for each in layers.values()} == {4}
