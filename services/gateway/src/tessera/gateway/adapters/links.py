"""Connections to runtimes: one per runtime, opened when a runtime is first seen, and again when it breaks."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from dataclasses import dataclass, field

from tessera.clock import Clock
from tessera.domain.errors import FailedPrecondition, TesseraError, Unavailable, error_of
from tessera.domain.ids import RuntimeId
from tessera.frames import FrameClient
from tessera.gateway.core.slots import InstanceSlot
from tessera.program import Tasks
from tessera.rpc import MESSAGE_OVERHEAD_BYTES
from tessera.telemetry import get_logger

RECONNECT_PAUSES_S = (0.02, 0.1, 0.5, 1.0, 2.0, 5.0, 10.0)
"""After these the runtime is left alone until it is reported again or a request asks for it."""

_log = get_logger("tessera.gateway")


@dataclass(slots=True, eq=False)
class _Link:
    """`wanting`: how many open it or wait for who does. `failures` of opening it; kind and words of the last one."""

    client: FrameClient | None = None
    opening: asyncio.Lock = field(default_factory=asyncio.Lock)
    wanting: int = 0
    failures: int = 0
    failure: tuple[str, str] = ("", "")


class FrameLinks:
    """`RuntimeLinks` over Unix sockets of this host and the relays of others.

    Args:
        host_id: runtimes with this host id are reached by their Unix socket, where it is seen from here.
        max_message_bytes: as clients are told it; names and parameters may come on top, as over gRPC.
        on_change: called with (runtime id, connected) when a connection is lost or made.
        wanted: whether a runtime still holds an instance we know; a connection that nobody wants is not made again.
    """

    def __init__(
        self,
        host_id: str,
        tasks: Tasks,
        clock: Clock,
        *,
        max_message_bytes: int,
        on_change: Callable[[RuntimeId, bool], None],
        wanted: Callable[[RuntimeId], bool],
    ) -> None:
        self._host_id = host_id
        self._tasks = tasks
        self._clock = clock
        self._max_message_bytes = max_message_bytes + MESSAGE_OVERHEAD_BYTES
        self._on_change = on_change
        self._wanted = wanted
        self._links: dict[RuntimeId, _Link] = {}

    def connected(self, slot: InstanceSlot) -> FrameClient | None:
        link = self._links.get(slot.runtime_id)
        client = link.client if link is not None else None
        return client if client is not None and not client.closed and not client.draining else None

    async def connect(self, slot: InstanceSlot) -> FrameClient:
        link = self._links.setdefault(slot.runtime_id, _Link())
        failures = link.failures
        link.wanting += 1
        try:
            async with link.opening:
                known = self.connected(slot)
                if known is not None:
                    return known
                if link.failures > failures:
                    # Somebody else's try, which was waited for: one's own could take as long again.
                    raise error_of(*link.failure)
                try:
                    link.client = client = await self._open(slot)
                except TesseraError as error:
                    link.failures += 1
                    link.failure = error.kind, error.message
                    raise
        finally:
            link.wanting -= 1
            self._forget(slot.runtime_id, link)
        self._tasks.start(f"link {slot.runtime_id}", self._watch(slot, link, client))
        self._on_change(slot.runtime_id, True)
        return client

    def prepare(self, slot: InstanceSlot) -> None:
        """Opens the connection in the background, so that the first request finds it."""
        if self.connected(slot) is None:
            self._tasks.start(f"connect {slot.runtime_id}", self._try(slot))

    def close(self) -> None:
        for link in self._links.values():
            if link.client is not None:
                link.client.close()
        self._links.clear()

    def _forget(self, runtime_id: RuntimeId, link: _Link) -> None:
        """Drops a link that has no connection and that nobody waits for."""
        if link.client is None and not link.wanting and self._links.get(runtime_id) is link:
            del self._links[runtime_id]

    async def _open(self, slot: InstanceSlot) -> FrameClient:
        """Raises: Unavailable, also where the runtime takes no new requests; FailedPrecondition."""
        client = await self._reach(slot)
        if client.draining:
            client.close()
            raise Unavailable(f"runtime {slot.runtime_id} takes no new requests")
        return client

    async def _reach(self, slot: InstanceSlot) -> FrameClient:
        target, limit = str(slot.runtime_id), self._max_message_bytes
        # Containers of one machine have one host id and not one view of its files: where the socket is not seen there is the relay.
        if slot.host_id == self._host_id and slot.unix_path and (not slot.relay_address or os.path.exists(slot.unix_path)):
            try:
                return await FrameClient.connect_unix(slot.unix_path, target=target, max_message_bytes=limit)
            except Unavailable as error:
                if not isinstance(error.__cause__, PermissionError) or not slot.relay_address:
                    raise  # else another user's: the relay may enter there
        host, _, port = slot.relay_address.rpartition(":")
        if not host or not port.isdigit():
            raise FailedPrecondition(f"runtime {target} on host {slot.host_id!r} names no relay: {slot.relay_address!r}")
        return await FrameClient.connect_tcp(host.strip("[]"), int(port), target=target, max_message_bytes=limit)

    async def _try(self, slot: InstanceSlot) -> None:
        try:
            await self.connect(slot)
        except TesseraError as error:
            _log.info("runtime not connected", runtime=slot.runtime_id, reason=error.message)

    async def _watch(self, slot: InstanceSlot, link: _Link, client: FrameClient) -> None:
        """Waits for the end of a connection, says so, and tries to come back as long as somebody wants the runtime."""
        await client.wait_closed()
        if link.client is not client:
            return  # another one has taken its place, which is watched as well
        link.client = None
        self._forget(slot.runtime_id, link)
        self._on_change(slot.runtime_id, False)
        for pause_s in RECONNECT_PAUSES_S:
            newer = self._links.get(slot.runtime_id)
            if not self._wanted(slot.runtime_id) or (newer is not None and newer.client is not None):
                break
            await self._clock.sleep(pause_s)
            try:
                await self.connect(slot)
                return
            except TesseraError as error:
                _log.debug("runtime not reconnected", runtime=slot.runtime_id, reason=error.message)
