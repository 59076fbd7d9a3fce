"""The asking side of a frames connection."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from functools import partial
from typing import cast

from tessera.domain.errors import FailedPrecondition, TesseraError, TooLarge, Unavailable
from tessera.frames import codec
from tessera.frames.codec import Buffer, Frame, FrameError, FrameResponse, Hello, RequestHeader
from tessera.frames.reader import FrameReader
from tessera.frames.stream import CreditGiver, Incoming, MessageSender

CONNECT_TIMEOUT_S = 5.0


class _Stream:
    __slots__ = ("future", "incoming", "response")

    def __init__(self, future: asyncio.Future[FrameResponse]) -> None:
        self.future = future
        self.response: FrameResponse | None = None
        self.incoming: Incoming | None = None


class _ClientProtocol(asyncio.BufferedProtocol):
    def __init__(self, hello: Hello) -> None:
        loop = asyncio.get_running_loop()
        self.hello = hello
        self.ready: asyncio.Future[Hello] = loop.create_future()
        self.lost: asyncio.Future[None] = loop.create_future()
        self.streams: dict[int, _Stream] = {}
        self.goaway: str | None = None
        self.refused: TesseraError | None = None
        self.max_message_bytes = 0
        self.reason = "connection closed"
        self._reader = FrameReader()
        self._next_stream = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport = cast(asyncio.Transport, transport)  # uvloop's is none by inheritance
        self.sender = MessageSender(transport, codec.REQUEST)
        self.credit = CreditGiver(transport, self.hello.window_bytes, None)
        transport.write(codec.encode_hello(self.hello))

    def pause_writing(self) -> None:
        self.sender.pause()

    def resume_writing(self) -> None:
        self.sender.resume()

    def get_buffer(self, sizehint: int) -> memoryview:
        return self._reader.buffer()

    def buffer_updated(self, nbytes: int) -> None:
        try:
            for frame in self._reader.advance(nbytes):
                self._on_frame(frame)
        except FrameError as error:
            self.reason = f"the peer broke the protocol: {error}"
            if not self.max_message_bytes:
                self.refused = FailedPrecondition(f"runtime {self.hello.target or '(any)'}: {error}")
            self.transport.abort()

    def _on_frame(self, frame: Frame) -> None:
        kind = frame.type
        if kind == codec.RESPONSE and self.max_message_bytes:
            self._on_response(frame)
        elif kind == codec.CREDIT:
            self.sender.grant(codec.decode_credit(frame.payload))
        elif kind == codec.GOAWAY:
            self.goaway = codec.decode_goaway(frame.payload)
            if not self.max_message_bytes:
                self.refused = FailedPrecondition(f"runtime {self.hello.target or '(any)'} refused the connection: {self.goaway}")
            self.reason = f"the peer goes away: {self.goaway}"
        elif kind == codec.HELLO and not self.max_message_bytes:
            hello = codec.decode_hello(frame.payload)
            self.max_message_bytes = max(1, hello.max_message_bytes)
            self.sender.grant(hello.window_bytes)
            if not self.ready.done():
                self.ready.set_result(hello)
        else:
            raise FrameError(f"frame of type {kind} may not come now")

    def _on_response(self, frame: Frame) -> None:
        stream = self.streams.get(frame.stream)
        if stream is None:
            raise FrameError(f"response on stream {frame.stream}, which is not open")
        if stream.response is None or stream.incoming is None:
            stream.response, body_bytes, chunk = codec.decode_response(frame.payload)
            if body_bytes > self.hello.max_message_bytes:
                raise FrameError(f"response of {body_bytes} bytes: at most {self.hello.max_message_bytes}")
            stream.incoming = Incoming(body_bytes)
        else:
            chunk = frame.payload
        self.credit.took(len(chunk))
        body = stream.incoming.take(chunk, bool(frame.flags & codec.FLAG_LAST), keep=not stream.future.done())
        if body is None:
            return
        del self.streams[frame.stream]
        if not stream.future.done():
            head = stream.response
            stream.future.set_result(FrameResponse(head.status, head.batch_size, head.queue_us, head.run_us, body))

    def connection_lost(self, exc: Exception | None) -> None:
        if exc is not None:
            self.reason = f"connection lost: {exc}"
        error = Unavailable(f"runtime {self.hello.target or '(any)'}: {self.reason}")
        if not self.ready.done():
            self.ready.set_exception(self.refused or error)
            self.ready.exception()  # connect may have given up already
        for stream in self.streams.values():
            if not stream.future.done():
                stream.future.set_exception(Unavailable(error.message))
        self.streams.clear()
        if not self.lost.done():
            self.lost.set_result(None)

    def new_stream(self) -> tuple[int, asyncio.Future[FrameResponse]]:
        number = self._next_stream = (self._next_stream % 0xFFFFFFFE) + 1
        future: asyncio.Future[FrameResponse] = asyncio.get_running_loop().create_future()
        self.streams[number] = _Stream(future)
        return number, future

    def abandon(self, number: int) -> None:
        """The caller went away. The stream stays until its answer came (there is one after CANCEL too), unless nothing was sent of it."""
        if number not in self.streams or self.transport.is_closing():
            return
        if self.sender.drop(number):
            self.transport.write(codec.encode_cancel(number))
        else:
            del self.streams[number]


class FrameClient:
    """One connection to a runtime, for any number of requests at a time. Made by `connect_unix` or `connect_tcp`."""

    def __init__(self, protocol: _ClientProtocol) -> None:
        self._protocol = protocol
        self._in_flight = 0

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
        except TimeoutError:
            if hasattr(protocol, "transport"):
                protocol.transport.abort()
            raise Unavailable(f"runtime {protocol.hello.target or '(any)'} at {where}: no hello within {CONNECT_TIMEOUT_S} s") from None
        except OSError as error:
            raise Unavailable(f"runtime {protocol.hello.target or '(any)'} at {where}: {error}") from error
        return cls(protocol)

    @property
    def closed(self) -> bool:
        return self._protocol.transport.is_closing() or self._protocol.lost.done()

    @property
    def draining(self) -> bool:
        """The peer said GOAWAY: it answers what is in flight and takes nothing new."""
        return self._protocol.goaway is not None

    @property
    def in_flight(self) -> int:
        """Requests whose callers wait for an answer."""
        return self._in_flight

    @property
    def target(self) -> str:
        return self._protocol.hello.target

    async def request(self, header: RequestHeader, body: Buffer) -> FrameResponse:
        """Sends a request and waits for its answer; an error answer is returned, not raised (`FrameResponse.error()`).

        `body` must not change until the answer is here. Cancelling the caller cancels the request in the runtime.

        Raises:
            Unavailable: the connection is or gets lost, or the peer takes nothing new.
            TooLarge: `body` is longer than the peer takes.
        """
        protocol = self._protocol
        if protocol.goaway is not None or self.closed:
            raise Unavailable(f"runtime {self.target or '(any)'}: {protocol.reason}")
        if len(body) > protocol.max_message_bytes:
            raise TooLarge(f"request of {len(body)} bytes: at most {protocol.max_message_bytes}")
        number, future = protocol.new_stream()
        self._in_flight += 1
        try:
            protocol.sender.send(number, partial(codec.request_frame_head, number, header, len(body)), body)
            return await future
        except asyncio.CancelledError:
            protocol.abandon(number)
            raise
        finally:
            self._in_flight -= 1

    def close(self) -> None:
        """Closes at once: what is in flight raises Unavailable, the runtime cancels it."""
        self._protocol.reason = "closed by this side"
        self._protocol.transport.abort()

    async def wait_closed(self) -> None:
        """Returns when the connection is gone, by whichever side."""
        await asyncio.shield(self._protocol.lost)
