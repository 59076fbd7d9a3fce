"""The real `Coordinator`: etcd (3.4 or newer), one or several endpoints."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from typing import Any

from aetcd import rpc

from tessera.clock import Clock, SystemClock
from tessera.coord import _election, _watch
from tessera.coord._client import HAS_LEADER, Client, Connection
from tessera.coord._rules import check_key, check_transaction, granted_ttl_s
from tessera.coord._session import KeptSession
from tessera.coord.interface import Compare, KeyValue, Leadership, LeaseLost, Listing, ModRevisionIs, Put, Session, WatchEvent, Write
from tessera.domain.errors import Conflict, Unavailable

DEFAULT_TIMEOUT_S = 5.0


class EtcdCoordinator:
    """`Coordinator` of the interface.

    Args:
        endpoints: HOST:PORT or http://HOST:PORT each; the first that answers is used until it fails.
        timeout_s: the budget of each operation, all endpoints tried.
        connect_timeout_s: how long one endpoint may take to connect before the next is tried.
        progress_s: how often an idle watch asks the server for a sign of life.

    Raises:
        InvalidInput: a malformed endpoint, or none.
    """

    def __init__(
        self,
        endpoints: Sequence[str],
        *,
        clock: Clock | None = None,
        timeout_s: float = DEFAULT_TIMEOUT_S,
        connect_timeout_s: float = 1.0,
        progress_s: float = 5.0,
    ) -> None:
        self._clock = clock or SystemClock()
        self._client = Client(endpoints, self._clock, timeout_s=timeout_s, connect_timeout_s=connect_timeout_s)
        self._progress_s = progress_s
        self._sessions: set[KeptSession] = set()
        self._cluster_id: int | None = None

    async def get(self, key: str) -> KeyValue | None:
        check_key("key", key)
        response = await self._range(rpc.RangeRequest(key=key.encode()))
        return _watch.key_value(response.kvs[0]) if response.kvs else None

    async def list(self, prefix: str) -> Listing:
        check_key("prefix", prefix)
        response = await self._range(rpc.RangeRequest(key=prefix.encode(), range_end=prefix_end(prefix)))
        return Listing(response.header.revision, tuple(_watch.key_value(kv) for kv in response.kvs))

    async def list_keys(self, prefix: str) -> tuple[str, ...]:
        check_key("prefix", prefix)
        response = await self._range(rpc.RangeRequest(key=prefix.encode(), range_end=prefix_end(prefix), keys_only=True))
        return tuple(kv.key.decode() for kv in response.kvs)

    async def transact(self, compares: Sequence[Compare], writes: Sequence[Write]) -> int:
        check_transaction(compares, writes)
        request = rpc.TxnRequest(compare=[_compare(compare) for compare in compares], success=[_write(write) for write in writes])

        async def call(connection: Connection, timeout_s: float) -> Any:
            return await connection.kv.Txn(request, timeout=timeout_s)

        response = await self._client.write(call)
        if not response.succeeded:
            raise Conflict(f"{', '.join(compare.key for compare in compares)}: changed since it was read")
        return int(response.header.revision)

    def watch(self, prefix: str) -> AsyncIterator[WatchEvent]:
        check_key("prefix", prefix)
        return _watch.watch(self._client, prefix.encode(), prefix_end(prefix), lambda: self.list(prefix), self._progress_s)

    async def session(self, ttl_s: float) -> Session:
        request = rpc.LeaseGrantRequest(TTL=granted_ttl_s(ttl_s))

        async def grant(connection: Connection, timeout_s: float) -> Any:
            return await connection.lease.LeaseGrant(request, timeout=timeout_s)

        asked_s = self._clock.monotonic_s()
        # Sent again after a loss: a grant that was applied unseen has no keys and runs out by itself.
        response = await self._client.read(grant)
        lease_id = int(response.ID)
        session = KeptSession(
            lease_id,
            float(response.TTL),
            clock=self._clock,
            asked_s=asked_s,
            renew=lambda timeout_s: self._renew(lease_id, timeout_s),
            revoke=lambda: self._revoke(lease_id),
            forget=self._sessions.discard,
        )
        self._sessions.add(session)
        return session

    async def campaign(self, election: str, session: Session, value: bytes) -> Leadership:
        check_key("election", election)
        return await _election.campaign(self, self._clock, election, session, value)

    async def leader(self, election: str) -> KeyValue | None:
        return _election.oldest(await self.list(election))

    async def cluster_id(self) -> int:
        if self._cluster_id is None:
            await self._range(rpc.RangeRequest(key=b"\0", limit=1, keys_only=True))
        assert self._cluster_id is not None
        return self._cluster_id

    async def close(self) -> None:
        """Ends renewals and channels. Leases that were not closed run out by themselves."""
        for session in tuple(self._sessions):
            await session.stop()
        await self._client.close()

    async def _range(self, request: Any) -> Any:
        async def call(connection: Connection, timeout_s: float) -> Any:
            return await connection.kv.Range(request, timeout=timeout_s)

        response = await self._client.read(call)
        self._cluster_id = int(response.header.cluster_id)
        return response

    async def _renew(self, lease_id: int, timeout_s: float) -> float:
        """Remaining seconds, 0 when the lease is gone. Raises: Unavailable within `timeout_s`."""

        async def requests() -> AsyncIterator[Any]:
            yield rpc.LeaseKeepAliveRequest(ID=lease_id)

        async def call(connection: Connection, attempt_s: float) -> float:
            stream = connection.lease.LeaseKeepAlive(requests(), timeout=min(attempt_s, timeout_s), metadata=HAS_LEADER)
            try:
                async for response in stream:
                    return float(response.TTL)
            finally:
                stream.cancel()
            raise Unavailable(f"etcd {connection.address} ended the renewal")

        return float(await self._client.read(call, timeout_s))

    async def _revoke(self, lease_id: int) -> None:
        async def call(connection: Connection, timeout_s: float) -> Any:
            return await connection.lease.LeaseRevoke(rpc.LeaseRevokeRequest(ID=lease_id), timeout=timeout_s)

        try:
            await self._client.read(call)
        except LeaseLost:
            pass  # gone already, by time or by an earlier try


def prefix_end(prefix: str) -> bytes:
    """The first key after all keys with this prefix: etcd's `range_end`."""
    encoded = bytearray(prefix.encode())
    encoded[-1] += 1  # a byte of UTF-8 is never 0xff
    return bytes(encoded)


def _compare(compare: Compare) -> Any:
    if isinstance(compare, ModRevisionIs):
        return rpc.Compare(target=rpc.Compare.MOD, result=rpc.Compare.EQUAL, key=compare.key.encode(), mod_revision=compare.revision)
    return rpc.Compare(target=rpc.Compare.CREATE, result=rpc.Compare.EQUAL, key=compare.key.encode(), create_revision=compare.revision)


def _write(write: Write) -> Any:
    if isinstance(write, Put):
        return rpc.RequestOp(request_put=rpc.PutRequest(key=write.key.encode(), value=write.value, lease=write.lease_id))
    return rpc.RequestOp(request_delete_range=rpc.DeleteRangeRequest(key=write.key.encode()))
