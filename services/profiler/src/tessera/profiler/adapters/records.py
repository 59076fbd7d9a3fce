"""etcd's records, read at the moment they are needed: a run is rare and must see what was just registered."""

from __future__ import annotations

from typing import TypeVar

from tessera.coord import keys
from tessera.coord.interface import Compare, Coordinator, CreateRevisionIs, ModRevisionIs, Put
from tessera.coord.records import decode, encode
from tessera.domain.errors import Conflict, ModelNotFound, NotFound, VersionNotFound
from tessera.domain.ids import ModelName, ProfileClass, TrustDomain, VariantKey, VersionKey, VersionNumber, checked_name
from tessera.domain.records import AliasRecord, ModelRecord, NodeRecord, ProfileRecord, VariantRecord, VersionRecord

T = TypeVar("T")


class EtcdRecords:
    def __init__(self, coordinator: Coordinator) -> None:
        self._coordinator = coordinator

    async def resolve(self, trust_domain: TrustDomain, name: str, version: int) -> VersionKey:
        model = ModelName(checked_name("model", name))
        alias = await self._get(AliasRecord, keys.alias(trust_domain, model))
        if alias is not None:
            model = alias.model
        found = await self._get(ModelRecord, keys.model(trust_domain, model))
        if found is None:
            raise ModelNotFound(name)
        number = version or (alias.version if alias is not None and alias.version is not None else found.latest)
        key = VersionKey(trust_domain, model, VersionNumber(number))
        if await self._get(VersionRecord, keys.version(key)) is None:
            raise VersionNotFound(model, number)
        return key

    async def model(self, version: VersionKey) -> ModelRecord | None:
        return await self._get(ModelRecord, keys.model(version.trust_domain, version.model))

    async def variants(self, version: VersionKey) -> list[VariantRecord]:
        return await self._list(VariantRecord, keys.variants_of(version))

    async def nodes(self, trust_domain: TrustDomain) -> list[NodeRecord]:
        return await self._list(NodeRecord, keys.nodes(trust_domain))

    async def profile(self, variant: VariantKey, profile_class: str) -> ProfileRecord | None:
        return await self._get(ProfileRecord, keys.profile(variant, ProfileClass(profile_class)))

    async def profiles(self, version: VersionKey) -> list[ProfileRecord]:
        records = await self._list(ProfileRecord, keys.profiles(version.trust_domain))
        return [record for record in records if record.variant.version_key == version]

    async def store(self, profile: ProfileRecord, based_on: ProfileRecord | None) -> None:
        key = keys.profile(profile.variant, profile.profile_class)
        found = await self._coordinator.get(key)
        if (None if found is None else decode(ProfileRecord, found.value)) != based_on:
            raise Conflict(f"profile of {profile.variant} on {profile.profile_class} was changed meanwhile")
        variant_key = keys.variant(profile.variant)
        variant = await self._coordinator.get(variant_key)
        if variant is None:
            raise NotFound(f"variant {profile.variant} was deleted while it was measured")
        # The variant must still be the same one: a profile of a deleted variant would stay for ever.
        compares: list[Compare] = [
            ModRevisionIs(key, found.mod_revision if found is not None else 0),
            CreateRevisionIs(variant_key, variant.create_revision),
        ]
        await self._coordinator.transact(compares, [Put(key, encode(profile))])

    async def _get(self, record_type: type[T], key: str) -> T | None:
        found = await self._coordinator.get(key)
        return None if found is None else decode(record_type, found.value)

    async def _list(self, record_type: type[T], prefix: str) -> list[T]:
        listing = await self._coordinator.list(prefix)
        return [decode(record_type, item.value) for item in listing.items]
