"""The answering side of frames connections."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
from collections.abc import Awaitable, Callable
from functools import partial

from tessera.domain.errors import Cancelled, Internal, ResourceExhausted, TesseraError, TooLarge
from tessera.frames import codec
from tessera.frames.codec import (
    FLAG_LAST,
    MAX_CHUNK_BYTES,
    REQUEST,
    REQUEST_HEADER_BYTES,
    Buffer,
    FrameError,
    FrameResponse,
    Hello,
    RequestHeader,
)
from tessera.frames.connection import Connection
from tessera.frames.stream import Incoming

Handler = Callable[[RequestHeader, Buffer], Awaitable[FrameResponse]]
"""Answers one request. A coroutine becomes a task of its own; a future is used as it is (cheaper). CANCEL cancels either."""

MAX_STREAMS = 16384
"""Requests of one connection that may be open at a time."""

_IGNORED_BYTES = 16 * 1024

_log = logging.getLogger(__name__)


class _Stream:
    __slots__ = ("future", "header", "held_bytes", "incoming", "refusal")

    def __init__(self, header: RequestHeader, incoming: Incoming | None, refusal: TesseraError | None) -> None:
        self.header = header
        self.incoming = incoming
        self.refusal = refusal
        self.held_bytes = 0
        self.future: asyncio.Future[FrameResponse] | None = None


class _Finished(asyncio.BufferedProtocol):
    """In the place of a connection that has said all: takes in what the peer still sends, until that has read the end and closes.
    A socket that is closed over unread bytes takes along what the peer has not read."""

    def __init__(self, connection: _ServerProtocol) -> None:
        self._connection = connection
        self._ignored = bytearray(_IGNORED_BYTES)

    def get_buffer(self, sizehint: int) -> bytearray:
        return self._ignored

    def buffer_updated(self, nbytes: int) -> None: ...

    def connection_lost(self, exc: Exception | None) -> None:
        self._connection.connection_lost(exc)


class _ServerProtocol(Connection):
    """`queued`: answers that wait for credit, or for a reader, with their last byte."""

    def __init__(self, server: FrameServer) -> None:
        limit = server.hello.max_message_bytes
        super().__init__(codec.RESPONSE, server.hello.window_bytes, server.held_budget_bytes or 2 * limit + 2 * MAX_CHUNK_BYTES)
        self._server = server
        self._greeted = False
        self._peer_max_bytes = 0
        self.streams: dict[int, _Stream] = {}
        self.queued = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self._server.connections.add(self)

    def broken(self, error: FrameError) -> None:
        self.end(str(error))

    def end(self, reason: str) -> None:
        """Says why and closes."""
        if not self.transport.is_closing():
            self.sender.put(codec.encode_goaway(reason))
            self.close()

    def close(self) -> None:
        self.sender.flush()
        self.transport.close()

    def finish(self) -> None:
        """Says that nothing more comes; closes when the peer does."""
        self.sender.flush()
        if not self.transport.is_closing():
            self.transport.set_protocol(_Finished(self))
            with contextlib.suppress(OSError):  # the peer was quicker
                self.transport.write_eof()

    def on_frame(self, kind: int, flags: int, stream: int, data: memoryview, start: int, stop: int) -> None:
        if not self._greeted:
            if kind != codec.HELLO:
                raise FrameError(f"first frame has type {kind}: must be HELLO")
            self._on_hello(codec.decode_hello(data[start:stop]))
        elif kind == REQUEST:
            if flags & FLAG_LAST and stream not in self.streams:
                self._on_whole_request(stream, data, start, stop)
            else:
                self.on_message_frame(flags, stream, data, start, stop)
        elif kind == codec.CREDIT:
            self.sender.grant(codec.decode_credit(data[start:stop]))
        elif kind == codec.CANCEL:
            self._on_cancel(stream)
        elif kind != codec.GOAWAY:
            raise FrameError(f"frame of type {kind} may not come now")

    def _on_hello(self, hello: Hello) -> None:
        mine = self._server.hello.target
        if hello.target and mine and hello.target != mine:
            raise FrameError(f"this is runtime {mine}, not {hello.target}")
        self._greeted = True
        self._peer_max_bytes = hello.max_message_bytes
        self.sender.put(codec.encode_hello(self._server.hello))
        if self._server.leaving is not None:
            self.sender.put(codec.encode_goaway(self._server.leaving))
        self.sender.grant(hello.window_bytes)

    def _on_whole_request(self, number: int, data: memoryview, start: int, stop: int) -> None:
        header, body_bytes = codec.decode_request(data, start, stop)
        start += REQUEST_HEADER_BYTES
        if stop - start != body_bytes:
            raise FrameError(f"message body of {stop - start} bytes: its header said {body_bytes}")
        refusal = self._refusal(body_bytes)
        stream = self.streams[number] = _Stream(header, None, refusal)
        if refusal is not None:
            self.credit.took(body_bytes)
            self._answer(number, stream, FrameResponse.of_error(refusal))
            return
        stream.held_bytes = body_bytes
        self.credit.held += body_bytes
        self.credit.took(body_bytes)
        self._start(number, stream, bytes(data[start:stop]))

    def incoming_of(self, stream: int) -> Incoming | None:
        known = self.streams.get(stream)
        if known is None:
            return None
        if known.incoming is None or known.future is not None:
            raise FrameError(f"stream {stream} is open already")
        return known.incoming

    def begin(self, stream: int, data: memoryview, start: int, stop: int) -> Incoming:
        if not self._greeted:
            raise FrameError("first frame is a long one: must be HELLO")
        header, body_bytes = codec.decode_request(data, start, stop)
        refusal = self._refusal(body_bytes)
        incoming = Incoming(body_bytes, keep=refusal is None)
        self.streams[stream] = _Stream(header, incoming, refusal)
        return incoming

    def took(self, number: int, size: int, body: Buffer | None) -> None:
        stream = self.streams[number]
        if stream.refusal is None:
            stream.held_bytes += size
            self.credit.held += size
        self.credit.took(size)
        if body is None:
            return
        if stream.refusal is not None:
            self._answer(number, stream, FrameResponse.of_error(stream.refusal))
            return
        self._start(number, stream, body)

    def _refusal(self, body_bytes: int) -> TesseraError | None:
        limit = self._server.hello.max_message_bytes
        if body_bytes > limit:
            return TooLarge(f"request of {body_bytes} bytes: at most {limit}")
        if len(self.streams) >= MAX_STREAMS:
            return ResourceExhausted(f"{len(self.streams)} requests are open on this connection: at most {MAX_STREAMS}")
        return None

    def _start(self, number: int, stream: _Stream, body: Buffer) -> None:
        try:
            awaitable = self._server.handler(stream.header, body)
        except TesseraError as error:
            self._answer(number, stream, FrameResponse.of_error(error))
            return
        except Exception as error:
            _log.exception("handler failed")
            self._answer(number, stream, FrameResponse.of_error(Internal(f"{type(error).__name__}: {error}")))
            return
        if isinstance(awaitable, asyncio.Future):
            stream.future = awaitable
            if awaitable.done():
                self._finished(number, stream, awaitable)
                return
        else:
            # Owned by `streams`: cancelled by CANCEL and by a lost connection, its result read in `_finished`.
            coroutine = awaitable if asyncio.iscoroutine(awaitable) else _as_coroutine(awaitable)
            stream.future = self._server.loop.create_task(coroutine)
        stream.future.add_done_callback(partial(self._finished, number, stream))

    def _finished(self, number: int, stream: _Stream, future: asyncio.Future[FrameResponse]) -> None:
        if future.cancelled():
            response = FrameResponse.of_error(Cancelled("the request was cancelled"))
        elif (error := future.exception()) is None:
            response = future.result()
        elif isinstance(error, TesseraError):
            response = FrameResponse.of_error(error)
        else:
            _log.error("handler failed", exc_info=error)
            response = FrameResponse.of_error(Internal(f"{type(error).__name__}: {error}"))
        self._answer(number, stream, response)

    def _answer(self, number: int, stream: _Stream, response: FrameResponse) -> None:
        if self.streams.pop(number, None) is None or self.transport.is_closing():
            return
        if stream.held_bytes:
            self.credit.release(stream.held_bytes)
        answer_bytes = len(response.body)
        if answer_bytes > self._peer_max_bytes:
            most = f"the caller takes {self._peer_max_bytes}, by its max_message_bytes"
            response = FrameResponse.of_error(TooLarge(f"response of {answer_bytes} bytes: {most}"))
            answer_bytes = len(response.body)
        sender = self.sender
        if answer_bytes <= sender.room:
            sender.spend(answer_bytes)
            sender.put(codec.whole_response_head(number, response, answer_bytes), response.body)
            if not self.streams:
                sender.flush()
        else:
            self.credit.held += answer_bytes
            self.queued += 1
            sender.queue(number, codec.response_header(response, answer_bytes), response.body, partial(self._sent, answer_bytes))
        if self._server.leaving is not None:
            self._server.noticed_end()

    def _sent(self, answer_bytes: int) -> None:
        self.queued -= 1
        self.credit.release(answer_bytes)
        self._server.noticed_end()

    def _on_cancel(self, number: int) -> None:
        stream = self.streams.get(number)
        if stream is None:
            return
        if stream.future is not None:
            stream.future.cancel()
        else:
            self._answer(number, stream, FrameResponse.of_error(Cancelled("the request was cancelled")))

    def connection_lost(self, exc: Exception | None) -> None:
        self._server.connections.discard(self)
        streams, self.streams = list(self.streams.values()), {}
        for stream in streams:
            if stream.future is not None:
                stream.future.cancel()
        self._server.noticed_end()


class FrameServer:
    """Listens on one address and answers requests by `handler(header, body)`.

    `body` is a view that lives as long as it is referenced. Every request gets exactly one response frame sequence, also a
    cancelled one (error kind `cancelled`), so that stream numbers are never ambiguous.
    """

    def __init__(self, handler: Handler, hello: Hello, held_budget_bytes: int | None) -> None:
        self.handler = handler
        self.hello = hello
        self.held_budget_bytes = held_budget_bytes
        self.connections: set[_ServerProtocol] = set()
        self.leaving: str | None = None
        self.loop = asyncio.get_running_loop()
        self._ended = asyncio.Event()
        self._server: asyncio.Server | None = None
        self._path: str | None = None

    @classmethod
    async def serve_unix(
        cls, path: str, handler: Handler, *, target: str = "", held_budget_bytes: int | None = None, **options: int
    ) -> FrameServer:
        """Listens on a Unix socket (a file that is there already is replaced); options are the sizes of `Hello`.

        With `target`, connections meant for another runtime are refused.
        """
        self = cls(handler, Hello(target, **options), held_budget_bytes)
        try:
            os.unlink(path)
        except FileNotFoundError:
            pass
        self._server = await self.loop.create_unix_server(lambda: _ServerProtocol(self), path, backlog=256)
        self._path = path
        return self

    @classmethod
    async def serve_tcp(
        cls, host: str, port: int, handler: Handler, *, target: str = "", held_budget_bytes: int | None = None, **options: int
    ) -> FrameServer:
        """Listens on TCP; as `serve_unix`."""
        self = cls(handler, Hello(target, **options), held_budget_bytes)
        self._server = await self.loop.create_server(lambda: _ServerProtocol(self), host, port, backlog=256)
        return self

    @property
    def port(self) -> int:
        """The TCP port it listens on."""
        assert self._server is not None
        return int(self._server.sockets[0].getsockname()[1])

    @property
    def in_flight(self) -> int:
        """Requests whose answers are not on their way as a whole."""
        return sum(len(connection.streams) + connection.queued for connection in self.connections)

    def noticed_end(self) -> None:
        """A request or a connection has ended."""
        self._ended.set()

    async def _until(self, over: Callable[[], bool]) -> None:
        while not over():
            self._ended.clear()
            await self._ended.wait()

    async def close(self, drain_s: float = 0.0, reason: str = "shutting down") -> None:
        """GOAWAY to every client, at most `drain_s` seconds until all is answered and read, then closes; what is left is cancelled."""
        self.leaving = reason
        if self._server is not None:
            self._server.close()
        for connection in list(self.connections):
            connection.sender.put(codec.encode_goaway(reason))
            connection.sender.flush()
        if drain_s > 0:
            try:
                async with asyncio.timeout(drain_s):
                    await self._until(lambda: not self.in_flight)
                    for connection in list(self.connections):
                        connection.finish()
                    await self._until(lambda: not self.connections)
            except TimeoutError:
                if self.in_flight:
                    _log.warning("%d requests were cut off after %s s of draining", self.in_flight, drain_s)
        for connection in list(self.connections):
            connection.close()
        if self._path is not None:
            try:
                os.unlink(self._path)
            except FileNotFoundError:
                pass


async def _as_coroutine(awaitable: Awaitable[FrameResponse]) -> FrameResponse:
    return await awaitable
