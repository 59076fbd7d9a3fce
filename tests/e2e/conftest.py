"""A whole platform on loopback for all tests that leave it as it is, a second one for those that break things."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

# Plain classes that several test files import.
sys.path.insert(0, str(Path(__file__).parent))

import e2e_models
from e2e_platform import Platform

from tessera.sdk import Client

BERT = {"hidden": 32, "layers": 1, "heads": 2, "vocabulary": 100}
BERT_SEED = 3


@pytest.fixture(scope="session")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`net.pt2` and its sibling `sibling.pt2` (another head)."""
    folder = tmp_path_factory.mktemp("sources")
    e2e_models.save_net(folder, "net", head_seed=1)
    e2e_models.save_net(folder, "sibling", head_seed=2)
    return folder


@pytest.fixture(scope="session")
def platform(tmp_path_factory: pytest.TempPathFactory, sources: Path) -> Iterator[Platform]:
    """With the models `net` (an archive, task `shapes`) and `bert` (a builder with a seed). Nothing of it is left after the session."""
    found = Platform(tmp_path_factory.mktemp("platform") / "state")
    found.up()
    try:
        with found.client() as client:
            client.register("net", sources / "net.pt2", task="shapes", dataset="made-up", accuracy=0.5, wait=True)
            client.register("bert", "tessera.registry.builders:bert", builder_args=BERT, seed=BERT_SEED, wait=True)
        yield found
        found.check_stores()
        done = found.down()
        assert (done.returncode, found.leftovers()) == (0, []), done.stderr
        assert "down; no process, socket, lease or tmpfs file is left" in done.stderr
    finally:
        found.end()


@pytest.fixture
def no_settings_of_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("TESSERA_") and not name.startswith("TESSERA_REQUIRE_")]:
        monkeypatch.delenv(name)


@pytest.fixture(scope="session")
def image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What `net` takes, two items of it."""
    path = tmp_path_factory.mktemp("inputs") / "image.npy"
    np.save(path, e2e_models.images(2))
    return path


@pytest.fixture
def client(platform: Platform) -> Iterator[Client]:
    with platform.client() as found:
        yield found


@pytest.fixture(scope="session")
def net() -> e2e_models.Net:
    """The model `net`, eager."""
    return e2e_models.Net(1)


@pytest.fixture(scope="session")
def bert_recipe() -> tuple[int, dict[str, int]]:
    """Seed and arguments of the model `bert`."""
    return BERT_SEED, BERT


@pytest.fixture(scope="session")
def fragile_platform(tmp_path_factory: pytest.TempPathFactory, sources: Path) -> Iterator[Platform]:
    """A second one, with `net`, to break things in; small."""
    found = Platform(tmp_path_factory.mktemp("fragile") / "state", store="64M")
    try:
        found.up()
        with found.client() as client:
            client.register("net", sources / "net.pt2", wait=True)
        yield found
        if found.supervisor is not None:
            found.until_ready()
            found.check_stores()
    finally:
        found.end()


@pytest.fixture
def fragile(fragile_platform: Platform) -> Platform:
    """The second platform, running, every process of it ready."""
    if fragile_platform.supervisor is None:
        fragile_platform.up()
    fragile_platform.until_ready()
    return fragile_platform
