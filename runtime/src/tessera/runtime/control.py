"""The control channel: u32 little-endian length, then a JSON object. The same words for zygotes and runtimes.

Requests `{"id": n, "op": "...", ...}`; replies `{"id": n, "ok": {...}}` or `{"id": n, "error": {"kind", "message"}}`; events
`{"event": "...", ...}` without an id, or with that of the request that they come before the reply of. Pure: no sockets.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator, Mapping
from typing import Any

import msgspec

from tessera.domain.errors import InvalidInput, TesseraError, error_of
from tessera.domain.ids import Generation

MAX_MESSAGE_BYTES = 16 * 1024 * 1024

Message = dict[str, Any]

_LENGTH = struct.Struct("<I")
_GENERATION = re.compile(r"[0-9a-f]{16}")
_ENCODER = msgspec.json.Encoder()
_DECODER = msgspec.json.Decoder(dict[str, Any])


def encode(message: Mapping[str, Any]) -> bytes:
    """Raises InvalidInput when the message is longer than the other side takes."""
    data = _ENCODER.encode(message)
    if len(data) > MAX_MESSAGE_BYTES:
        raise InvalidInput("control message", None, f"{len(data)} bytes: at most {MAX_MESSAGE_BYTES}")
    return _LENGTH.pack(len(data)) + data


def reply(request_id: object, answer: Mapping[str, Any]) -> bytes:
    return encode({"id": request_id, "ok": answer})


def refusal(request_id: object, error: TesseraError) -> bytes:
    return encode({"id": request_id, "error": {"kind": error.kind, "message": str(error)}})


def answer_of(message: Mapping[str, Any]) -> Message:
    """The `ok` of a reply.

    Raises:
        TesseraError: the error that the reply carries, as its own class.
        InvalidInput: it is no reply.
    """
    error = message.get("error")
    if isinstance(error, dict):
        raise error_of(str(error.get("kind", "internal")), str(error.get("message", "")))
    answer = message.get("ok")
    if not isinstance(answer, dict):
        raise InvalidInput("control reply", None, "must have `ok` or `error`")
    return answer


class ControlDecoder:
    """Bytes in, messages out."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, data: bytes) -> Iterator[Message]:
        """Messages that `data` completes.

        Raises:
            InvalidInput: too long a message, or one that is no JSON object; the connection has no meaning after that.
        """
        self._buffer += data
        while len(self._buffer) >= _LENGTH.size:
            length = int(_LENGTH.unpack_from(self._buffer)[0])
            if length > MAX_MESSAGE_BYTES:
                raise InvalidInput("control message", None, f"{length} bytes: at most {MAX_MESSAGE_BYTES}")
            end = _LENGTH.size + length
            if len(self._buffer) < end:
                return
            body = bytes(self._buffer[_LENGTH.size : end])
            del self._buffer[:end]
            try:
                yield _DECODER.decode(body)
            except msgspec.MsgspecError as error:
                raise InvalidInput("control message", None, f"must be a JSON object: {error}") from error


def text_field(message: Mapping[str, Any], name: str) -> str:
    """A text that must be there and not be empty.

    Raises:
        InvalidInput: names the field.
    """
    value = message.get(name)
    if not isinstance(value, str) or not value:
        raise InvalidInput(name, value, "must be a text that is not empty")
    return value


def texts_field(message: Mapping[str, Any], name: str) -> list[str]:
    """A list of texts, at least one of them and none empty.

    Raises:
        InvalidInput: names the field.
    """
    value = message.get(name)
    if not isinstance(value, list) or not value or not all(isinstance(each, str) and each for each in value):
        raise InvalidInput(name, value, "must be a list of texts that are not empty")
    return value


def whole_field(message: Mapping[str, Any], name: str, default: int | None = None, minimum: int = 0) -> int:
    """A whole number; without `default` it must be there.

    Raises:
        InvalidInput: names the field, the value and the limit.
    """
    value = message.get(name, default)
    if isinstance(value, bool) or not isinstance(value, int) or value < minimum:
        raise InvalidInput(name, value, f"must be a whole number of at least {minimum}")
    return value


def number_field(message: Mapping[str, Any], name: str, default: float) -> float:
    """A number of at least 0.

    Raises:
        InvalidInput: names the field, the value and the limit.
    """
    value = message.get(name, default)
    if isinstance(value, bool) or not isinstance(value, int | float) or not value >= 0:
        raise InvalidInput(name, value, "must be a number of at least 0")
    return float(value)


def generation_text(generation: int) -> str:
    return f"{generation:016x}"


def generation_field(message: Mapping[str, Any]) -> Generation:
    """The field `generation`, 16 hex digits.

    Raises:
        InvalidInput: it is not that.
    """
    value = message.get("generation")
    if not isinstance(value, str) or not _GENERATION.fullmatch(value):
        raise InvalidInput("generation", value, "must be 16 lowercase hex digits")
    return Generation(int(value, 16))
