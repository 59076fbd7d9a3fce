"""Which image gets which libraries, and that a build is repeated only for a reason."""

from __future__ import annotations

import re

import pytest

from deploy.images.spec import IMAGES
from deploy.images.wheels import closure, libraries, own

PYTHON_IMAGES = [image for image in IMAGES.values() if image.requirement]


@pytest.mark.parametrize("image", PYTHON_IMAGES, ids=lambda image: image.name)
def test_layers_hold_all_that_an_image_needs_and_torch_only_where_it_is_needed(image: object) -> None:
    needed = closure(image.requirement)  # type: ignore[attr-defined]
    layers = libraries(image.layers)  # type: ignore[attr-defined]
    held = frozenset().union(*layers.values())
    assert needed - own(needed) <= held
    assert sum(map(len, layers.values())) == len(held), "no library twice"
    assert ("torch" in held) == (image.name in {"runtime-aten", "registry"})  # type: ignore[attr-defined]
    assert ("onnxruntime" in held) == (image.name in {"runtime-ort", "node-agent", "registry"})  # type: ignore[attr-defined]


@pytest.mark.parametrize("image", PYTHON_IMAGES, ids=lambda image: image.name)
def test_dockerfiles_have_the_layers_of_the_spec_and_our_code_last(image: object) -> None:
    text = image.dockerfile.read_text()  # type: ignore[attr-defined]
    copied = re.findall(r"^COPY --from=(\w+) /opt/tessera/\w+ /opt/tessera/(\w+)$", text, re.MULTILINE)
    assert [stage for stage, _ in copied] == [folder for _, folder in copied] == [*image.layers, "own"]  # type: ignore[attr-defined]
    assert text.count("ARG BASE_IMAGE=") == 1
    assert "\nUSER tessera\n" in text
    assert "--mount" not in text, "engines without BuildKit build it too"


def test_etcd_needs_no_python_libraries() -> None:
    assert IMAGES["etcd"].layers == ()
