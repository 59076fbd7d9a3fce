from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from tessera.clock import SystemClock
from tessera.domain.artifact import Artifact
from tessera.domain.errors import NotFound
from tessera.domain.signature import Signature, TensorSpec
from tessera.runtime import backends, housekeeping
from tessera.runtime.backends.identity.backend import IdentityBackend
from tessera.runtime.loads import LoadRequest
from tessera.runtime.manager import InstanceManager, RuntimeConfig
from tessera.tensorstore import artifact as artifacts

ANY = TensorSpec("INPUT0", "ANY", (), True)
IDENTITY = Artifact("identity", "any", "", None, None, (), Signature((ANY,), (TensorSpec("OUTPUT0", "ANY", (), True),), False), None, 1)


@pytest.fixture
def releases(monkeypatch) -> list[str]:
    """A runtime with the identity backend alone that gives memory back a second after unloads; the list says how often it did."""
    seen: list[str] = []
    monkeypatch.setattr(housekeeping, "TIDY_AFTER_S", 1.0)
    monkeypatch.setattr(backends, "FLAVOURS", {"ort": ("identity",)})
    monkeypatch.setattr(IdentityBackend, "release", lambda self: seen.append("released"))
    return seen


@pytest.fixture
async def running(tmp_path, releases):
    (tmp_path / "store" / "blobs").mkdir(parents=True)
    config = RuntimeConfig("r", "ort", "default", tmp_path / "store", tmp_path)
    config.folder.mkdir()
    made = InstanceManager(config, SystemClock())
    await made.start()
    yield made
    await made.close(0)


def put(running: InstanceManager, artifact: Artifact = IDENTITY) -> tuple[str, Path]:
    data = artifacts.encode(artifact)
    digest = artifacts.digest_of(data)
    path = running.config.store / "blobs" / digest
    path.write_bytes(data)
    return digest, path


async def until(releases: list[str], count: int) -> None:
    async with asyncio.timeout(5):
        while len(releases) < count:  # noqa: ASYNC110 - a thread appends
            await asyncio.sleep(0.005)


async def test_unloads_close_together_give_memory_back_once_and_later_ones_again(running, releases):
    digest, _ = put(running)
    for number in range(3):
        await running.load(LoadRequest(f"i{number}", number, "m@1/v", digest))
    assert releases == []
    for number in range(3):
        await running.unload(f"i{number}", 0)
    assert releases == []
    await until(releases, 1)
    await asyncio.sleep(1.5)
    assert len(releases) == 1
    await running.load(LoadRequest("i", 9, "m@1/v", digest))
    await running.unload("i", 0)
    await until(releases, 2)


async def test_a_load_that_failed_gives_memory_back_too(running, releases):
    with pytest.raises(NotFound):
        await running.load(LoadRequest("i", 1, "m@1/v", "0" * 64))
    await until(releases, 1)


async def test_a_backend_that_fails_to_give_back_does_not_end_the_loader(running, releases, monkeypatch, caplog):
    def fail(self: IdentityBackend) -> None:
        releases.append("failed")
        raise RuntimeError("no")

    digest, _ = put(running)
    monkeypatch.setattr(IdentityBackend, "release", fail)
    await running.load(LoadRequest("i", 1, "m@1/v", digest))
    await running.unload("i", 0)
    await until(releases, 1)
    await running.load(LoadRequest("i", 2, "m@1/v", digest))
    assert "could not be given back" in caplog.text


async def test_an_artifact_that_was_not_there_is_found_when_it_comes(running):
    digest, path = put(running)
    data = path.read_bytes()
    path.unlink()
    with pytest.raises(NotFound):
        await running.load(LoadRequest("i", 1, "m@1/v", digest))
    path.write_bytes(data)
    await running.load(LoadRequest("i", 1, "m@1/v", digest))
    path.unlink()
    await running.load(LoadRequest("j", 2, "m@1/v", digest))  # known by its digest: no file needed
