"""Profiles that say less than a variant can: a load is beyond its peak then, and leaves the machine room for what follows from that."""

from __future__ import annotations

import asyncio

from tessera.coord import keys
from tessera.coord.etcd import EtcdCoordinator
from tessera.coord.interface import ModRevisionIs, Put
from tessera.coord.records import decode, encode
from tessera.domain.ids import DEFAULT_TRUST_DOMAIN
from tessera.domain.records import NodeRecord
from tessera.testing.builders import a_latency_row, a_profile, a_variant_key


def write_profile(etcd: str, model: str, variant: str, peak_per_s: float) -> None:
    """That a variant of the first version answers so many items a second, in batches of one, on the nodes that there are (of one class)."""

    async def write() -> None:
        coordinator = EtcdCoordinator([etcd])
        try:
            node = decode(NodeRecord, (await coordinator.list(keys.nodes(DEFAULT_TRUST_DOMAIN))).items[0].value)
            key, ms = a_variant_key(model, variant=variant), 1000 / peak_per_s
            rows = (a_latency_row(1, node.runtime_threads, ms, mean_ms=ms),)
            where = keys.profile(key, node.profile_class)
            record = a_profile(key, profile_class=node.profile_class, rows=rows)
            await coordinator.transact([ModRevisionIs(where, 0)], [Put(where, encode(record))])
        finally:
            await coordinator.close()

    asyncio.run(write())
