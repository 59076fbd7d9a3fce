"""etcd's records, read at the moment they are needed: a run is rare and must see what was just registered."""

from __future__ import annotations

from tessera.coord import keys
from tessera.coord.interface import Compare, Coordinator, CreateRevisionIs, ModRevisionIs, Put
from tessera.coord.reading import read_record, read_records, read_version
from tessera.coord.records import encode
from tessera.domain.errors import Conflict, NotFound, VersionNotFound
from tessera.domain.ids import ModelName, ProfileClass, TrustDomain, VariantKey, VersionKey, VersionNumber, checked_name
from tessera.domain.records import MetaCostRecord, ModelRecord, NodeRecord, ProfileRecord, VariantRecord
from tessera.domain.transformation import ATEN


class EtcdRecords:
    def __init__(self, coordinator: Coordinator) -> None:
        self._coordinator = coordinator

    async def resolve(self, trust_domain: TrustDomain, name: str, version: int) -> VersionKey:
        model = ModelName(checked_name("model", name))
        key = await read_version(self._coordinator, trust_domain, model, VersionNumber(version) or None)
        if await self._coordinator.get(keys.version(key)) is None:
            raise VersionNotFound(key.model, key.version)
        return key

    async def model(self, version: VersionKey) -> ModelRecord | None:
        return (await read_record(self._coordinator, ModelRecord, keys.model(version.trust_domain, version.model)))[0]

    async def variants(self, version: VersionKey) -> list[VariantRecord]:
        return await read_records(self._coordinator, VariantRecord, keys.variants_of(version))

    async def nodes(self, trust_domain: TrustDomain) -> list[NodeRecord]:
        return await read_records(self._coordinator, NodeRecord, keys.nodes(trust_domain))

    async def profile(self, variant: VariantKey, profile_class: str) -> ProfileRecord | None:
        return (await read_record(self._coordinator, ProfileRecord, keys.profile(variant, ProfileClass(profile_class))))[0]

    async def profiles(self, version: VersionKey) -> list[ProfileRecord]:
        return await read_records(self._coordinator, ProfileRecord, keys.profiles_of(version))

    async def meta_costs(self, trust_domain: TrustDomain, profile_class: ProfileClass) -> MetaCostRecord | None:
        return (await read_record(self._coordinator, MetaCostRecord, keys.meta_cost(trust_domain, ATEN, profile_class)))[0]

    async def all_meta_costs(self, trust_domain: TrustDomain) -> list[MetaCostRecord]:
        return await read_records(self._coordinator, MetaCostRecord, keys.meta_costs(trust_domain))

    async def store_meta_costs(self, record: MetaCostRecord) -> None:
        key = keys.meta_cost(record.trust_domain, record.dialect, record.profile_class)
        found = await self._coordinator.get(key)
        await self._coordinator.transact([ModRevisionIs(key, 0 if found is None else found.mod_revision)], [Put(key, encode(record))])

    async def store(self, profile: ProfileRecord, based_on: ProfileRecord | None) -> None:
        key = keys.profile(profile.variant, profile.profile_class)
        found, revision = await read_record(self._coordinator, ProfileRecord, key)
        if found != based_on:
            raise Conflict(f"profile of {profile.variant} on {profile.profile_class} was changed meanwhile")
        variant_key = keys.variant(profile.variant)
        variant = await self._coordinator.get(variant_key)
        if variant is None:
            raise NotFound(f"variant {profile.variant} was deleted while it was measured")
        # The variant must still be the same one: a profile of a deleted variant would stay for ever.
        compares: list[Compare] = [
            ModRevisionIs(key, revision),
            CreateRevisionIs(variant_key, variant.create_revision),
        ]
        await self._coordinator.transact(compares, [Put(key, encode(profile))])
