"""Calls to etcd: which endpoint, how long, what an answer's status means. One HTTP/2 channel per endpoint, opened when first used.

The generated messages and stubs are aetcd's; its client and watcher are not used (docs/adr/0001). Invariants: no call outlives its
budget; a read is tried on the next endpoint while there is budget; a write is sent once, over a channel that is connected, because
after a loss nobody knows whether it was applied.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Final, TypeVar

import grpc
from aetcd import rpc

from tessera.clock import Clock
from tessera.coord.interface import LeaseLost
from tessera.domain.errors import FailedPrecondition, Internal, InvalidInput, ResourceExhausted, TesseraError, Unavailable

T = TypeVar("T")

Endpoint = tuple[str, int]

HAS_LEADER: Final = (("hasleader", "true"),)
"""Asks a member to end a stream when it loses its leader, instead of staying silent in a minority."""

_ROUND_PAUSE_S = 0.1
_CLOSED = "this coordinator is closed"
_OPTIONS: Final[tuple[tuple[str, int], ...]] = (
    ("grpc.enable_http_proxy", 0),
    ("grpc.use_local_subchannel_pool", 1),  # the back-off of one coordinator does not hold up another
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 1000),
    ("grpc.max_reconnect_backoff_ms", 500),
    ("grpc.keepalive_time_ms", 10_000),  # etcd refuses clients that ping more often than every 5 s
    ("grpc.keepalive_timeout_ms", 5_000),
    ("grpc.http2.max_pings_without_data", 0),
    ("grpc.max_receive_message_length", -1),  # a listing is one message
)
_AWAY: Final = frozenset({grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.CANCELLED})


class Connection:
    """The channel to one endpoint, and the stubs on it."""

    def __init__(self, endpoint: Endpoint) -> None:
        host, port = endpoint
        self.address = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        self.channel: grpc.aio.Channel = rpc.insecure_channel(self.address, options=_OPTIONS)
        self.kv: Any = rpc.KVStub(self.channel)
        self.lease: Any = rpc.LeaseStub(self.channel)
        self.watch: Any = rpc.WatchStub(self.channel)

    async def connected(self, clock: Clock, timeout_s: float) -> bool:
        """Whether the channel is ready within `timeout_s`; False at once when the endpoint refuses."""
        deadline_s = clock.monotonic_s() + timeout_s
        while True:
            state = self.channel.get_state(try_to_connect=True)
            if state is grpc.ChannelConnectivity.READY:
                return True
            remaining_s = deadline_s - clock.monotonic_s()
            if state in (grpc.ChannelConnectivity.TRANSIENT_FAILURE, grpc.ChannelConnectivity.SHUTDOWN) or remaining_s <= 0:
                return False
            try:
                async with asyncio.timeout(remaining_s):
                    await self.channel.wait_for_state_change(state)
            except TimeoutError:
                return False


class Client:
    """Connected calls with fail-over between endpoints.

    The endpoint in use changes only when a call on it failed, so that calls of one client follow each other on one member.
    """

    def __init__(self, endpoints: Sequence[str], clock: Clock, *, timeout_s: float, connect_timeout_s: float) -> None:
        if not endpoints:
            raise InvalidInput("endpoints", limit="at least one host:port is required")
        if timeout_s <= 0 or connect_timeout_s <= 0:
            raise InvalidInput("timeout_s", min(timeout_s, connect_timeout_s), "must be positive")
        self._endpoints = [parse_endpoint(text) for text in endpoints]
        self._connections: list[Connection | None] = [None] * len(self._endpoints)
        self._current = 0
        self.closed = False
        self.clock = clock
        self.timeout_s = timeout_s
        self._connect_timeout_s = connect_timeout_s

    @property
    def _names(self) -> str:
        return ", ".join(f"{host}:{port}" for host, port in self._endpoints)

    async def read(self, call: Callable[[Connection, float], Awaitable[Any]], timeout_s: float | None = None) -> Any:
        """Runs a call that may run twice; on a lost or silent endpoint again on the next one.

        Raises:
            Unavailable: no endpoint answered within `timeout_s` (where given, else the client's); the last reason is in the message.
            TesseraError: etcd refused.
        """
        budget_s = self.timeout_s if timeout_s is None else min(timeout_s, self.timeout_s)
        deadline_s = self.clock.monotonic_s() + budget_s
        while True:
            connection = await self.connection(deadline_s)
            remaining_s = deadline_s - self.clock.monotonic_s()
            attempt_s = remaining_s if len(self._endpoints) == 1 else min(remaining_s, budget_s / 2)
            try:
                return await self.unless_closed(call(connection, max(attempt_s, 0.001)))
            except grpc.aio.AioRpcError as error:
                translated = translate(error)
                if not isinstance(translated, Unavailable):
                    raise translated from error
                self.failed(connection)
                if self.clock.monotonic_s() + _ROUND_PAUSE_S >= deadline_s:
                    raise self._nobody(translated.message) from error
                await self.clock.sleep(_ROUND_PAUSE_S)

    async def write(self, call: Callable[[Connection, float], Awaitable[Any]]) -> Any:
        """Runs a call that is sent at most once.

        Raises:
            Unavailable: no endpoint could be reached, or the connection was lost before the answer: then it may have been applied.
            TesseraError: etcd refused.
        """
        deadline_s = self.clock.monotonic_s() + self.timeout_s
        connection = await self.connection(deadline_s)
        try:
            return await self.unless_closed(call(connection, max(deadline_s - self.clock.monotonic_s(), 0.001)))
        except grpc.aio.AioRpcError as error:
            translated = translate(error)
            if isinstance(translated, Unavailable):
                self.failed(connection)
                raise Unavailable(f"etcd {connection.address}: {translated.message}; the write may have been applied") from error
            raise translated from error

    async def connection(self, deadline_s: float) -> Connection:
        """A connected endpoint, the current one first.

        Raises:
            Unavailable: none could be reached before the deadline (on the clock's monotonic scale).
        """
        while True:
            for _ in self._endpoints:
                if self.closed:
                    raise Unavailable(_CLOSED)
                connection = self._at(self._current)
                remaining_s = deadline_s - self.clock.monotonic_s()
                if remaining_s <= 0:
                    raise self._nobody("not connected in time")
                if await connection.connected(self.clock, min(remaining_s, self._connect_timeout_s)):
                    return connection
                self.failed(connection)
            if self.clock.monotonic_s() + _ROUND_PAUSE_S >= deadline_s:
                raise self._nobody("not connected in time")
            await self.clock.sleep(_ROUND_PAUSE_S)

    async def unless_closed(self, answer: Awaitable[T]) -> T:
        """Awaits a call's answer; a closed channel cancels its calls, which must not look as if the caller had been cancelled.

        Raises:
            Unavailable: this client was closed meanwhile.
        """
        task = asyncio.current_task()
        cancels = task.cancelling() if task else 0
        try:
            return await answer
        except asyncio.CancelledError:
            if self.closed and task is not None and task.cancelling() == cancels:
                raise Unavailable(_CLOSED) from None
            raise

    def failed(self, connection: Connection) -> None:
        """Moves on to the next endpoint, unless another call has done so already."""
        if connection is self._connections[self._current]:
            self._current = (self._current + 1) % len(self._endpoints)

    async def close(self) -> None:
        self.closed = True
        for connection in self._connections:
            if connection is not None:
                await connection.channel.close()

    def _at(self, index: int) -> Connection:
        connection = self._connections[index]
        if connection is None:
            connection = self._connections[index] = Connection(self._endpoints[index])
        return connection

    def _nobody(self, reason: str) -> Unavailable:
        return Unavailable(f"no etcd endpoint answers ({self._names}): {reason}")


def parse_endpoint(text: str) -> Endpoint:
    """Reads HOST:PORT, [IPV6]:PORT or http://HOST:PORT.

    Raises:
        InvalidInput: names the text and what is expected.
    """
    bare = text.removeprefix("http://").rstrip("/")
    host, _, port = bare.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    if "://" in bare or not host or not (port.isascii() and port.isdigit()) or not 0 < int(port) < 65536:
        raise InvalidInput("etcd endpoint", text, "must be HOST:PORT or http://HOST:PORT")
    return host, int(port)


def translate(error: grpc.aio.AioRpcError) -> TesseraError:
    """What an answer's status means here; `Unavailable` alone stands for an endpoint that did not answer."""
    code, details = error.code(), error.details() or ""
    if code in _AWAY:
        return Unavailable(details or code.name.lower())
    if "requested lease not found" in details:
        return LeaseLost(details)
    if code is grpc.StatusCode.RESOURCE_EXHAUSTED:
        return ResourceExhausted(details)
    if code is grpc.StatusCode.FAILED_PRECONDITION:
        return FailedPrecondition(details)
    if code is grpc.StatusCode.INVALID_ARGUMENT:
        return InvalidInput("etcd request", limit=details)
    return Internal(f"etcd: {code.name.lower()}: {details}")
