"""Unary calls in frames instead of gRPC: the two calls that a start waits for (docs/adr/0005-start-calls-in-frames.md).

The same messages, handlers, errors, budgets and trace context as the gRPC method of that name, over one connection per address.
Body of a REQUEST: u8 length and full method name ("/package.Service/Method"), then the encoded message; of a RESPONSE: the answer.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, TypeVar

from google.protobuf.message import DecodeError, Message

from tessera import telemetry
from tessera.domain.errors import DeadlineExceeded, FailedPrecondition, InvalidInput, TesseraError, Unavailable, Unsupported
from tessera.frames import FrameClient, FrameResponse, FrameServer, RequestHeader, Status
from tessera.frames.codec import Buffer
from tessera.program import Tasks
from tessera.rpc._guard import in_span, span_name, unexpected

MAX_CALL_BYTES = 1024 * 1024
"""The longest message of such a call; they are some hundred bytes."""

Behaviour = Callable[[Any, Any], Awaitable[Message]]
"""A servicer's method: (request, context); the context is None here."""

Answer = TypeVar("Answer", bound=Message)

_log = telemetry.get_logger("tessera.rpc")


class FramedServer:
    """Answers calls at a TCP address. `methods`: full method name -> (request type, servicer's method)."""

    def __init__(self, address: str, methods: Mapping[str, tuple[type[Message], Behaviour]]) -> None:
        self._address = address
        self._methods = {name: (*method, span_name(name)) for name, method in methods.items()}
        self._server: FrameServer | None = None

    @property
    def address(self) -> str:
        """What to connect to: the given address, with the real port once started."""
        host, _, port = self._address.rpartition(":")
        return f"{host}:{self._server.port}" if self._server is not None and port == "0" else self._address

    async def start(self) -> None:
        """Listens and answers.

        Raises:
            FailedPrecondition: the address is no HOST:PORT, is in use or cannot be bound; names it.
        """
        host, port = _host_and_port(self._address)
        try:
            self._server = await FrameServer.serve_tcp(host, port, self._handle, max_message_bytes=MAX_CALL_BYTES)
        except OSError as error:
            raise FailedPrecondition(f"address {self._address} is in use or cannot be bound: {error}") from error

    async def stop(self, grace_s: float = 5.0) -> None:
        """Takes no new calls, lets those in flight end for `grace_s` seconds, then cancels them."""
        server, self._server = self._server, None
        if server is not None:
            await server.close(grace_s)

    async def _handle(self, header: RequestHeader, body: Buffer) -> FrameResponse:
        data = bytes(body)
        end = 1 + data[0] if data else 1
        method = data[1:end].decode("utf-8", "replace")
        found = self._methods.get(method)
        if found is None:
            raise Unsupported(f"method {data[1:end]!r}: in frames this address answers {', '.join(self._methods)}")
        request_type, behaviour, span = found
        try:
            request = request_type.FromString(data[end:])
        except DecodeError:
            raise InvalidInput(request_type.__name__, None, f"{len(data) - end} bytes that are no such message") from None
        try:
            answer = await in_span(span, _context_of(header), behaviour, request, None)
        except TesseraError:
            raise
        except Exception as error:
            raise unexpected(error, method) from None
        return FrameResponse(Status.OK, body=answer.SerializeToString())


class FramedCalls:
    """The asking side. One connection per address: made by `expect` or by the first call, and again by the next call after a loss."""

    def __init__(self, tasks: Tasks) -> None:
        self._tasks = tasks
        self._links: dict[str, FrameClient] = {}
        self._opening: dict[str, asyncio.Lock] = {}

    def expect(self, address: str) -> None:
        """Connects in the background: making a connection takes as long as a start."""
        if self._open_link(address) is None:
            self._tasks.start(f"calls to {address}", self._try(address))

    async def call(self, address: str, method: str, request: Message, answer_type: type[Answer], timeout_s: float) -> Answer:
        """Sends `request` and returns the answer. Cancelling the caller cancels the call there too.

        Raises:
            Unavailable: nobody takes the connection, or it broke: the call may have been carried out.
            DeadlineExceeded: no answer within `timeout_s`.
            TesseraError: what the other side raised.
        """
        name = method.encode()
        body = bytes((len(name),)) + name + request.SerializeToString()
        header = _header(max(1, int(timeout_s * 1e6)))
        verb = method.rpartition("/")[2]
        try:
            async with asyncio.timeout(timeout_s):
                link = self._open_link(address) or await self._connect(address)
                response = await link.request(header, body)
        except TimeoutError:
            raise DeadlineExceeded(f"{verb} at {address}: no answer within {timeout_s:.3f} s") from None
        except Unavailable as error:
            raise Unavailable(f"{verb} at {address}: {error.message}") from None
        refused = response.error()
        if refused is not None:
            raise refused
        return answer_type.FromString(bytes(response.body))

    def close(self) -> None:
        """Ends every connection; what is in flight raises Unavailable."""
        for link in self._links.values():
            link.close()
        self._links.clear()

    def _open_link(self, address: str) -> FrameClient | None:
        link = self._links.get(address)
        return link if link is not None and not link.closed and not link.draining else None

    async def _connect(self, address: str) -> FrameClient:
        async with self._opening.setdefault(address, asyncio.Lock()):
            link = self._open_link(address)
            if link is None:
                host, port = _host_and_port(address)
                link = self._links[address] = await FrameClient.connect_tcp(host, port, target="", max_message_bytes=MAX_CALL_BYTES)
            return link

    async def _try(self, address: str) -> None:
        try:
            await self._connect(address)
        except TesseraError as error:
            _log.info("not connected", address=address, reason=error.message)


def _header(budget_us: int) -> RequestHeader:
    """The current span's ids, or none. Calls name no instance: generation 0."""
    context = telemetry.current_context()
    if context is None or not context.span_id:
        return RequestHeader(0, budget_us)
    return RequestHeader(0, budget_us, bytes.fromhex(context.trace_id), bytes.fromhex(context.span_id), int(context.sampled))


def _context_of(header: RequestHeader) -> telemetry.TraceContext | None:
    if not any(header.trace_id):
        return None
    return telemetry.TraceContext(header.trace_id.hex(), header.span_id.hex(), bool(header.flags & 1))


def _host_and_port(address: str) -> tuple[str, int]:
    host, _, port = address.rpartition(":")
    if not host or not port.isdigit():
        raise FailedPrecondition(f"address {address!r} is not HOST:PORT")
    return host.strip("[]"), int(port)
