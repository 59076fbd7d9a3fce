"""Messages over frames: sending under flow control, and putting chunks together again. Used by client and server alike.

A sender has at most one message beyond a chunk under way at a time, and one-chunk messages pass between its chunks. So a receiver
never holds more than two incomplete messages of a connection, which is why withholding credit cannot lock a connection up as long
as the receiver's budget is above two messages.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable

from tessera.frames import codec
from tessera.frames.codec import MAX_CHUNK_BYTES, Buffer, FrameError

_JOIN_BYTES = 16 * 1024
"""Up to here one joined write is cheaper than two buffers."""


class _Outgoing:
    __slots__ = ("body", "done", "head", "sent", "started", "stream")

    def __init__(self, stream: int, head: Callable[[int], bytes], body: Buffer, done: Callable[[], None] | None) -> None:
        self.stream = stream
        self.head = head
        self.body = memoryview(body)
        self.done = done
        self.sent = 0
        self.started = False


class MessageSender:
    """One direction of a connection. `window` counts chunk bytes that may still be sent; frames without chunks need none."""

    def __init__(self, transport: asyncio.WriteTransport, kind: int) -> None:
        self._transport = transport
        self._kind = kind
        self._window = 0
        self._paused = False
        self._small: deque[_Outgoing] = deque()
        self._large: deque[_Outgoing] = deque()
        self._large_turn = False

    def grant(self, more: int) -> None:
        self._window += more
        self._pump()

    def pause(self) -> None:
        self._paused = True

    def resume(self) -> None:
        self._paused = False
        self._pump()

    def send(self, stream: int, head: Callable[[int], bytes], body: Buffer, done: Callable[[], None] | None = None) -> None:
        """Sends or queues a message. `head(chunk_bytes)` gives the first frame's headers; `done` comes with the last byte written."""
        size = len(body)
        if size <= MAX_CHUNK_BYTES and size <= self._window and not self._paused and not self._small and not self._large:
            self._window -= size
            self._write(head(size), body)
            if done is not None:
                done()
            return
        (self._small if size <= MAX_CHUNK_BYTES else self._large).append(_Outgoing(stream, head, body, done))
        self._pump()

    def drop(self, stream: int) -> bool:
        """Forgets what of a stream is not sent yet. False when nothing of it had been sent, so that the peer knows nothing of it."""
        for queue in (self._small, self._large):
            for item in queue:
                if item.stream == stream:
                    queue.remove(item)
                    if item.done is not None:
                        item.done()
                    return item.started
        return True

    def _pump(self) -> None:
        while (self._small or self._large) and not self._paused:
            take_large = bool(self._large) and (self._large_turn or not self._small)
            self._large_turn = not take_large
            queue = self._large if take_large else self._small
            item = queue[0]
            left = len(item.body) - item.sent
            if left and self._window <= 0:
                return
            chunk = min(left, MAX_CHUNK_BYTES, self._window) if left else 0
            last = chunk == left
            head = codec.chunk_frame_head(self._kind, item.stream, chunk, last) if item.started else item.head(chunk)
            item.started = True
            self._window -= chunk
            piece = item.body[item.sent : item.sent + chunk]
            item.sent += chunk
            if last:
                queue.popleft()
            self._write(head, piece)
            if last and item.done is not None:
                item.done()

    def _write(self, head: bytes, chunk: Buffer) -> None:
        if len(chunk) <= _JOIN_BYTES:
            self._transport.write(head + chunk)
        else:
            self._transport.writelines((head, chunk))


class Incoming:
    """A message whose chunks still arrive. A one-chunk message keeps the view it came in."""

    __slots__ = ("_buffer", "_filled", "body_bytes")

    def __init__(self, body_bytes: int) -> None:
        self.body_bytes = body_bytes
        self._buffer: bytearray | None = None
        self._filled = 0

    @property
    def received_bytes(self) -> int:
        return self._filled

    def take(self, chunk: Buffer, last: bool, keep: bool = True) -> Buffer | None:
        """The whole body when `last`, else None. With `keep` False the bytes are counted and thrown away.

        Raises:
            FrameError: more or fewer bytes than the message header said.
        """
        size = len(chunk)
        if self._filled + size > self.body_bytes or (last and self._filled + size != self.body_bytes):
            raise FrameError(f"message body of {self._filled + size} bytes: its header said {self.body_bytes}")
        if last and self._filled == 0:
            self._filled = size
            return chunk
        if keep:
            if self._buffer is None:
                self._buffer = bytearray(self.body_bytes)
            self._buffer[self._filled : self._filled + size] = chunk
        self._filled += size
        if not last:
            return None
        return memoryview(self._buffer) if self._buffer is not None else b""


class CreditGiver:
    """The receiving end of flow control. `held` are bytes taken in and not answered yet; beyond `budget` no credit goes out."""

    def __init__(self, transport: asyncio.WriteTransport, window: int, budget: int | None) -> None:
        self._transport = transport
        self._granted = window
        self._budget = budget
        self._threshold = max(1, window // 4)
        self._owed = 0
        self.held = 0

    def took(self, chunk_bytes: int) -> None:
        """Raises FrameError when the peer sent more than it had credit for."""
        self._granted -= chunk_bytes
        if self._granted < 0:
            raise FrameError(f"{-self._granted} bytes beyond the credit given")
        self._owed += chunk_bytes
        self.settle()

    def release(self, held_bytes: int) -> None:
        self.held -= held_bytes
        self.settle()

    def settle(self) -> None:
        """Gives back what is owed where it is worth a frame and the budget allows it."""
        if self._owed >= self._threshold and (self._budget is None or self.held <= self._budget):
            more, self._owed = self._owed, 0
            self._granted += more
            if not self._transport.is_closing():
                self._transport.write(codec.encode_credit(more))
