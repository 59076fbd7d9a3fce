"""Frames out of a socket that is read into memory given by us: what a large payload costs is the kernel's copy, and no second one."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

from tessera.frames.codec import FLAG_LAST, GOAWAY, HEADER_BYTES, MAX_PAYLOAD_BYTES, Buffer, Frame, check_header, unpack_header

_SCRATCH_BYTES = 64 * 1024
LONG_PAYLOAD_BYTES = _SCRATCH_BYTES // 2
"""From here on a payload that is not there as a whole is not collected in the scratch but read to its place."""


Place = tuple[memoryview, object]
"""Memory, and what it lives as long as."""


class FrameSink(Protocol):
    """Whose frames they are. `data[start:stop]` is lent until the call returns."""

    def on_frame(self, kind: int, flags: int, stream: int, data: memoryview, start: int, stop: int) -> None:
        """A frame with the payload data[start:stop]."""
        ...

    def place(self, kind: int, stream: int, payload_bytes: int, data: memoryview, start: int, stop: int) -> Place | None:
        """A long payload has begun with data[start:stop]: where its last part goes, all of it behind a message header, or None while
        there is too little to say."""
        ...

    def placed(self, kind: int, flags: int, stream: int, size: int) -> None:
        """That memory is filled."""
        ...


class FrameReader:
    """For `asyncio.BufferedProtocol`: `buffer()` is where the next bytes go, `advance(n)` hands on what they completed."""

    def __init__(self, sink: FrameSink, max_payload: int = MAX_PAYLOAD_BYTES) -> None:
        self._sink = sink
        self._max = max_payload
        self._view = memoryview(bytearray(_SCRATCH_BYTES))
        self._start = 0
        self._end = 0
        self._limit = _SCRATCH_BYTES
        self._open: tuple[int, int, int] = (0, 0, 0)
        self._target: memoryview | None = None
        self._owner: object = None
        self._filled = 0

    def buffer(self) -> memoryview:
        """Never empty."""
        if self._target is not None:
            return self._target[self._filled :]
        return self._view[self._end : self._limit]

    def advance(self, count: int) -> None:
        """`count` bytes were written to the start of `buffer()`.

        Raises:
            FrameError: what came is no frame, or the sink's; the stream has no meaning after that.
        """
        if self._target is not None:
            self._filled += count
            if self._filled == len(self._target):
                self._end_payload(self._target)
            return
        data, sink = self._view, self._sink
        at, end = self._start, self._end + count
        self._limit = _SCRATCH_BYTES
        while end - at >= HEADER_BYTES:
            length, kind, flags, zero, stream = unpack_header(data, at)
            if kind > GOAWAY or zero or flags > FLAG_LAST or length > self._max:
                check_header(length, kind, flags, zero, self._max)
            start = at + HEADER_BYTES
            stop = start + length
            if stop <= end:
                sink.on_frame(kind, flags, stream, data, start, stop)
                at = stop
                continue
            if length >= LONG_PAYLOAD_BYTES:
                place = sink.place(kind, stream, length, data, start, end)
                if place is not None:
                    self._start = self._end = 0
                    target, self._owner = place
                    self._begin_payload((kind, flags, stream), target, start + length - len(target), end)
                    return
            break
        self._keep(at, end)

    def _begin_payload(self, head: tuple[int, int, int], target: memoryview, start: int, end: int) -> None:
        """The rest of a long payload goes straight to its place."""
        self._open, self._target = head, target
        self._filled = end - start
        target[: self._filled] = self._view[start:end]

    def _end_payload(self, target: memoryview) -> None:
        kind, flags, stream = self._open
        self._target = None
        if not flags & FLAG_LAST:
            # Another chunk is likely next: only its header is read to here, so that it goes to its place as a whole.
            self._limit = HEADER_BYTES
        self._sink.placed(kind, flags, stream, len(target))
        self._owner = None

    def _keep(self, at: int, end: int) -> None:
        """Moves an incomplete frame to the front where it would not fit behind."""
        if at == end:
            self._start = self._end = 0
        elif at > _SCRATCH_BYTES // 4:
            rest = bytes(self._view[at:end])
            self._view[: len(rest)] = rest
            self._start, self._end = 0, len(rest)
        else:
            self._start, self._end = at, end


class FrameDecoder:
    """Whole frames from bytes that were read already, for tools and tests."""

    def __init__(self, max_payload: int = MAX_PAYLOAD_BYTES) -> None:
        self.reader = FrameReader(self, max_payload)
        self.frames: list[Frame] = []
        self._payload = bytearray()

    def feed(self, data: Buffer) -> Iterator[Frame]:
        """Frames that `data` completes, in order. Consume it fully before feeding again.

        Raises:
            FrameError: as `FrameReader.advance`.
        """
        view = memoryview(data)
        while view:
            buffer = self.reader.buffer()
            count = min(len(buffer), len(view))
            buffer[:count] = view[:count]
            view = view[count:]
            try:
                self.reader.advance(count)
            finally:
                found, self.frames = self.frames, []
                yield from found

    def on_frame(self, kind: int, flags: int, stream: int, data: memoryview, start: int, stop: int) -> None:
        self.frames.append(Frame(kind, flags, stream, bytes(data[start:stop])))

    def place(self, kind: int, stream: int, payload_bytes: int, data: memoryview, start: int, stop: int) -> Place | None:
        self._payload = bytearray(payload_bytes)
        return memoryview(self._payload), self._payload

    def placed(self, kind: int, flags: int, stream: int, size: int) -> None:
        self.frames.append(Frame(kind, flags, stream, self._payload))
