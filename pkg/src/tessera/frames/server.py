"""The answering side of frames connections."""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Awaitable, Callable
from functools import partial
from typing import cast

from tessera.domain.errors import Cancelled, Internal, ResourceExhausted, TesseraError, TooLarge
from tessera.frames import codec
from tessera.frames.codec import MAX_CHUNK_BYTES, Buffer, Frame, FrameError, FrameResponse, Hello, RequestHeader
from tessera.frames.reader import FrameReader
from tessera.frames.stream import CreditGiver, Incoming, MessageSender

Handler = Callable[[RequestHeader, Buffer], Awaitable[FrameResponse]]
"""Answers one request. A coroutine becomes a task of its own; a future is used as it is (cheaper). CANCEL cancels either."""

MAX_STREAMS = 16384
"""Requests of one connection that may be open at a time."""

_log = logging.getLogger(__name__)


class _Stream:
    __slots__ = ("future", "header", "incoming", "refusal")

    def __init__(self, header: RequestHeader, body_bytes: int, refusal: TesseraError | None) -> None:
        self.header = header
        self.incoming = Incoming(body_bytes)
        self.refusal = refusal
        self.future: asyncio.Future[FrameResponse] | None = None


class _ServerProtocol(asyncio.BufferedProtocol):
    def __init__(self, server: FrameServer) -> None:
        self._server = server
        self._reader = FrameReader()
        self._greeted = False
        self._peer_max_bytes = 0
        self.streams: dict[int, _Stream] = {}

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport = cast(asyncio.Transport, transport)  # uvloop's is none by inheritance
        self.sender = MessageSender(transport, codec.RESPONSE)
        limit = self._server.hello.max_message_bytes
        self.credit = CreditGiver(
            transport, self._server.hello.window_bytes, self._server.held_budget_bytes or 2 * limit + 2 * MAX_CHUNK_BYTES
        )
        self._server.connections.add(self)

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
            self.end(str(error))

    def end(self, reason: str) -> None:
        """Says why and closes."""
        if not self.transport.is_closing():
            self.transport.write(codec.encode_goaway(reason))
            self.transport.close()

    def _on_frame(self, frame: Frame) -> None:
        kind = frame.type
        if not self._greeted:
            if kind != codec.HELLO:
                raise FrameError(f"first frame has type {kind}: must be HELLO")
            self._on_hello(codec.decode_hello(frame.payload))
        elif kind == codec.REQUEST:
            self._on_request(frame)
        elif kind == codec.CREDIT:
            self.sender.grant(codec.decode_credit(frame.payload))
        elif kind == codec.CANCEL:
            self._on_cancel(frame.stream)
        elif kind != codec.GOAWAY:
            raise FrameError(f"frame of type {kind} may not come now")

    def _on_hello(self, hello: Hello) -> None:
        mine = self._server.hello.target
        if hello.target and mine and hello.target != mine:
            raise FrameError(f"this is runtime {mine}, not {hello.target}")
        self._greeted = True
        self._peer_max_bytes = hello.max_message_bytes
        self.transport.write(codec.encode_hello(self._server.hello))
        if self._server.leaving is not None:
            self.transport.write(codec.encode_goaway(self._server.leaving))
        self.sender.grant(hello.window_bytes)

    def _on_request(self, frame: Frame) -> None:
        stream = self.streams.get(frame.stream)
        if stream is None:
            header, body_bytes, chunk = codec.decode_request(frame.payload)
            stream = self.streams[frame.stream] = _Stream(header, body_bytes, self._refusal(body_bytes))
        elif stream.future is not None:
            raise FrameError(f"stream {frame.stream} is open already")
        else:
            chunk = frame.payload
        kept = stream.refusal is None
        body = stream.incoming.take(chunk, bool(frame.flags & codec.FLAG_LAST), keep=kept)
        if kept:
            self.credit.held += len(chunk)
        self.credit.took(len(chunk))
        if body is None:
            return
        if stream.refusal is not None:
            self._answer(frame.stream, stream, FrameResponse.of_error(stream.refusal))
            return
        self._start(frame.stream, stream, body)

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
        else:
            # Owned by `streams`: cancelled by CANCEL and by a lost connection, its result read in `_finished`.
            stream.future = self._server.loop.create_task(_as_coroutine(awaitable))
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
        if stream.refusal is None:
            self.credit.release(stream.incoming.received_bytes)
        answer_bytes = len(response.body)
        if answer_bytes > self._peer_max_bytes:
            response = FrameResponse.of_error(TooLarge(f"response of {answer_bytes} bytes: the caller takes {self._peer_max_bytes}"))
            answer_bytes = len(response.body)
        self.credit.held += answer_bytes
        self.sender.send(number, partial(codec.response_frame_head, number, response), response.body, partial(self._written, answer_bytes))
        self._server.noticed_end(self)

    def _written(self, answer_bytes: int) -> None:
        self.credit.release(answer_bytes)

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
        self._server.noticed_end(self)


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
        self._idle = asyncio.Event()
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
        return sum(len(connection.streams) for connection in self.connections)

    def noticed_end(self, connection: _ServerProtocol) -> None:
        if self.leaving is not None and self.in_flight == 0:
            self._idle.set()

    async def close(self, drain_s: float = 0.0, reason: str = "shutting down") -> None:
        """GOAWAY to every client, at most `drain_s` seconds for what is in flight, then closes; what is left is cancelled."""
        self.leaving = reason
        if self._server is not None:
            self._server.close()
        for connection in list(self.connections):
            connection.transport.write(codec.encode_goaway(reason))
        if drain_s > 0 and self.in_flight:
            try:
                async with asyncio.timeout(drain_s):
                    await self._idle.wait()
            except TimeoutError:
                _log.warning("%d requests were cut off after %s s of draining", self.in_flight, drain_s)
        for connection in list(self.connections):
            connection.transport.close()
        if self._path is not None:
            try:
                os.unlink(self._path)
            except FileNotFoundError:
                pass


async def _as_coroutine(awaitable: Awaitable[FrameResponse]) -> FrameResponse:
    return await awaitable
