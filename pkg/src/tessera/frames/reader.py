"""Frames out of a socket that is read into memory given by us: what a large payload costs is the kernel's copy, and no second one."""

from __future__ import annotations

from collections.abc import Iterator

from tessera.frames.codec import HEADER_BYTES, MAX_PAYLOAD_BYTES, Buffer, Frame, parse_header

_SCRATCH_BYTES = 64 * 1024


class FrameReader:
    """For `asyncio.BufferedProtocol`: `buffer()` is where the next bytes go, `advance(n)` says what frames they completed.

    Payloads are memory of their own and stay valid.
    """

    def __init__(self, max_payload: int = MAX_PAYLOAD_BYTES) -> None:
        self._max = max_payload
        self._scratch = bytearray(_SCRATCH_BYTES)
        self._view = memoryview(self._scratch)
        self._start = 0
        self._end = 0
        self._open: tuple[int, int, int] = (0, 0, 0)
        self._payload: memoryview | None = None
        self._filled = 0

    def buffer(self) -> memoryview:
        """Never empty."""
        if self._payload is not None:
            return self._payload[self._filled :]
        return self._view[self._end :]

    def advance(self, count: int) -> list[Frame]:
        """`count` bytes were written to the start of `buffer()`.

        Raises:
            FrameError: what came is no frame; the stream has no meaning after that.
        """
        if self._payload is not None:
            self._filled += count
            if self._filled < len(self._payload):
                return []
            payload, self._payload = self._payload, None
            return [Frame(*self._open, payload)]
        self._end += count
        frames: list[Frame] = []
        at, end = self._start, self._end
        while end - at >= HEADER_BYTES:
            length, kind, flags, stream = parse_header(self._scratch, at, self._max)
            body = at + HEADER_BYTES
            if end - body < length:
                if length >= _SCRATCH_BYTES // 2:
                    self._begin_payload((kind, flags, stream), length, body, end)
                    return frames
                break
            frames.append(Frame(kind, flags, stream, memoryview(bytes(self._view[body : body + length]))))
            at = body + length
        self._keep(at, end)
        return frames

    def _begin_payload(self, head: tuple[int, int, int], length: int, start: int, end: int) -> None:
        """The rest of a large payload goes straight to its place."""
        self._payload = memoryview(bytearray(length))
        self._filled = end - start
        self._payload[: self._filled] = self._view[start:end]
        self._open = head
        self._start = self._end = 0

    def _keep(self, at: int, end: int) -> None:
        """Moves an incomplete frame to the front where it would not fit behind."""
        if at == end:
            self._start = self._end = 0
        elif at > _SCRATCH_BYTES // 4:
            rest = bytes(self._view[at:end])
            self._view[: len(rest)] = rest
            self._start, self._end = 0, len(rest)
        else:
            self._start = at


class FrameDecoder:
    """The same from bytes that were read already, for tools and tests."""

    def __init__(self, max_payload: int = MAX_PAYLOAD_BYTES) -> None:
        self._reader = FrameReader(max_payload)

    def feed(self, data: Buffer) -> Iterator[Frame]:
        """Frames that `data` completes, in order. Consume it fully before feeding again.

        Raises:
            FrameError: as `FrameReader.advance`.
        """
        view = memoryview(data)
        while view:
            buffer = self._reader.buffer()
            count = min(len(buffer), len(view))
            buffer[:count] = view[:count]
            view = view[count:]
            yield from self._reader.advance(count)
