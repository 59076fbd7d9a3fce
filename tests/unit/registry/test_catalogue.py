"""Records in etcd: numbers, names, aliases, deletion; also when two write at the same time."""

from __future__ import annotations

import asyncio

import pytest
from registry_world import DOMAIN, Registry, tensor

from tessera.coord import keys
from tessera.domain.errors import AlreadyExists, FailedPrecondition, InvalidInput, ModelNotFound, NotFound, VersionNotFound
from tessera.domain.ids import ModelName, VersionNumber

M, ALIAS = ModelName("m"), ModelName("live")
V1, V2, V3 = VersionNumber(1), VersionNumber(2), VersionNumber(3)


async def three_versions(registry: Registry) -> None:
    registry.importer.onnx = False
    for fill in (1, 2, 3):
        await registry.register("m", {"w": tensor(fill)})


async def test_new_content_is_the_next_version(registry: Registry) -> None:
    await three_versions(registry)
    known = await registry.catalogue.model(DOMAIN, M)
    assert [v.version for v in known.versions] == [1, 2, 3]
    assert known.model.latest == 3


async def test_number_of_a_deleted_version_is_never_given_again(registry: Registry) -> None:
    await three_versions(registry)
    await registry.catalogue.delete(DOMAIN, M, V3)
    assert (await registry.catalogue.model(DOMAIN, M)).model.latest == 2
    await registry.register("m", {"w": tensor(4)})
    known = await registry.catalogue.model(DOMAIN, M)
    assert ([v.version for v in known.versions], known.model.latest) == ([1, 2, 4], 4)


async def test_alias_answers_as_its_model(registry: Registry) -> None:
    await three_versions(registry)
    await registry.catalogue.set_alias(DOMAIN, ALIAS, M, None)
    known = await registry.catalogue.model(DOMAIN, ALIAS)
    assert (known.model.name, [a.alias for a in known.aliases]) == ("m", ["live"])


async def test_models_and_aliases_share_one_namespace(registry: Registry) -> None:
    await three_versions(registry)
    with pytest.raises(AlreadyExists, match="'m' is a model"):
        await registry.catalogue.set_alias(DOMAIN, M, M, None)
    await registry.catalogue.set_alias(DOMAIN, ALIAS, M, None)
    with pytest.raises(AlreadyExists, match="'live' is an alias"):
        await registry.register("live", {"w": tensor(9)})
    assert registry.importer.runs == registry.importer.runs[:3]  # refused before any import


async def test_alias_needs_something_to_stand_for(registry: Registry) -> None:
    await three_versions(registry)
    with pytest.raises(ModelNotFound, match="'n'"):
        await registry.catalogue.set_alias(DOMAIN, ALIAS, ModelName("n"), None)
    with pytest.raises(VersionNotFound, match="it has 1, 2, 3"):
        await registry.catalogue.set_alias(DOMAIN, ALIAS, M, VersionNumber(7))
    await registry.catalogue.set_alias(DOMAIN, ALIAS, M, V1)
    with pytest.raises(InvalidInput, match="stands for a model"):
        await registry.catalogue.set_alias(DOMAIN, ModelName("other"), ALIAS, None)


async def test_alias_blocks_deletion_until_it_moves(registry: Registry) -> None:
    await three_versions(registry)
    await registry.catalogue.set_alias(DOMAIN, ALIAS, M, V1)
    for version in (V1, None):
        with pytest.raises(FailedPrecondition, match="live"):
            await registry.catalogue.delete(DOMAIN, M, version)
    assert len((await registry.catalogue.model(DOMAIN, M)).versions) == 3
    await registry.catalogue.set_alias(DOMAIN, ALIAS, M, V2)
    await registry.catalogue.delete(DOMAIN, M, V1)
    assert [v.version for v in (await registry.catalogue.model(DOMAIN, M)).versions] == [2, 3]


async def test_alias_that_is_set_while_its_version_is_deleted_wins_or_fails(registry: Registry) -> None:
    for fill in range(8):
        registry.importer.onnx = False
        await registry.register("m", {"w": tensor(fill + 1)})
        newest = (await registry.catalogue.model(DOMAIN, M)).model.latest
        results = await asyncio.gather(
            registry.catalogue.set_alias(DOMAIN, ALIAS, M, newest), registry.catalogue.delete(DOMAIN, M, newest), return_exceptions=True
        )
        alias = {a.version for a in await registry.catalogue.aliases(DOMAIN)}
        versions = {v.version for v in await registry.catalogue.versions(DOMAIN)}
        assert alias <= versions, results
        if alias:
            await registry.catalogue.delete_alias(DOMAIN, ALIAS)


async def test_deleting_all_frees_the_name_and_leaves_no_record(registry: Registry) -> None:
    before = {item.key for item in (await registry.coordinator.list(keys.domain(DOMAIN))).items}
    await three_versions(registry)
    removed = await registry.catalogue.delete(DOMAIN, M, None)
    assert len(removed) == 9  # three versions, two variants each
    assert {item.key for item in (await registry.coordinator.list(keys.domain(DOMAIN))).items} == before
    await registry.catalogue.check_name_free_for_model(DOMAIN, M)


async def test_deleting_what_is_not_there(registry: Registry) -> None:
    await three_versions(registry)
    await registry.catalogue.set_alias(DOMAIN, ALIAS, M, None)
    with pytest.raises(ModelNotFound):
        await registry.catalogue.delete(DOMAIN, ModelName("n"), None)
    with pytest.raises(VersionNotFound, match="no version 9"):
        await registry.catalogue.delete(DOMAIN, M, VersionNumber(9))
    with pytest.raises(FailedPrecondition, match="'live' is an alias"):
        await registry.catalogue.delete(DOMAIN, ALIAS, None)
    with pytest.raises(NotFound, match="alias 'n'"):
        await registry.catalogue.delete_alias(DOMAIN, ModelName("n"))
    with pytest.raises(FailedPrecondition, match="'m' is a model"):
        await registry.catalogue.delete_alias(DOMAIN, M)
