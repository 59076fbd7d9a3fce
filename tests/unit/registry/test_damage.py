"""An artifact of one model is lost: others are not held up, and nothing that it may have named is deleted."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from registry_world import DOMAIN, Registry, stored, tensor

from tessera.domain.ids import Digest, ModelName

Damage = Callable[[Path], object]
LEFT = b"left by an import that died"
DAMAGE = pytest.mark.parametrize("damage", [lambda path: path.write_bytes(b"{}"), Path.unlink], ids=["damaged", "missing"])


async def two_models(registry: Registry, damage: Damage) -> Digest:
    """Models `m`, whose artifact is lost then, and `n`, in a registry that starts afterwards. Returns the artifact."""
    registry.importer.onnx = False
    await registry.register("m", {"w": tensor(1)})
    await registry.register("n", {"w": tensor(2)})
    (lost,) = [v.artifact for v in await registry.catalogue.variants(DOMAIN) if v.key.model == "m" and v.artifact is not None]
    (path,) = (registry.folder / "repository").rglob(lost)
    path.chmod(0o644)
    damage(path)
    await registry.crash()
    return lost


@DAMAGE
async def test_a_start_deletes_nothing(registry: Registry, damage: Damage) -> None:
    await two_models(registry, damage)
    kept = stored(registry.repository)
    left = registry.repository.put_bytes(LEFT)
    assert await registry.shelf.sweep() == 0
    assert stored(registry.repository) == kept | {left}


@DAMAGE
async def test_others_are_registered(registry: Registry, damage: Damage) -> None:
    await two_models(registry, damage)
    events = await registry.register("o", {"w": tensor(3)})
    assert events[-1].version is not None


@DAMAGE
async def test_deleting_its_model_ends_it(registry: Registry, damage: Damage) -> None:
    lost = await two_models(registry, damage)
    kept = stored(registry.repository)
    assert await registry.shelf.discard(await registry.catalogue.delete(DOMAIN, ModelName("n"), None)) == 0
    assert stored(registry.repository) == kept
    await registry.register("o", {"w": tensor(3)})
    await registry.shelf.discard(await registry.catalogue.delete(DOMAIN, ModelName("m"), None))
    assert lost not in stored(registry.repository)
    await registry.shelf.sweep()
    (variant,) = [v for v in await registry.catalogue.variants(DOMAIN) if v.artifact is not None]
    assert variant.artifact is not None
    needed = {blob.digest for blob in (await registry.blobs.artifact(variant.artifact)).blobs()}
    assert stored(registry.repository) == {variant.artifact, *needed}
