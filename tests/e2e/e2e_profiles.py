"""Profiles that say less than a variant can: a load is beyond its peak then, and leaves the machine room for what follows from that."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from tessera.coord import keys
from tessera.coord.etcd import EtcdCoordinator
from tessera.coord.interface import ModRevisionIs, Put
from tessera.coord.records import decode, encode
from tessera.domain.ids import DEFAULT_TRUST_DOMAIN, VariantKey
from tessera.domain.instance import StartPath
from tessera.domain.records import NodeRecord
from tessera.testing.builders import a_latency_row, a_load_cost, a_profile, a_variant_key


def write_profile(etcd: str, model: str, variant: str, peak_per_s: float) -> None:
    """That a variant of the first version answers so many items a second, in batches of one, on the nodes that there are (of one class)."""

    key, ms = a_variant_key(model, variant=variant), 1000 / peak_per_s
    _write(etcd, key, lambda node: {"rows": (a_latency_row(1, node.runtime_threads, ms, mean_ms=ms),)})


def write_start_cost(etcd: str, model: str, variant: str, load_ms: float) -> None:
    """That binding a variant of the first version, or forking for it, takes so long on the nodes that there are (of one class)."""
    loads = tuple(a_load_cost(path, load_ms) for path in (StartPath.BIND, StartPath.FORK))
    _write(etcd, a_variant_key(model, variant=variant), lambda node: {"load": loads})


def _write(etcd: str, key: VariantKey, fields: Callable[[NodeRecord], dict[str, Any]]) -> None:
    async def write() -> None:
        coordinator = EtcdCoordinator([etcd])
        try:
            node = decode(NodeRecord, (await coordinator.list(keys.nodes(DEFAULT_TRUST_DOMAIN))).items[0].value)
            where = keys.profile(key, node.profile_class)
            record = a_profile(key, profile_class=node.profile_class, **fields(node))
            await coordinator.transact([ModRevisionIs(where, 0)], [Put(where, encode(record))])
        finally:
            await coordinator.close()

    asyncio.run(write())
