"""Records in etcd: numbers, names, deletion."""

from __future__ import annotations

import pytest
from registry_world import DOMAIN, Registry, tensor

from tessera.coord import keys
from tessera.coord.interface import Listing, ModRevisionIs, Put
from tessera.domain.errors import FailedPrecondition, ModelNotFound, NotFound, VersionNotFound
from tessera.domain.ids import ModelName, TrustDomain, VersionNumber

M, ALIAS = ModelName("m"), ModelName("live")
V3 = VersionNumber(3)


async def test_new_content_is_the_next_version(registry: Registry) -> None:
    await registry.versions("m", 3)
    known = await registry.catalogue.model(DOMAIN, M)
    assert [v.version for v in known.versions] == [1, 2, 3]
    assert known.model.latest == 3


async def test_number_of_a_deleted_version_is_never_given_again(registry: Registry) -> None:
    await registry.versions("m", 3)
    await registry.catalogue.delete(DOMAIN, M, V3)
    assert (await registry.catalogue.model(DOMAIN, M)).model.latest == 2
    await registry.register("m", {"w": tensor(4)})
    known = await registry.catalogue.model(DOMAIN, M)
    assert ([v.version for v in known.versions], known.model.latest) == ([1, 2, 4], 4)


async def test_deleting_all_frees_the_name_and_leaves_no_record(registry: Registry) -> None:
    before = {item.key for item in (await registry.coordinator.list(keys.domain(DOMAIN))).items}
    await registry.versions("m", 3)
    removed = await registry.catalogue.delete(DOMAIN, M, None)
    assert len(removed) == 9  # three versions, two variants each
    assert {item.key for item in (await registry.coordinator.list(keys.domain(DOMAIN))).items} == before
    await registry.catalogue.check_name_free_for_model(DOMAIN, M)


async def test_deleting_what_is_not_there(registry: Registry) -> None:
    await registry.versions("m", 3)
    await registry.aliases.set(DOMAIN, ALIAS, M, None)
    with pytest.raises(ModelNotFound):
        await registry.catalogue.delete(DOMAIN, ModelName("n"), None)
    with pytest.raises(VersionNotFound, match="no version 9"):
        await registry.catalogue.delete(DOMAIN, M, VersionNumber(9))
    with pytest.raises(FailedPrecondition, match="'live' is an alias"):
        await registry.catalogue.delete(DOMAIN, ALIAS, None)
    with pytest.raises(NotFound, match="alias 'n'"):
        await registry.aliases.delete(DOMAIN, ModelName("n"))
    with pytest.raises(FailedPrecondition, match="'m' is a model"):
        await registry.aliases.delete(DOMAIN, M)


async def test_trust_domains_are_known_by_their_keys_alone(registry: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who only wants the names does not have every record of every domain sent."""
    await registry.versions("m", 1)
    other = TrustDomain("another")
    await registry.coordinator.transact([ModRevisionIs(keys.model(other, M), 0)], [Put(keys.model(other, M), b"not looked at")])

    async def refused(prefix: str) -> Listing:
        raise AssertionError(f"{prefix} was read with its values")

    monkeypatch.setattr(registry.coordinator, "list", refused)
    assert await registry.catalogue.domains() == sorted([DOMAIN, other])
