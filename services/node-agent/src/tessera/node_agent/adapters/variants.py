"""The variant records of this node's trust domain, as the sharing ledger wants them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from tessera.coord import keys
from tessera.coord.interface import Coordinator
from tessera.coord.view import View
from tessera.domain.ids import Digest, TrustDomain
from tessera.domain.records import VariantRecord
from tessera.program import Stop


class EtcdVariants:
    """Implements `Variants`."""

    def __init__(self, coordinator: Coordinator, trust_domain: TrustDomain) -> None:
        self._view: View[VariantRecord] = View(coordinator, keys.variants(trust_domain), VariantRecord)

    @property
    def synced(self) -> bool:
        return self._view.synced.is_set()

    def on_change(self, callback: Callable[[str, Digest | None], None]) -> None:
        self._view.on_change(lambda key, old, new: callback(key, new.artifact if new is not None else None))

    async def watch(self, stop: Stop) -> None:
        async with asyncio.TaskGroup() as group:
            follower = group.create_task(self._view.run())
            await stop.wait()
            follower.cancel()
