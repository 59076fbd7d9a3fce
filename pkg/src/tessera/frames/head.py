"""What a gateway reads of a ModelInferRequest: where it goes, and how many items it has. The tensors are passed over."""

from __future__ import annotations

from dataclasses import dataclass

from tessera.domain.errors import InvalidInput
from tessera.frames import protowire as wire
from tessera.frames.codec import Buffer
from tessera.frames.openinference import Addressed, read_address

MAX_HEAD_FIELDS = 4096
MAX_HEAD_PARAMETER_BYTES = 64 << 10
MAX_HEAD_NAME_BYTES = 512
"""Of the model's name, and of the version: about twice what the longest name, version and variant come to. Who is refused is remembered."""

_NAMES = {1: "model_name", 2: "model_version"}
_LAST_NAME_TAG = 0x12
_TENSOR_TAGS = (0x32, 0x3A)
"""Of outputs and raw_input_contents, which a head passes over."""
MAX_ITEMS = 1 << 20
SHAPE_WITHIN_BYTES = 256


@dataclass(slots=True)
class InferRequestHead(Addressed):
    """`items`: the first dimension of the first input, 1 where that has none; whether the input holds them, the runtime checks."""

    items: int = 1


def parse_head(data: Buffer) -> InferRequestHead:
    """Reads name, version, id and parameters of a ModelInferRequest and how many items it has, and skips the rest.

    What it costs is bounded, whatever a stranger sends: at most `MAX_HEAD_FIELDS` fields of the message itself (an input, a parameter,
    a piece of raw contents is one), `MAX_HEAD_NAME_BYTES` of name and of version, and `MAX_HEAD_PARAMETER_BYTES` of parameters.

    Raises:
        InvalidInput: as `parse_request`, as far as it reads; or more than these.
    """
    plain = _plain_head(data)
    if plain is not None:
        return plain
    head = InferRequestHead(items=0)
    parameter_bytes = 0
    for number, kind, value in wire.fields(memoryview(data), "ModelInferRequest", wire.FieldLimit(MAX_HEAD_FIELDS)):
        if number == 5 and kind == wire.LENGTH and not head.items:
            assert isinstance(value, memoryview)
            head.items = _items(value[:SHAPE_WITHIN_BYTES])
        if kind == wire.LENGTH and number <= 4:
            assert isinstance(value, memoryview)
            if number == 4:
                parameter_bytes += len(value)
                if parameter_bytes > MAX_HEAD_PARAMETER_BYTES:
                    raise InvalidInput("parameters bytes", parameter_bytes, f"at most {MAX_HEAD_PARAMETER_BYTES}")
            elif number in _NAMES and len(value) > MAX_HEAD_NAME_BYTES:
                shown = str(value[:40], "utf-8", "replace") + "..."
                raise InvalidInput(_NAMES[number], shown, f"at most {MAX_HEAD_NAME_BYTES} bytes, got {len(value)}")
            read_address(head, number, value)
    head.items = head.items or 1
    return head


def _plain_head(data: Buffer) -> InferRequestHead | None:
    """The head of a message that is written as nearly all are: no parameters, nothing unknown. None leaves it to the whole reader, which
    knows what is wrong with it if anything is; that one takes three times as long.
    """
    name = version = request_id = ""
    items = 0
    at, end, left = 0, len(data), MAX_HEAD_FIELDS
    try:
        while at < end and left:
            left -= 1
            tag, length = data[at], data[at + 1]
            at += 2
            if length > 127:
                length, at = wire.read_varint(data, at - 1, "")
                if length > MAX_HEAD_NAME_BYTES and tag <= _LAST_NAME_TAG:
                    return None
            stop = at + length
            if tag == 0x0A:
                name = str(data[at:stop], "utf-8")
            elif tag == 0x12:
                version = str(data[at:stop], "utf-8")
            elif tag == 0x1A:
                request_id = str(data[at:stop], "utf-8")
            elif tag == 0x2A:
                items = items or _items(data[at : min(stop, at + SHAPE_WITHIN_BYTES)])
            elif tag not in _TENSOR_TAGS:
                return None
            at = stop
    except (IndexError, UnicodeDecodeError, InvalidInput):
        return None
    return InferRequestHead(name, version, request_id, {}, items or 1) if at == end else None


def _items(data: Buffer) -> int:
    """The first dimension of an input as it stands in nearly all: the shape behind at most a name and a datatype, packed. 1 where it does
    not stand there, or is none."""
    at = 0
    try:
        while True:
            tag, length = data[at], data[at + 1]
            at += 2
            if length > 127:
                length, at = wire.read_varint(data, at - 1, "")
            if tag == 0x1A:
                first = data[at]
                if first > 127:
                    first, _ = wire.read_varint(data, at, "")
                return first if length and 0 < first < MAX_ITEMS else 1
            if tag not in (0x0A, 0x12):
                break
            at += length
    except (IndexError, InvalidInput):  # the runtime says what is wrong with it
        pass
    return 1
