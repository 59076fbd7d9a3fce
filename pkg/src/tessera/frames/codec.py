"""Bytes to frames and back. Pure: no sockets, no clocks.

A frame is u32 LE payload length, u8 type, u8 flags, u16 zero, u32 LE stream id, payload. All integers are little-endian.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from enum import IntEnum
from typing import NamedTuple

from tessera.domain.errors import TesseraError, WrongGeneration, error_of

MAGIC = b"TSRA"
VERSION = 1
MAX_CHUNK_BYTES = 256 * 1024
HEADER_BYTES = 12
MAX_PAYLOAD_BYTES = MAX_CHUNK_BYTES + 64
"""A chunk and the longest message header before it."""
FLAG_LAST = 1
MAX_TARGET_BYTES = 255
MAX_REASON_BYTES = 1024
DEFAULT_WINDOW_BYTES = 8 * 1024 * 1024
DEFAULT_MAX_MESSAGE_BYTES = 64 * 1024 * 1024 + 64 * 1024
"""64 MiB of tensor, names and parameters beside it: what a gateway takes from its clients as well (`tessera.rpc`)."""

Buffer = bytes | bytearray | memoryview

_HEADER = struct.Struct("<IBBHI")
_HELLO = struct.Struct("<4sHHIIH")
_REQUEST = struct.Struct("<QQ16s8sB3xI")
_RESPONSE = struct.Struct("<HHIIII")
_CREDIT = struct.Struct("<I")
_REQUEST_FRAME = struct.Struct("<IBBHIQQ16s8sB3xI")
_RESPONSE_FRAME = struct.Struct("<IBBHIHHIIII")
"""A frame header and a message header as one, for messages of one frame: nearly all there are."""

REQUEST_HEADER_BYTES = _REQUEST_BYTES = _REQUEST.size
RESPONSE_HEADER_BYTES = _RESPONSE_BYTES = _RESPONSE.size
_U32 = 0xFFFFFFFF
_U64 = 0xFFFFFFFFFFFFFFFF


class FrameType(IntEnum):
    HELLO = 0
    REQUEST = 1
    RESPONSE = 2
    CANCEL = 3
    CREDIT = 4
    GOAWAY = 5


HELLO, REQUEST, RESPONSE, CANCEL, CREDIT, GOAWAY = (int(kind) for kind in FrameType)


class Status(IntEnum):
    OK = 0
    ERROR = 1
    WRONG_GENERATION = 2


class FrameError(Exception):
    """The peer sent something that is not a frame, or not one that may come now; the connection ends with the message as reason."""


class Frame(NamedTuple):
    type: int
    flags: int
    stream: int
    payload: Buffer


@dataclass(frozen=True, slots=True)
class Hello:
    """What each side sends first. `window_bytes`: how many chunk bytes the other may send before the first CREDIT."""

    target: str
    window_bytes: int = DEFAULT_WINDOW_BYTES
    max_message_bytes: int = DEFAULT_MAX_MESSAGE_BYTES
    version: int = VERSION


class RequestHeader(NamedTuple):
    """`budget_us` is the time that remains when the frame is sent; trace id 16 bytes, span id 8 bytes, flags the W3C trace flags."""

    generation: int
    budget_us: int
    trace_id: bytes = bytes(16)
    span_id: bytes = bytes(8)
    flags: int = 0


class FrameResponse(NamedTuple):
    """`body`: a ModelInferResponse, or for an error what `encode_error` wrote. Times in microseconds; `opening_us`: for how long it waited
    while its instance was being opened, which is no part of `queue_us`."""

    status: int
    batch_size: int = 0
    queue_us: int = 0
    opening_us: int = 0
    run_us: int = 0
    body: Buffer = b""

    def error(self) -> TesseraError | None:
        """The domain error that the body holds, None where the status is ok."""
        if self.status == Status.OK:
            return None
        if self.status == Status.WRONG_GENERATION and not self.body:
            return WrongGeneration("the instance has another generation")
        return decode_error(self.body)

    @staticmethod
    def of_error(error: TesseraError) -> FrameResponse:
        status = Status.WRONG_GENERATION if isinstance(error, WrongGeneration) else Status.ERROR
        return FrameResponse(int(status), body=encode_error(error))


def encode_frame(kind: int, stream: int, payload: Buffer = b"", flags: int = 0) -> bytes:
    return _HEADER.pack(len(payload), kind, flags, 0, stream) + payload


def encode_hello(hello: Hello) -> bytes:
    """Raises FrameError when the target is too long."""
    target = hello.target.encode()
    if len(target) > MAX_TARGET_BYTES:
        raise FrameError(f"target of {len(target)} bytes: at most {MAX_TARGET_BYTES}")
    payload = _HELLO.pack(MAGIC, hello.version, 0, hello.window_bytes & _U32, hello.max_message_bytes & _U32, len(target)) + target
    return encode_frame(HELLO, 0, payload)


def decode_hello(payload: Buffer) -> Hello:
    """Raises FrameError: bad magic, another version, a length that does not fit."""
    if len(payload) < _HELLO.size:
        raise FrameError(f"hello of {len(payload)} bytes: at least {_HELLO.size}")
    magic, version, _, window, max_message, target_length = _HELLO.unpack_from(payload)
    if magic != MAGIC:
        raise FrameError(f"hello starts with {magic!r}: must be {MAGIC!r}")
    if version != VERSION:
        raise FrameError(f"frames version {version}: this side speaks version {VERSION}")
    if len(payload) != _HELLO.size + target_length or target_length > MAX_TARGET_BYTES:
        raise FrameError(f"hello target of {target_length} bytes in a payload of {len(payload)}")
    return Hello(_text(payload[_HELLO.size :], "hello target"), window, max_message, version)


def peek_hello(data: Buffer) -> tuple[Hello, int] | None:
    """The hello at the start of a byte stream and how many bytes it takes, or None while it is incomplete; for relays.

    Raises:
        FrameError: the stream does not start with a hello of this version.
    """
    if len(data) < HEADER_BYTES:
        return None
    length, kind, _, _, _ = _HEADER.unpack_from(data)
    if kind != HELLO:
        raise FrameError(f"first frame has type {kind}: must be HELLO")
    if length > _HELLO.size + MAX_TARGET_BYTES:
        raise FrameError(f"hello of {length} bytes: at most {_HELLO.size + MAX_TARGET_BYTES}")
    end = HEADER_BYTES + length
    return (decode_hello(data[HEADER_BYTES:end]), end) if len(data) >= end else None


def encode_credit(bytes_more: int) -> bytes:
    return _HEADER.pack(4, CREDIT, 0, 0, 0) + _CREDIT.pack(bytes_more)


def decode_credit(payload: Buffer) -> int:
    if len(payload) != _CREDIT.size:
        raise FrameError(f"credit of {len(payload)} bytes: must be {_CREDIT.size}")
    return int(_CREDIT.unpack(payload)[0])


def encode_goaway(reason: str) -> bytes:
    return encode_frame(GOAWAY, 0, reason.encode()[:MAX_REASON_BYTES])


def decode_goaway(payload: Buffer) -> str:
    return bytes(payload[:MAX_REASON_BYTES]).decode(errors="replace")


def encode_cancel(stream: int) -> bytes:
    return _HEADER.pack(0, CANCEL, 0, 0, stream)


def request_header(header: RequestHeader, body_bytes: int) -> bytes:
    """What stands before the first chunk of a request."""
    generation, budget_us, trace_id, span_id, flags = header
    return _REQUEST.pack(generation, min(max(budget_us, 0), _U64), trace_id, span_id, flags, body_bytes)


def response_header(response: FrameResponse, body_bytes: int) -> bytes:
    """What stands before the first chunk of an answer."""
    status, batch_size, queue_us, opening_us, run_us, _ = response
    return _RESPONSE.pack(status, batch_size, min(queue_us, _U32), min(opening_us, _U32), min(run_us, _U32), body_bytes)


def whole_request_head(stream: int, header: RequestHeader, body_bytes: int) -> bytes:
    """All that stands before the body of a request that is one frame."""
    generation, budget_us, trace_id, span_id, flags = header
    if not 0 <= budget_us <= _U64:
        budget_us = min(max(budget_us, 0), _U64)
    return _REQUEST_FRAME.pack(
        _REQUEST_BYTES + body_bytes, REQUEST, FLAG_LAST, 0, stream, generation, budget_us, trace_id, span_id, flags, body_bytes
    )


def whole_response_head(stream: int, response: FrameResponse, body_bytes: int) -> bytes:
    """All that stands before the body of an answer that is one frame."""
    status, batch_size, queue_us, opening_us, run_us, _ = response
    if queue_us > _U32 or opening_us > _U32 or run_us > _U32:
        queue_us, opening_us, run_us = min(queue_us, _U32), min(opening_us, _U32), min(run_us, _U32)
    return _RESPONSE_FRAME.pack(
        _RESPONSE_BYTES + body_bytes, RESPONSE, FLAG_LAST, 0, stream, status, batch_size, queue_us, opening_us, run_us, body_bytes
    )


def frame_head(kind: int, stream: int, payload_bytes: int, last: bool) -> bytes:
    """Frame header of a chunk, with the message header before it where `payload_bytes` counts that too."""
    return _HEADER.pack(payload_bytes, kind, FLAG_LAST if last else 0, 0, stream)


def decode_request(data: Buffer, start: int, stop: int) -> tuple[RequestHeader, int]:
    """Header and body length in bytes of the payload data[start:stop]; the first chunk follows `REQUEST_HEADER_BYTES` on."""
    if stop - start < _REQUEST_BYTES:
        raise FrameError(f"request header of {stop - start} bytes: must be {_REQUEST_BYTES}")
    generation, budget, trace_id, span_id, flags, body_bytes = _REQUEST.unpack_from(data, start)
    return RequestHeader(generation, budget, trace_id, span_id, flags), body_bytes


def decode_response(data: Buffer, start: int, stop: int) -> tuple[int, int, int, int, int, int]:
    """Status, batch size, then queue, opening and run in us, body length in bytes; the first chunk follows `RESPONSE_HEADER_BYTES` on."""
    if stop - start < _RESPONSE_BYTES:
        raise FrameError(f"response header of {stop - start} bytes: must be {_RESPONSE_BYTES}")
    found: tuple[int, int, int, int, int, int] = _RESPONSE.unpack_from(data, start)
    return found


def encode_error(error: TesseraError) -> bytes:
    """u8 length and kind, then the message."""
    kind = error.kind.encode()
    return bytes((len(kind),)) + kind + str(error).encode()


def decode_error(body: Buffer) -> TesseraError:
    """The domain error of an error body; a malformed body gives `Internal`."""
    data = bytes(body)
    end = 1 + data[0] if data else 0
    if not data or end > len(data):
        return error_of("internal", "error without a kind")
    return error_of(data[1:end].decode(errors="replace"), data[end:].decode(errors="replace"))


unpack_header = _HEADER.unpack_from
"""Payload length, type, flags, zero, stream of the frame header at an offset, as they are; `check_header` says whether they may be."""


def check_header(length: int, kind: int, flags: int, zero: int, max_payload: int) -> None:
    """Raises:
    FrameError: too long a payload, an unknown type, unknown bits.
    """
    if kind > GOAWAY:
        raise FrameError(f"frame type {kind}: must be 0 to {GOAWAY}")
    if zero or flags > FLAG_LAST:
        raise FrameError(f"frame flags {flags:#x} and reserved {zero:#x}: unknown bits are set")
    if length > max_payload:
        raise FrameError(f"frame payload of {length} bytes: at most {max_payload}")


def _text(data: Buffer, what: str) -> str:
    try:
        return bytes(data).decode()
    except UnicodeDecodeError as error:
        raise FrameError(f"{what} is not utf-8") from error
