"""The asking side of a frames connection."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from typing import Any

from tessera.domain.errors import FailedPrecondition, TesseraError, TooLarge, Unavailable
from tessera.frames import codec
from tessera.frames.codec import FLAG_LAST, RESPONSE, RESPONSE_HEADER_BYTES, Buffer, FrameError, FrameResponse, Hello, RequestHeader
from tessera.frames.connection import Connection
from tessera.frames.stream import Incoming

CONNECT_TIMEOUT_S = 5.0


class NeverSent(Unavailable):
    """The connection is lost, and not all of the request was written to it: it was not executed. A server calls its handler with the
    last byte."""


class _Request(asyncio.Future[FrameResponse]):
    """A request under way: its answer, and what of it is here. Cancelling it cancels the request in the runtime."""

    incoming: Incoming | None = None
    response: tuple[int, int, int, int, int] = (0, 0, 0, 0, 0)

    def __init__(self, protocol: _ClientProtocol, number: int, suffix: bytes) -> None:
        super().__init__(loop=protocol.loop)
        self.protocol = protocol
        self.number = number
        self.suffix = suffix

    def cancel(self, msg: Any = None) -> bool:
        cancelled = super().cancel(msg)
        if cancelled:
            self.protocol.abandon(self.number)
        return cancelled


class _ClientProtocol(Connection):
    def __init__(self, hello: Hello) -> None:
        super().__init__(codec.REQUEST, hello.window_bytes, None)
        self.loop = asyncio.get_running_loop()
        self.hello = hello
        self.ready: asyncio.Future[Hello] = self.loop.create_future()
        self.lost: asyncio.Future[None] = self.loop.create_future()
        self.streams: dict[int, _Request] = {}
        self.goaway: str | None = None
        self.refused: TesseraError | None = None
        self.max_message_bytes = 0
        self.reason = "connection closed"
        self.closed = False
        self._next_stream = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self.transport.write(codec.encode_hello(self.hello))

    def broken(self, error: FrameError) -> None:
        self.reason = f"the peer broke the protocol: {error}"
        if not self.max_message_bytes:
            self.refused = FailedPrecondition(f"runtime {self.hello.target or '(any)'}: {error}")
        self.abort()

    def abort(self) -> None:
        self.closed = True
        self.transport.abort()

    def on_frame(self, kind: int, flags: int, stream: int, data: memoryview, start: int, stop: int) -> None:
        if kind == RESPONSE and self.max_message_bytes:
            request = self.streams.get(stream)
            if request is None or request.incoming is not None or not flags & FLAG_LAST:
                self.on_message_frame(flags, stream, data, start, stop)
                return
            status, batch_size, queue_us, opening_us, run_us, body_bytes = codec.decode_response(data, start, stop)
            start += RESPONSE_HEADER_BYTES
            if stop - start != body_bytes:
                raise FrameError(f"message body of {stop - start} bytes: its header said {body_bytes}")
            self.credit.took(body_bytes)
            del self.streams[stream]
            if not request.done():
                body = b"".join((data[start:stop], b"" if status else request.suffix))
                request.set_result(FrameResponse(status, batch_size, queue_us, opening_us, run_us, body))
        elif kind == codec.CREDIT:
            self.sender.grant(codec.decode_credit(data[start:stop]))
        elif kind == codec.GOAWAY:
            self.goaway = codec.decode_goaway(data[start:stop])
            if not self.max_message_bytes:
                self.refused = FailedPrecondition(f"runtime {self.hello.target or '(any)'} refused the connection: {self.goaway}")
            self.reason = f"the peer goes away: {self.goaway}"
        elif kind == codec.HELLO and not self.max_message_bytes:
            hello = codec.decode_hello(data[start:stop])
            self.max_message_bytes = max(1, hello.max_message_bytes)
            self.sender.grant(hello.window_bytes)
            if not self.ready.done():
                self.ready.set_result(hello)
        else:
            raise FrameError(f"frame of type {kind} may not come now")

    def incoming_of(self, stream: int) -> Incoming | None:
        request = self.streams.get(stream)
        if request is None:
            raise FrameError(f"response on stream {stream}, which is not open")
        return request.incoming

    def begin(self, stream: int, data: memoryview, start: int, stop: int) -> Incoming:
        *head, body_bytes = codec.decode_response(data, start, stop)
        if body_bytes > self.hello.max_message_bytes:
            raise FrameError(f"response of {body_bytes} bytes: at most {self.hello.max_message_bytes}")
        request = self.streams[stream]
        request.response = (head[0], head[1], head[2], head[3], head[4])
        request.incoming = incoming = Incoming(body_bytes, not request.done(), b"" if head[0] else request.suffix)
        return incoming

    def took(self, stream: int, size: int, body: Buffer | None) -> None:
        self.credit.took(size)
        if body is None:
            return
        request = self.streams.pop(stream)
        if not request.done():
            request.set_result(FrameResponse(*request.response, body))

    def connection_lost(self, exc: Exception | None) -> None:
        self.closed = True
        if exc is not None:
            self.reason = f"connection lost: {exc}"
        words = f"runtime {self.hello.target or '(any)'}: {self.reason}"
        if not self.ready.done():
            self.ready.set_exception(self.refused or Unavailable(words))
            self.ready.exception()  # connect may have given up already
        requests, self.streams = self.streams, {}
        unsent = self.sender.unsent()
        for number, request in requests.items():
            if not request.done():
                request.set_exception(NeverSent(words) if number in unsent else Unavailable(words))
        if not self.lost.done():
            self.lost.set_result(None)

    def request(self, header: RequestHeader, body: Buffer, suffix: bytes) -> _Request:
        self._next_stream = number = (self._next_stream % 0xFFFFFFFE) + 1
        self.streams[number] = request = _Request(self, number, suffix)
        size, sender = len(body), self.sender
        if size <= sender.room:
            sender.spend(size)
            sender.put(codec.whole_request_head(number, header, size), body)
            if len(self.streams) == 1:
                sender.flush()  # alone: there is no company to wait for
        else:
            sender.queue(number, codec.request_header(header, size), body)
        return request

    def abandon(self, number: int) -> None:
        """The caller went away. The stream stays until its answer came (there is one after CANCEL too), unless nothing was sent of it."""
        if number not in self.streams or self.closed:
            return
        if self.sender.drop(number):
            self.sender.put(codec.encode_cancel(number))
        else:
            del self.streams[number]


class FrameClient:
    """One connection to a runtime, for any number of requests at a time. Made by `connect_unix` or `connect_tcp`."""

    def __init__(self, protocol: _ClientProtocol) -> None:
        self._protocol = protocol

    @classmethod
    async def connect_unix(cls, path: str, *, target: str = "", **options: int) -> FrameClient:
        """Connects to a runtime's (or relay's) Unix socket; options are the sizes of `Hello`.

        Raises:
            Unavailable: nothing listens there, or no hello within 5 s.
            FailedPrecondition: the peer speaks another version of the protocol.
        """
        protocol = _ClientProtocol(Hello(target, **options))
        loop = asyncio.get_running_loop()
        return await cls._connect(protocol, loop.create_unix_connection(lambda: protocol, path), path)

    @classmethod
    async def connect_tcp(cls, host: str, port: int, *, target: str, **options: int) -> FrameClient:
        """Connects through a relay; as `connect_unix`."""
        protocol = _ClientProtocol(Hello(target, **options))
        loop = asyncio.get_running_loop()
        return await cls._connect(protocol, loop.create_connection(lambda: protocol, host, port), f"{host}:{port}")

    @classmethod
    async def _connect(cls, protocol: _ClientProtocol, connecting: Awaitable[object], where: str) -> FrameClient:
        try:
            async with asyncio.timeout(CONNECT_TIMEOUT_S):
                await connecting
                await protocol.ready
        except BaseException as error:
            if hasattr(protocol, "transport"):  # also when the caller is cancelled: nobody else knows of the connection
                protocol.transport.abort()
            if isinstance(error, TimeoutError):
                raise Unavailable(f"runtime {protocol.hello.target or '(any)'} at {where}: no hello within {CONNECT_TIMEOUT_S} s") from None
            if isinstance(error, OSError):
                raise Unavailable(f"runtime {protocol.hello.target or '(any)'} at {where}: {error}") from error
            raise
        return cls(protocol)

    @property
    def closed(self) -> bool:
        protocol = self._protocol
        return protocol.closed or protocol.transport.is_closing()

    @property
    def draining(self) -> bool:
        """The peer said GOAWAY: it answers what is in flight and takes nothing new."""
        return self._protocol.goaway is not None

    @property
    def in_flight(self) -> int:
        """Requests whose callers wait for an answer."""
        return sum(not request.done() for request in self._protocol.streams.values())

    @property
    def target(self) -> str:
        return self._protocol.hello.target

    def request(self, header: RequestHeader, body: Buffer, suffix: bytes = b"") -> asyncio.Future[FrameResponse]:
        """Sends a request; the future is its answer. An error answer is a result, not raised (`FrameResponse.error()`).

        `body` must not change until the answer is here. Cancelling the future, or a task that awaits it, cancels the request in the
        runtime. With a `suffix` the body of an answer that is none of an error is `bytes` which end with it: they are received into
        their last place, where putting something behind them later would copy them.

        Raises:
            NeverSent: the connection is lost, or the peer takes nothing new; from the future where it gets lost before all of the request
                was written.
            Unavailable: from the future, where it gets lost later: the peer may have executed the request.
            TooLarge: `body` is longer than the peer takes.
        """
        protocol = self._protocol
        if protocol.goaway is not None or protocol.closed or protocol.transport.is_closing():
            raise NeverSent(f"runtime {self.target or '(any)'}: {protocol.reason}")
        if len(body) > protocol.max_message_bytes:
            raise TooLarge(f"request of {len(body)} bytes: at most {protocol.max_message_bytes}")
        return protocol.request(header, body, suffix)

    def close(self) -> None:
        """Closes at once: what is in flight raises Unavailable (or NeverSent), the runtime cancels it."""
        self._protocol.reason = "closed by this side"
        self._protocol.abort()

    async def wait_closed(self) -> None:
        """Returns when the connection is gone, by whichever side."""
        await asyncio.shield(self._protocol.lost)
