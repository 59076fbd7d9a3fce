"""Records read from etcd at the moment they are needed: by who asks rarely and must see what was just written. Others keep a `View`."""

from __future__ import annotations

from typing import TypeVar

from tessera.coord import keys
from tessera.coord.interface import Coordinator
from tessera.coord.records import decode
from tessera.domain.errors import ModelNotFound
from tessera.domain.ids import ModelName, TrustDomain, VersionKey, VersionNumber
from tessera.domain.records import AliasRecord, ModelRecord

T = TypeVar("T")


async def read_record(coordinator: Coordinator, record_type: type[T], key: str) -> tuple[T | None, int]:
    """The record and its revision to compare with; (None, 0): there is none. Raises: Unavailable, DataCorrupted."""
    found = await coordinator.get(key)
    return (None, 0) if found is None else (decode(record_type, found.value), found.mod_revision)


async def read_records(coordinator: Coordinator, record_type: type[T], prefix: str) -> list[T]:
    """All records below the prefix, in order of their keys. Raises: Unavailable, DataCorrupted."""
    return [decode(record_type, item.value) for item in (await coordinator.list(prefix)).items]


async def read_named(coordinator: Coordinator, trust_domain: TrustDomain, name: ModelName) -> tuple[ModelRecord, VersionNumber | None]:
    """The model that a name or an alias stands for now, and the version that the alias names (None: none, or it is no alias).

    Raises: ModelNotFound, Unavailable, DataCorrupted.
    """
    alias, _ = await read_record(coordinator, AliasRecord, keys.alias(trust_domain, name))
    found, _ = await read_record(coordinator, ModelRecord, keys.model(trust_domain, name if alias is None else alias.model))
    if found is None:
        raise ModelNotFound(name)
    return found, None if alias is None else alias.version


async def read_version(coordinator: Coordinator, trust_domain: TrustDomain, name: ModelName, version: VersionNumber | None) -> VersionKey:
    """What a model or an alias stands for now; without a `version` the alias's own, or the newest, whether it can answer or not. Nobody
    looks whether it exists.

    Raises: ModelNotFound, Unavailable, DataCorrupted.
    """
    model, named = await read_named(coordinator, trust_domain, name)
    return VersionKey(trust_domain, model.name, version or named or model.latest)
