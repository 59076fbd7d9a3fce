"""Open Inference messages read and written by hand: tensors stay views of the request's bytes.

Reads what protobuf reads: unknown fields are skipped, the last of a singular field wins, packed and unpacked numbers are taken
alike. Strings, dicts and small numbers are copied out; `raw_input_contents`, FP32 and FP64 contents and BYTES elements are views.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from tessera.domain.errors import InvalidInput
from tessera.frames import protowire as wire
from tessera.frames.codec import Buffer

ParameterValue = bool | int | float | str | None
"""None: an entry without a value, which protobuf allows."""
Parameters = dict[str, ParameterValue]
ContentValues = list[int] | list[memoryview] | Buffer

_CONTENT_FIELDS = {
    1: "bool_contents", 2: "int_contents", 3: "int64_contents", 4: "uint_contents",
    5: "uint64_contents", 6: "fp32_contents", 7: "fp64_contents", 8: "bytes_contents",
}  # fmt: skip
_CONTENT_NUMBERS = {name: number for number, name in _CONTENT_FIELDS.items()}
_FIXED_WIDTH = {6: 4, 7: 8}
_DOUBLE = struct.Struct("<d")


@dataclass(slots=True)
class InferInput:
    """`contents`: field name of InferTensorContents -> values. Integers as a list, FP32/FP64 as little-endian bytes, BYTES as views."""

    name: str = ""
    datatype: str = ""
    shape: list[int] = field(default_factory=list)
    parameters: Parameters = field(default_factory=dict)
    contents: dict[str, ContentValues] | None = None


@dataclass(slots=True)
class RequestedOutput:
    name: str = ""
    parameters: Parameters = field(default_factory=dict)


@dataclass(slots=True)
class Addressed:
    """What a request says beside its tensors."""

    model_name: str = ""
    model_version: str = ""
    id: str = ""
    parameters: Parameters = field(default_factory=dict)


@dataclass(slots=True)
class InferRequest(Addressed):
    inputs: list[InferInput] = field(default_factory=list)
    outputs: list[RequestedOutput] = field(default_factory=list)
    raw_input_contents: list[memoryview] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class OutputTensor:
    """One answer. `data`: raw bytes (little-endian; BYTES with u32 lengths), or one field of InferTensorContents and its values."""

    name: str
    datatype: str
    shape: Sequence[int]
    data: Buffer | tuple[str, ContentValues]
    parameters: Mapping[str, bool | int | float | str] = field(default_factory=dict)


def parse_request(data: Buffer) -> InferRequest:
    """Reads a ModelInferRequest; the views in it keep `data` alive.

    Raises:
        InvalidInput: `data` is no such message; names the field.
    """
    request = InferRequest()
    for number, kind, value in wire.fields(memoryview(data), "ModelInferRequest"):
        if kind != wire.LENGTH:
            continue
        assert isinstance(value, memoryview)
        if number == 7:
            request.raw_input_contents.append(value)
        elif number == 5:
            request.inputs.append(_input(value))
        elif number == 6:
            request.outputs.append(_requested(value))
        else:
            read_address(request, number, value)
    return request


def read_address(into: Addressed, number: int, value: memoryview) -> None:
    """Takes one field of a ModelInferRequest, of those that say where it goes. Raises: InvalidInput."""
    if number == 1:
        into.model_name = wire.text(value, "model_name")
    elif number == 2:
        into.model_version = wire.text(value, "model_version")
    elif number == 3:
        into.id = wire.text(value, "id")
    elif number == 4:
        _parameter_entry(value, into.parameters)


def _input(data: memoryview) -> InferInput:
    found = InferInput()
    for number, kind, value in wire.fields(data, "inputs"):
        if number == 3 and kind in (wire.LENGTH, wire.VARINT):
            found.shape.extend(wire.signed64(item) for item in wire.varints(kind, value, "inputs.shape"))
        elif kind != wire.LENGTH:
            continue
        else:
            assert isinstance(value, memoryview)
            if number == 1:
                found.name = wire.text(value, "inputs.name")
            elif number == 2:
                found.datatype = wire.text(value, "inputs.datatype")
            elif number == 4:
                _parameter_entry(value, found.parameters)
            elif number == 5:
                found.contents = found.contents if found.contents is not None else {}
                _contents(value, found.contents)
    return found


def _requested(data: memoryview) -> RequestedOutput:
    found = RequestedOutput()
    for number, kind, value in wire.fields(data, "outputs"):
        if kind == wire.LENGTH and number == 1:
            assert isinstance(value, memoryview)
            found.name = wire.text(value, "outputs.name")
        elif kind == wire.LENGTH and number == 2:
            assert isinstance(value, memoryview)
            _parameter_entry(value, found.parameters)
    return found


def _contents(data: memoryview, into: dict[str, ContentValues]) -> None:
    """Adds the values of one InferTensorContents; a field that is there but empty leaves no trace, as in protobuf."""
    for number, kind, value in wire.fields(data, "contents"):
        name = _CONTENT_FIELDS.get(number)
        if name is None:
            continue
        if number == 8:
            if kind == wire.LENGTH:
                elements = into.setdefault(name, [])
                assert isinstance(elements, list)
                elements.append(value)  # type: ignore[arg-type]
        elif number in _FIXED_WIDTH:
            _fixed_contents(number, kind, value, into)
        elif kind in (wire.LENGTH, wire.VARINT):
            numbers = [_narrow(number, item) for item in wire.varints(kind, value, f"contents.{name}")]
            if numbers:
                before = into.setdefault(name, [])
                assert isinstance(before, list)
                before.extend(numbers)  # type: ignore[arg-type]


def _fixed_contents(number: int, kind: int, value: int | memoryview, into: dict[str, ContentValues]) -> None:
    name, width = _CONTENT_FIELDS[number], _FIXED_WIDTH[number]
    if kind == (wire.FIXED32 if width == 4 else wire.FIXED64):
        assert isinstance(value, int)
        piece: Buffer = value.to_bytes(width, "little")
    elif kind == wire.LENGTH:
        assert isinstance(value, memoryview)
        if len(value) % width:
            raise InvalidInput(f"contents.{name}", None, f"{len(value)} bytes: must be a multiple of {width}")
        piece = value
    else:
        return
    if name not in into:
        if len(piece):
            into[name] = piece
        return
    before = into[name]
    assert not isinstance(before, list)
    into[name] = b"".join((before, piece))


def _narrow(number: int, value: int) -> int:
    if number == 1:
        return int(value != 0)
    if number == 2:
        return ((value & 0xFFFFFFFF) ^ 0x80000000) - 0x80000000
    if number == 3:
        return wire.signed64(value)
    return value & 0xFFFFFFFF if number == 4 else value


def _parameter_entry(data: memoryview, into: Parameters) -> None:
    """An entry with a field that an entry does not have is none: protobuf keeps it among the unknown fields."""
    key = ""
    chosen: ParameterValue = None
    foreign = False
    for number, kind, value in wire.fields(data, "parameters"):
        if kind != wire.LENGTH or number > 2:
            foreign = True
            continue
        assert isinstance(value, memoryview)
        if number == 1:
            key = wire.text(value, "parameters key")
        elif number == 2:
            chosen = _parameter(value, chosen)
    if not foreign:
        into[key] = chosen


def _parameter(data: memoryview, chosen: ParameterValue) -> ParameterValue:
    for number, kind, value in wire.fields(data, "parameters"):
        if number == 3 and kind == wire.LENGTH:
            assert isinstance(value, memoryview)
            chosen = wire.text(value, "parameters value")
        elif isinstance(value, int):
            if kind == wire.VARINT and number == 1:
                chosen = value != 0
            elif kind == wire.VARINT and number == 2:
                chosen = wire.signed64(value)
            elif kind == wire.VARINT and number == 5:
                chosen = value
            elif kind == wire.FIXED64 and number == 4:
                chosen = _DOUBLE.unpack(value.to_bytes(8, "little"))[0]
    return chosen


def encode_parameters(parameters: Mapping[str, bool | int | float | str]) -> bytes:
    """Field 4 of ModelInferRequest and ModelInferResponse. Appending it to an encoded message adds the entries (the last of a key wins).

    Raises:
        InvalidInput: an integer beyond 64 bits.
    """
    return _parameters(0x22, parameters)


def _parameters(tag: int, parameters: Mapping[str, bool | int | float | str]) -> bytes:
    parts: list[Buffer] = []
    for key, value in parameters.items():
        choice = _parameter_choice(key, value)
        name = key.encode()
        entry = b"".join((b"\x0a", wire.varint(len(name)), name, b"\x12", wire.varint(len(choice)), choice))
        parts += (bytes((tag,)), wire.varint(len(entry)), entry)
    return b"".join(parts)


def _parameter_choice(key: str, value: bool | int | float | str) -> bytes:
    if isinstance(value, bool):
        return b"\x08\x01" if value else b"\x08\x00"
    if isinstance(value, int):
        if not -(1 << 63) <= value < 1 << 64:
            raise InvalidInput(f"parameters {key}", value, "must fit into 64 bits")
        return (b"\x10" if value < 1 << 63 else b"\x28") + wire.varint(value)
    if isinstance(value, float):
        return b"\x21" + _DOUBLE.pack(value)
    text = value.encode()
    return b"\x1a" + wire.varint(len(text)) + text


def encode_response(
    model_name: str,
    model_version: str,
    request_id: str,
    outputs: Sequence[OutputTensor],
    parameters: Mapping[str, bool | int | float | str] | None = None,
) -> bytes:
    """A ModelInferResponse. Outputs are all raw or all typed, as the protocol wants it; tensors are copied once."""
    parts: list[Buffer] = []
    for tag, text in ((0x0A, model_name), (0x12, model_version), (0x1A, request_id)):
        if text:
            _put(parts, tag, text.encode())
    if parameters:
        parts.append(encode_parameters(parameters))
    raw: list[Buffer] = []
    for output in outputs:
        _put(parts, 0x2A, _output(output))
        if not isinstance(output.data, tuple):
            raw.append(output.data)
    for data in raw:
        _put(parts, 0x32, data)
    return b"".join(parts)


def _output(output: OutputTensor) -> bytes:
    parts: list[Buffer] = []
    _put(parts, 0x0A, output.name.encode())
    _put(parts, 0x12, output.datatype.encode())
    if output.shape:
        _put(parts, 0x1A, b"".join(map(wire.varint, output.shape)))
    if output.parameters:
        parts.append(_parameters(0x22, output.parameters))
    if isinstance(output.data, tuple):
        _put(parts, 0x2A, _typed(*output.data))
    return b"".join(parts)


def _typed(name: str, values: ContentValues) -> bytes:
    number = _CONTENT_NUMBERS[name]
    tag = number << 3 | wire.LENGTH
    parts: list[Buffer] = []
    if isinstance(values, list):
        if number == 8:
            for element in values:
                _put(parts, tag, element)  # type: ignore[arg-type]
        elif values:
            _put(parts, tag, b"".join(map(wire.varint, values)))  # type: ignore[arg-type]
    elif len(values):
        _put(parts, tag, values)
    return b"".join(parts)


def _put(parts: list[Buffer], tag: int, data: Buffer) -> None:
    parts.append(bytes((tag,)))
    parts.append(wire.varint(len(data)))
    parts.append(data)
