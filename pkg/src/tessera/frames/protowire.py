"""The protobuf wire format, as far as reading and writing messages by hand needs it."""

from __future__ import annotations

import struct
from collections.abc import Iterator

from tessera.domain.errors import InvalidInput

VARINT, FIXED64, LENGTH, GROUP, END_GROUP, FIXED32 = range(6)

_MAX_GROUP_DEPTH = 100
_U64 = (1 << 64) - 1
_FIXED64 = struct.Struct("<Q")
_FIXED32 = struct.Struct("<I")
_SMALL = [bytes((number,)) for number in range(128)]


class FieldLimit:
    """How many fields may still be read, of one message or of several together: what a stranger sent may be nothing but fields, two bytes
    each, and every one is a pass of a loop. `advice` ends the refusal: for which whole the limit holds, and what to do.
    """

    __slots__ = ("advice", "left", "limit")

    def __init__(self, limit: int, advice: str = "") -> None:
        self.limit = self.left = limit
        self.advice = advice

    def take(self, count: int, message: str) -> None:
        """Raises: InvalidInput: fewer than `count` are left; names the message."""
        self.left -= count
        if self.left < 0:
            raise self.exceeded(message)

    def exceeded(self, message: str) -> InvalidInput:
        return InvalidInput(f"{message} fields", f"{self.limit + 1} or more", f"at most {self.limit}{self.advice}")


def varint(value: int) -> bytes:
    """Encodes an integer of 64 bits; negative ones as two's complement in ten bytes."""
    if 0 <= value < 128:
        return _SMALL[value]
    value &= _U64
    out = bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    out.append(value)
    return bytes(out)


def signed64(value: int) -> int:
    return value - (1 << 64) if value >> 63 else value


def text(data: memoryview, field: str) -> str:
    """Raises InvalidInput when `data` is not UTF-8."""
    try:
        return str(data, "utf-8")
    except UnicodeDecodeError:
        raise InvalidInput(field, None, "is not UTF-8") from None


def read_varint(data: bytes | bytearray | memoryview, at: int, field: str) -> tuple[int, int]:
    """The value (64 bits, what is beyond is cut off) and the offset behind it."""
    value = shift = 0
    end = len(data)
    while at < end:
        byte = data[at]
        at += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value & _U64, at
        shift += 7
        if shift > 63:
            break
    raise InvalidInput(field, None, f"malformed message: varint cut off or too long at byte {at}")


def varints(kind: int, value: int | memoryview, field: str) -> list[int]:
    """The numbers of a repeated varint field, packed or not."""
    if isinstance(value, int):
        return [value]
    if len(value) and max(value) < 128:
        return list(value)
    numbers, at = [], 0
    while at < len(value):
        number, at = read_varint(value, at, field)
        numbers.append(number)
    return numbers


def fields(data: memoryview, message: str, limit: FieldLimit | None = None) -> Iterator[tuple[int, int, int | memoryview]]:
    """(field number, wire type, value) in order: an unsigned integer for numbers, a view for length-delimited ones; groups are skipped.

    Raises:
        InvalidInput: the bytes are no message; names the message and the offset. Or they are more fields than `limit` has left, those in
            groups among them.
    """
    at, end = 0, len(data)
    while at < end:
        if limit is not None:
            limit.left -= 1
            if limit.left < 0:
                raise limit.exceeded(message)
        tag = data[at]
        if tag < 128:
            at += 1
        else:
            tag, at = _long_tag(data, at, message)
        number, kind = tag >> 3, tag & 7
        if number == 0:
            raise InvalidInput(message, None, f"malformed message: field number 0 at byte {at}")
        if kind == LENGTH:
            if at < end and data[at] < 128:
                length = data[at]
                at += 1
            else:
                length, at = read_varint(data, at, message)
            stop = at + length
            if stop > end:
                raise InvalidInput(message, None, f"malformed message: field {number} of {length} bytes ends {stop - end} bytes behind it")
            yield number, kind, data[at:stop]
            at = stop
        elif kind == VARINT:
            value, at = read_varint(data, at, message)
            yield number, kind, value
        elif kind in (FIXED64, FIXED32):
            code = _FIXED64 if kind == FIXED64 else _FIXED32
            if at + code.size > end:
                raise InvalidInput(message, None, f"malformed message: field {number} is cut off at byte {at}")
            yield number, kind, code.unpack_from(data, at)[0]
            at += code.size
        elif kind == GROUP:
            at = _skip_group(data, at, number, message, 1, limit)
        else:
            raise InvalidInput(message, None, f"malformed message: wire type {kind} of field {number} at byte {at}")


def _long_tag(data: memoryview, at: int, message: str) -> tuple[int, int]:
    start = at
    tag, at = read_varint(data, at, message)
    if at - start > 5 or tag > 0xFFFFFFFF:
        raise InvalidInput(message, None, f"malformed message: field number too large at byte {start}")
    return tag, at


def _skip_group(data: memoryview, at: int, group: int, message: str, depth: int, limit: FieldLimit | None) -> int:
    """The offset behind the end of an unknown group (deprecated, but valid protobuf); its end is no field."""
    if depth > _MAX_GROUP_DEPTH:
        raise InvalidInput(message, None, f"malformed message: groups nested deeper than {_MAX_GROUP_DEPTH}")
    while at < len(data):
        tag, at = _long_tag(data, at, message)
        number, kind = tag >> 3, tag & 7
        if kind == END_GROUP and number == group:
            return at
        if limit is not None:
            limit.take(1, message)
        if number == 0 or kind == END_GROUP or kind > FIXED32:
            break
        if kind == VARINT:
            _, at = read_varint(data, at, message)
        elif kind == LENGTH:
            length, at = read_varint(data, at, message)
            at += length
        elif kind == GROUP:
            at = _skip_group(data, at, number, message, depth + 1, limit)
        else:
            at += 8 if kind == FIXED64 else 4
    raise InvalidInput(message, None, f"malformed message: group {group} does not end")
