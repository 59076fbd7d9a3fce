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
from tessera.frames.heap import unwritten, unwritten_bytes

_JOIN_BYTES = 64 * 1024
"""Up to here one joined write is cheaper than many buffers."""

_FLUSH_BYTES = 1024 * 1024
"""So much is written without waiting for the end of the loop's turn, to learn whether the socket still takes it."""


class _Outgoing:
    __slots__ = ("body", "done", "header", "sent", "started", "stream")

    def __init__(self, stream: int, header: bytes, body: Buffer, done: Callable[[], None] | None) -> None:
        self.stream = stream
        self.header = header
        self.body = memoryview(body)
        self.done = done
        self.sent = 0
        self.started = False


class MessageSender:
    """One direction of a connection. The window counts chunk bytes that may still be sent; frames without chunks need none.

    Frames are collected and written together after this turn of the event loop: a system call for each, and waking the peer for each,
    is most of what a small message costs.

    Whoever sends a message of one chunk asks `room` (how long it may be to go right away), calls `spend` and `put`; every other message
    goes through `queue`.
    """

    def __init__(self, transport: asyncio.WriteTransport, kind: int) -> None:
        self.room = -1
        self._transport = transport
        self._loop = asyncio.get_running_loop()
        self._kind = kind
        self._window = 0
        self._paused = False
        self._small: deque[_Outgoing] = deque()
        self._large: deque[_Outgoing] = deque()
        self._large_turn = False
        self._out: list[Buffer] = []
        self._out_bytes = 0
        self._flushing = False

    def grant(self, more: int) -> None:
        self._window += more
        self._pump()

    def pause(self) -> None:
        self._paused = True
        self.room = -1

    def resume(self) -> None:
        self._paused = False
        self._pump()

    def spend(self, size: int) -> None:
        """`size` chunk bytes, at most `room`, are about to be put."""
        self._window -= size
        if self._window < MAX_CHUNK_BYTES:
            self.room = self._window

    def put(self, head: bytes, body: Buffer = b"") -> None:
        """One frame as it is, to be written soon and in order."""
        out = self._out
        out.append(head)
        size = len(body)
        if size:
            out.append(body)
        self._out_bytes += size + len(head)
        if not self._flushing:
            self._flushing = True
            self._loop.call_soon(self.flush)

    def cork(self) -> None:
        """Nothing is scheduled until `flush`, which the caller promises to call in this turn."""
        self._flushing = True

    def flush(self) -> None:
        """Writes what was put."""
        self._flushing = False
        out = self._out
        if not out or self._transport.is_closing():
            return
        size, self._out, self._out_bytes = self._out_bytes, [], 0
        if size <= _JOIN_BYTES:
            self._transport.write(b"".join(out))
        else:
            self._transport.writelines(out)

    def queue(self, stream: int, header: bytes, body: Buffer, done: Callable[[], None] | None = None) -> None:
        """Sends a message as the window allows. `header` goes before the first chunk; `done` comes with the last byte."""
        (self._small if len(body) <= MAX_CHUNK_BYTES else self._large).append(_Outgoing(stream, header, body, done))
        self._pump()

    def drop(self, stream: int) -> bool:
        """Forgets what of a stream is not sent yet. False when nothing of it had been sent, so that the peer knows nothing of it."""
        for queue in (self._small, self._large):
            for item in queue:
                if item.stream == stream:
                    queue.remove(item)
                    self._update_room()
                    if item.done is not None:
                        item.done()
                    return item.started
        return True

    def unsent(self) -> set[int]:
        """Streams of messages whose end the transport was not given: whoever receives cannot have seen the whole of any. What the
        transport was given counts as sent, whatever became of it there."""
        found = {item.stream for queue in (self._small, self._large) for item in queue}
        out = iter(self._out)
        for head in out:
            payload_bytes, kind, _, _, stream = codec.unpack_header(head)
            if kind == self._kind:
                found.add(stream)
            if len(head) < codec.HEADER_BYTES + payload_bytes:
                next(out)  # its body
        return found

    def _update_room(self) -> None:
        self.room = -1 if self._paused or self._small or self._large else min(MAX_CHUNK_BYTES, self._window)

    def _pump(self) -> None:
        while (self._small or self._large) and not self._paused:
            take_large = bool(self._large) and (self._large_turn or not self._small)
            self._large_turn = not take_large
            queue = self._large if take_large else self._small
            item = queue[0]
            left = len(item.body) - item.sent
            if left and self._window <= 0:
                break
            chunk = min(left, MAX_CHUNK_BYTES, self._window) if left else 0
            last = chunk == left
            header = b"" if item.started else item.header
            item.started = True
            self._window -= chunk
            piece = item.body[item.sent : item.sent + chunk]
            item.sent += chunk
            if last:
                queue.popleft()
            self.put(codec.frame_head(self._kind, item.stream, len(header) + chunk, last) + header, piece)
            if self._out_bytes >= _FLUSH_BYTES:
                self.flush()
            if last and item.done is not None:
                item.done()
        self._update_room()


