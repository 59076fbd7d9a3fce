"""Open Inference messages read and written by hand: tensors stay views of the request's bytes.

Reads what protobuf reads: unknown fields are skipped, the last of a singular field wins, packed and unpacked numbers are taken
alike. Strings, dicts and shapes are copied out; `raw_input_contents` and typed contents are views, which whoever knows the tensors
decodes (`tessera.runtime.contents`).
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
ContentValues = list[bytes] | Buffer
"""BYTES as elements, all others packed: varints, or little-endian FP32 and FP64."""

CONTENT_FIELDS = {
    1: "bool_contents", 2: "int_contents", 3: "int64_contents", 4: "uint_contents",
    5: "uint64_contents", 6: "fp32_contents", 7: "fp64_contents", 8: "bytes_contents",
}  # fmt: skip
"""Of InferTensorContents."""
MAX_REQUEST_FIELDS = 1 << 15
"""Of a request, those of its inputs, outputs and parameters among them, each byte of a shape as one more: eight for each that a head may
have (`tessera.frames.head`). They are read in some 50 ms."""

_CONTENT_NUMBERS = {name: number for number, name in CONTENT_FIELDS.items()}
_DOUBLE = struct.Struct("<d")


@dataclass(slots=True)
class InferInput:
    """`contents`: encoded InferTensorContents, of which nothing was read; protobuf merges them where they are several."""

    name: str = ""
    datatype: str = ""
    shape: list[int] = field(default_factory=list)
    parameters: Parameters = field(default_factory=dict)
    contents: list[memoryview] | None = None


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
    """Reads a ModelInferRequest but for its tensors; the views in it keep `data` alive.

    Raises:
        InvalidInput: `data` is no such message, or has more than `MAX_REQUEST_FIELDS`; names the field. What is wrong within typed contents
            shows when they are decoded.
    """
    request = InferRequest()
    limit = wire.FieldLimit(MAX_REQUEST_FIELDS, " in one request")
    for number, kind, value in wire.fields(memoryview(data), "ModelInferRequest", limit):
        if kind != wire.LENGTH:
            continue
        assert isinstance(value, memoryview)
        if number == 7:
            request.raw_input_contents.append(value)
        elif number == 5:
            request.inputs.append(_input(value, limit))
        elif number == 6:
            request.outputs.append(_requested(value, limit))
        else:
            read_address(request, number, value, limit)
    return request


def read_address(into: Addressed, number: int, value: memoryview, limit: wire.FieldLimit | None = None) -> None:
    """Takes one field of a ModelInferRequest, of those that say where it goes. Raises: InvalidInput."""
    if number == 1:
        into.model_name = wire.text(value, "model_name")
    elif number == 2:
        into.model_version = wire.text(value, "model_version")
    elif number == 3:
        into.id = wire.text(value, "id")
    elif number == 4:
        _parameter_entry(value, into.parameters, limit)


def _input(data: memoryview, limit: wire.FieldLimit) -> InferInput:
    found = InferInput()
    for number, kind, value in wire.fields(data, "inputs", limit):
        if number == 3 and kind in (wire.LENGTH, wire.VARINT):
            if isinstance(value, memoryview):
                limit.take(len(value), "inputs.shape")
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
                _parameter_entry(value, found.parameters, limit)
            elif number == 5:
                found.contents = found.contents or []
                found.contents.append(value)
    return found


def _requested(data: memoryview, limit: wire.FieldLimit) -> RequestedOutput:
    found = RequestedOutput()
    for number, kind, value in wire.fields(data, "outputs", limit):
        if kind == wire.LENGTH and number == 1:
            assert isinstance(value, memoryview)
            found.name = wire.text(value, "outputs.name")
        elif kind == wire.LENGTH and number == 2:
            assert isinstance(value, memoryview)
            _parameter_entry(value, found.parameters, limit)
    return found


def _parameter_entry(data: memoryview, into: Parameters, limit: wire.FieldLimit | None) -> None:
    """An entry with a field that an entry does not have is none: protobuf keeps it among the unknown fields."""
    key = ""
    chosen: ParameterValue = None
    foreign = False
    for number, kind, value in wire.fields(data, "parameters", limit):
        if kind != wire.LENGTH or number > 2:
            foreign = True
            continue
        assert isinstance(value, memoryview)
        if number == 1:
            key = wire.text(value, "parameters key")
        elif number == 2:
            chosen = _parameter(value, chosen, limit)
    if not foreign:
        into[key] = chosen


def _parameter(data: memoryview, chosen: ParameterValue, limit: wire.FieldLimit | None) -> ParameterValue:
    for number, kind, value in wire.fields(data, "parameters", limit):
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
        for element in values:
            _put(parts, tag, element)
    elif len(values):
        _put(parts, tag, values)
    return b"".join(parts)


def _put(parts: list[Buffer], tag: int, data: Buffer) -> None:
    parts.append(bytes((tag,)))
    parts.append(wire.varint(len(data)))
    parts.append(data)
