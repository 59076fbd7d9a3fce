"""List, then watch from the next revision; again after every loss. One stream per watch.

Guarantee: the events between two Resets are complete and in revision order; a Reset is exact at its revision. How a dead server is
noticed: a request for a progress report goes out every few seconds on the stream, and silence for longer than that plus the
budget of a call ends it. (The reports are proof of life only: older etcd servers send them ahead of events, so their revision is not used.)
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import grpc
import structlog
from aetcd import rpc

from tessera.coord._client import HAS_LEADER, Client, translate
from tessera.coord.interface import Changed, KeyValue, Listing, Removed, Reset, WatchEvent
from tessera.domain.errors import TesseraError, Unavailable

_log = structlog.get_logger(__name__)

_FIRST_BACKOFF_S = 0.1
_LAST_BACKOFF_S = 2.0


class _Compacted(Exception):
    """The revisions after our listing are gone: list again at once."""


async def watch(
    client: Client, prefix: bytes, range_end: bytes, listing_of: Callable[[], Awaitable[Listing]], progress_s: float
) -> AsyncIterator[WatchEvent]:
    """Endless; see `Coordinator.watch`. Ends with Unavailable only when the client is closed."""
    backoff_s = _FIRST_BACKOFF_S
    while True:
        try:
            listing = await listing_of()
            yield Reset(listing)
            async for event in _stream(client, prefix, range_end, listing.revision, progress_s):
                backoff_s = _FIRST_BACKOFF_S
                if event is not None:
                    yield event
        except _Compacted:
            _log.info("watch starts over", prefix=prefix.decode(), reason="compacted")
            continue
        except TesseraError as error:
            if client.closed:
                raise
            _log.info("watch starts over", prefix=prefix.decode(), reason=str(error), after_s=backoff_s)
        await client.clock.sleep(backoff_s)
        backoff_s = min(backoff_s * 2, _LAST_BACKOFF_S)


async def _stream(client: Client, prefix: bytes, range_end: bytes, revision: int, progress_s: float) -> AsyncIterator[WatchEvent | None]:
    """Events after `revision`; None is proof of life. Raises: _Compacted; TesseraError on every other end."""
    connection = await client.connection(client.clock.monotonic_s() + client.timeout_s)
    # From `revision` itself, whose events are dropped below: were the next one compacted, etcd would start there and leave out its deletes.
    create = rpc.WatchRequest(create_request=rpc.WatchCreateRequest(key=prefix, range_end=range_end, start_revision=revision))
    stop = asyncio.Event()
    call = connection.watch.Watch(_requests(create, stop, progress_s), metadata=HAS_LEADER)
    silence_s = progress_s + client.timeout_s
    try:
        while True:
            try:
                async with asyncio.timeout(silence_s):
                    response = await client.unless_closed(call.read())
            except TimeoutError:
                raise Unavailable(f"etcd {connection.address} was silent for {silence_s:g} s") from None
            if response is grpc.aio.EOF:
                raise Unavailable(f"etcd {connection.address} ended the watch")
            if response.compact_revision:
                raise _Compacted
            if response.canceled:
                raise Unavailable(f"etcd {connection.address} cancelled the watch: {response.cancel_reason}")
            if not response.events:
                yield None
            for event in response.events:
                if event.kv.mod_revision > revision:
                    yield _event(event)
    except grpc.aio.AioRpcError as error:
        client.failed(connection)
        raise translate(error) from error
    except Unavailable:
        client.failed(connection)
        raise
    finally:
        stop.set()
        call.cancel()


async def _requests(create: Any, stop: asyncio.Event, progress_s: float) -> AsyncIterator[Any]:
    yield create
    while True:
        try:
            async with asyncio.timeout(progress_s):
                await stop.wait()
            return
        except TimeoutError:
            yield rpc.WatchRequest(progress_request=rpc.WatchProgressRequest())


def _event(event: Any) -> WatchEvent:
    if event.type == event.DELETE:
        return Removed(event.kv.key.decode(), event.kv.mod_revision)
    return Changed(key_value(event.kv))


def key_value(kv: Any) -> KeyValue:
    """An mvccpb.KeyValue in the interface's words."""
    return KeyValue(kv.key.decode(), kv.value, kv.create_revision, kv.mod_revision, kv.lease)