class Incoming:
    """A message that comes in more than one piece, put together where it stays. With `keep` False its bytes are only counted; with a
    `suffix` its body becomes `bytes` that end with that."""

    __slots__ = ("_buffer", "_filled", "_suffix", "_whole", "body_bytes", "keep")

    def __init__(self, body_bytes: int, keep: bool = True, suffix: bytes = b"") -> None:
        self.body_bytes = body_bytes
        self.keep = keep
        self._suffix = suffix
        self._buffer: memoryview | None = None
        self._whole: bytes | None = None
        self._filled = 0

    def place(self, size: int) -> memoryview:
        """Where the next `size` bytes go, as long as this object lives; `took` says that they are there.

        Raises:
            FrameError: they are more than the message header said.
        """
        end = self._filled + size
        if end > self.body_bytes:
            raise self._wrong_length(end)
        if not self.keep:
            return memoryview(unwritten(size))
        if self._buffer is None:
            if self._suffix and self.body_bytes:
                self._whole, self._buffer = unwritten_bytes(self.body_bytes + len(self._suffix))
                self._buffer[self.body_bytes :] = self._suffix
            else:
                self._buffer = memoryview(unwritten(self.body_bytes))
        return self._buffer[self._filled : end]

    def took(self, size: int, last: bool) -> Buffer | None:
        """The whole body when `last`, else None.

        Raises:
            FrameError: it is shorter than the message header said.
        """
        self._filled += size
        if not last:
            return None
        if self._filled != self.body_bytes:
            raise self._wrong_length(self._filled)
        return self._whole or self._buffer or self._suffix

    def take(self, data: memoryview, start: int, stop: int, last: bool) -> Buffer | None:
        """As `place` and `took`, of bytes that lie elsewhere."""
        size = stop - start
        target = self.place(size)
        if self.keep:
            target[:] = data[start:stop]
        return self.took(size, last)

    def _wrong_length(self, size: int) -> FrameError:
        return FrameError(f"message body of {size} bytes: its header said {self.body_bytes}")


class CreditGiver:
    """The receiving end of flow control. `held` are bytes taken in and not answered yet; beyond `budget` no credit goes out."""

    def __init__(self, send: Callable[[bytes], None], window: int, budget: int | None) -> None:
        self._send = send
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
        if self._owed >= self._threshold:
            self.settle()

    def release(self, held_bytes: int) -> None:
        self.held -= held_bytes
        if self._owed >= self._threshold:
            self.settle()

    def settle(self) -> None:
        """Gives back what is owed where it is worth a frame and the budget allows it."""
        if self._owed >= self._threshold and (self._budget is None or self.held <= self._budget):
            more, self._owed = self._owed, 0
            self._granted += more
            self._send(codec.encode_credit(more))
