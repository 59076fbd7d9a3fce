"""What a start does with the repository: sweeps what imports left, and nothing that some record may need."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from registry_world import CLASS_A, DOMAIN, Registry, stored, tensor

from tessera.domain.ids import ModelName, TrustDomain
from tessera.program import Stop
from tessera.registry.app import run
from tessera.registry.config import RegistryConfig
from tessera.testing.coord import FakeCoordinator, FakeEtcd

FILES = {"trunk": tensor(1), "head": tensor(2)}
OTHER = TrustDomain("other")
LEFT = b"left by an import that died"


async def start(folder: Path, server: FakeEtcd, *domains: TrustDomain) -> None:
    """A registry that starts, serves, and ends at once."""
    state = folder / "state"
    state.mkdir(exist_ok=True)
    config = RegistryConfig(
        repository_url=f"file://{folder}/repository", state_folder=str(state), address="127.0.0.1:0", trust_domains=list(domains)
    )
    stop = Stop()
    stop.request("it has started")
    coordinator = FakeCoordinator(server)
    await run(config, stop, coordinator, state)
    await coordinator.close()


async def test_what_imports_left_is_swept_and_what_records_refer_to_is_kept(registry: Registry) -> None:
    await registry.node("n1", CLASS_A)
    await registry.register("m", FILES, wait=True)
    kept = stored(registry.repository)
    left = registry.repository.put_bytes(LEFT)
    await start(registry.folder, registry.server, DOMAIN)
    assert left not in stored(registry.repository)
    assert kept < stored(registry.repository)  # and the built-in model's artifact


async def test_lost_records_cost_no_blob_however_often_it_starts(registry: Registry) -> None:
    await registry.node("n1", CLASS_A)
    await registry.register("m", FILES, wait=True)
    kept = stored(registry.repository)
    empty = FakeEtcd()
    for _ in range(2):
        await start(registry.folder, empty, DOMAIN)
        assert kept < stored(registry.repository)


async def test_blobs_of_a_trust_domain_that_is_left_out_are_kept(registry: Registry) -> None:
    await registry.node("n1", CLASS_A)
    await registry.register("m", FILES, wait=True)
    kept = stored(registry.repository)
    left = registry.repository.put_bytes(LEFT)
    await start(registry.folder, registry.server, OTHER)
    assert kept < stored(registry.repository)
    assert left not in stored(registry.repository)


async def test_deleting_keeps_what_a_trust_domain_that_is_left_out_refers_to(registry: Registry) -> None:
    await registry.versions("m", 1)
    kept = stored(registry.repository)
    registration = replace(registry.registration("m", {"w": tensor(1)}), trust_domain=OTHER)
    registry.upload({"w": tensor(1)}, OTHER)
    async for _ in registry.imports.register(registration, wait=False):
        pass
    await registry.shelf.discard(await registry.catalogue.delete(DOMAIN, ModelName("m"), None))
    assert stored(registry.repository) == kept
