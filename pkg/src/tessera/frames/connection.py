"""What both ends of a frames connection are: bytes to frames, frames to messages, and the way out."""

from __future__ import annotations

import asyncio
import socket
from abc import ABC, abstractmethod
from typing import cast

from tessera.frames import codec
from tessera.frames.codec import Buffer, FrameError
from tessera.frames.reader import FrameReader, Place
from tessera.frames.silence import end_on_silence
from tessera.frames.stream import CreditGiver, Incoming, MessageSender

_SEND_BUFFER_BYTES = 1024 * 1024
"""Of a Unix socket: a body of some hundred KiB then leaves in one system call instead of in pieces that wait for the reader.
As much of it as the kernel's limit allows."""


class Connection(asyncio.BufferedProtocol, ABC):
    """Subclasses say what a frame and the beginning and the end of a message mean.

    Args:
        kind: of the messages it sends; the other one is what it receives.
        budget: bytes that may be held unanswered before credit is withheld.
    """

    def __init__(self, kind: int, window_bytes: int, budget: int | None) -> None:
        self._kind = kind
        self._window_bytes = window_bytes
        self._budget = budget
        self._receives = codec.RESPONSE if kind == codec.REQUEST else codec.REQUEST
        self._header_bytes = codec.RESPONSE_HEADER_BYTES if kind == codec.REQUEST else codec.REQUEST_HEADER_BYTES
        self._reader = FrameReader(self)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport = cast(asyncio.Transport, transport)  # uvloop's is none by inheritance
        own = transport.get_extra_info("socket")
        if own is not None and own.family == socket.AF_UNIX:
            own.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _SEND_BUFFER_BYTES)
        elif own is not None:
            end_on_silence(own)
        self.sender = MessageSender(transport, self._kind)
        self.credit = CreditGiver(self.sender.put, self._window_bytes, self._budget)

    def pause_writing(self) -> None:
        self.sender.pause()

    def resume_writing(self) -> None:
        self.sender.resume()

    def get_buffer(self, sizehint: int) -> memoryview:
        return self._reader.buffer()

    def buffer_updated(self, nbytes: int) -> None:
        sender = self.sender
        sender.cork()
        try:
            self._reader.advance(nbytes)
        except FrameError as error:
            self.broken(error)
        finally:
            sender.flush()

    def place(self, kind: int, stream: int, payload_bytes: int, data: memoryview, start: int, stop: int) -> Place | None:
        if kind != self._receives:
            raise FrameError(f"frame of type {kind} and {payload_bytes} bytes may not come now")
        incoming = self.incoming_of(stream)
        if incoming is not None:
            return incoming.place(payload_bytes), incoming
        if stop - start < self._header_bytes:
            return None
        incoming = self.begin(stream, data, start, stop)
        return incoming.place(payload_bytes - self._header_bytes), incoming

    def placed(self, kind: int, flags: int, stream: int, size: int) -> None:
        incoming = self.incoming_of(stream)
        if incoming is None:
            raise FrameError(f"stream {stream} ended before its message")
        self.took(stream, size, incoming.took(size, bool(flags & codec.FLAG_LAST)))

    def on_message_frame(self, flags: int, stream: int, data: memoryview, start: int, stop: int) -> None:
        """A frame of a message that is not one frame as a whole."""
        incoming = self.incoming_of(stream)
        if incoming is None:
            incoming = self.begin(stream, data, start, stop)
            start += self._header_bytes
        self.took(stream, stop - start, incoming.take(data, start, stop, bool(flags & codec.FLAG_LAST)))

    @abstractmethod
    def on_frame(self, kind: int, flags: int, stream: int, data: memoryview, start: int, stop: int) -> None: ...

    @abstractmethod
    def incoming_of(self, stream: int) -> Incoming | None:
        """The message that has begun on this stream."""
        ...

    @abstractmethod
    def begin(self, stream: int, data: memoryview, start: int, stop: int) -> Incoming:
        """A message begins; its header, and maybe some of it, is data[start:stop]. Raises: FrameError."""
        ...

    @abstractmethod
    def took(self, stream: int, size: int, body: Buffer | None) -> None:
        """`size` more bytes of the stream's message are here; `body` is all of it once it is complete."""
        ...

    @abstractmethod
    def broken(self, error: FrameError) -> None:
        """The peer broke the protocol."""
        ...
