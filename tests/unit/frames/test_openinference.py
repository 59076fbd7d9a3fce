from __future__ import annotations

import struct

import pytest
from google.protobuf.message import DecodeError
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tessera.api.open_inference.inference_pb2 import InferParameter, ModelInferRequest, ModelInferResponse
from tessera.domain.errors import InvalidInput
from tessera.frames import head as heads
from tessera.frames import openinference as oi
from tessera.frames import protowire as wire
from tessera.runtime import varints
from tessera.runtime.contents import gather

NUMBERS = {"bool_contents": "?", "int_contents": "i4", "int64_contents": "i8", "uint_contents": "u4", "uint64_contents": "u8"}
NAMES = st.text(max_size=12)
INT64 = st.integers(-(2**63), 2**63 - 1)
FLOATS = st.floats(allow_nan=False, width=64)
FLOATS32 = st.floats(allow_nan=False, width=32)
PARAMETER = st.one_of(st.booleans(), INT64, NAMES, FLOATS, st.integers(2**63, 2**64 - 1))
PARAMETERS = st.dictionaries(NAMES, PARAMETER, max_size=4)
CONTENTS = st.fixed_dictionaries(
    {},
    optional={
        "bool_contents": st.lists(st.booleans(), min_size=1, max_size=5),
        "int_contents": st.lists(st.integers(-(2**31), 2**31 - 1), min_size=1, max_size=5),
        "int64_contents": st.lists(INT64, min_size=1, max_size=5),
        "uint_contents": st.lists(st.integers(0, 2**32 - 1), min_size=1, max_size=5),
        "uint64_contents": st.lists(st.integers(0, 2**64 - 1), min_size=1, max_size=5),
        "fp32_contents": st.lists(FLOATS32, min_size=1, max_size=5),
        "fp64_contents": st.lists(FLOATS, min_size=1, max_size=5),
        "bytes_contents": st.lists(st.binary(max_size=9), min_size=1, max_size=5),
    },
)
INPUT = st.tuples(NAMES, NAMES, st.lists(st.integers(-1, 300) | INT64, max_size=4), PARAMETERS, st.none() | CONTENTS)


def choice(value) -> InferParameter:
    if isinstance(value, bool):
        return InferParameter(bool_param=value)
    if isinstance(value, int):
        return InferParameter(int64_param=value) if value < 2**63 else InferParameter(uint64_param=value)
    return InferParameter(string_param=value) if isinstance(value, str) else InferParameter(double_param=value)


def chosen(parameter: InferParameter):
    name = parameter.WhichOneof("parameter_choice")
    return getattr(parameter, name) if name else None


def plain_contents(contents) -> dict[str, list]:
    """Ours as protobuf would list it."""
    plain = {}
    for name, values in gather(contents, "contents", 1000, wire.FieldLimit(1000)).items():
        if name in ("fp32_contents", "fp64_contents"):
            code = "f" if name == "fp32_contents" else "d"
            values = list(struct.unpack(f"<{len(values) // struct.calcsize(code)}{code}", values))
        elif name in NUMBERS:
            values = varints.decode(values, NUMBERS[name], varints.count(values), name).tolist()
        plain[name] = values
    return plain


def same(request: oi.InferRequest, message: ModelInferRequest) -> None:
    assert (request.model_name, request.model_version, request.id) == (message.model_name, message.model_version, message.id)
    assert repr(request.parameters) == repr({key: chosen(message.parameters[key]) for key in request.parameters})
    assert set(request.parameters) == set(message.parameters)
    assert [bytes(raw) for raw in request.raw_input_contents] == list(message.raw_input_contents)
    assert [output.name for output in request.outputs] == [output.name for output in message.outputs]
    assert len(request.inputs) == len(message.inputs)
    for ours, theirs in zip(request.inputs, message.inputs, strict=True):
        assert (ours.name, ours.datatype, ours.shape) == (theirs.name, theirs.datatype, list(theirs.shape))
        assert set(ours.parameters) == set(theirs.parameters)
        assert (ours.contents is not None) == theirs.HasField("contents")
        if ours.contents is not None:
            listed = {field.name: list(values) for field, values in theirs.contents.ListFields()}
            found = plain_contents(ours.contents)
            assert {name: repr(values) for name, values in found.items()} == {name: repr(values) for name, values in listed.items()}


@given(
    NAMES, NAMES, NAMES, PARAMETERS, st.lists(INPUT, max_size=3), st.lists(NAMES, max_size=3), st.lists(st.binary(max_size=40), max_size=3)
)
def test_reads_what_protobuf_wrote(name, version, request_id, parameters, inputs, outputs, raw):
    message = ModelInferRequest(model_name=name, model_version=version, id=request_id, raw_input_contents=raw)
    for key, value in parameters.items():
        message.parameters[key].CopyFrom(choice(value))
    for input_name, datatype, shape, input_parameters, contents in inputs:
        tensor = message.inputs.add(name=input_name, datatype=datatype, shape=shape)
        for key, value in input_parameters.items():
            tensor.parameters[key].CopyFrom(choice(value))
        if contents is not None:
            tensor.contents.SetInParent()
            for field, values in contents.items():
                getattr(tensor.contents, field).extend(values)
    for output in outputs:
        message.outputs.add(name=output)
    data = message.SerializeToString()
    same(oi.parse_request(data), message)
    head = heads.parse_head(data)
    assert (head.model_name, head.model_version, head.id, set(head.parameters)) == (name, version, request_id, set(parameters))
    assert (heads._plain_head(data) is None) == bool(parameters), "most requests are read the short way"
    first = inputs[0][2][0] if inputs and inputs[0][2] else 1
    assert head.items == (first if 0 < first < heads.MAX_ITEMS else 1)


def agrees_on(data: bytes) -> None:
    try:
        message = ModelInferRequest.FromString(data)
    except DecodeError:
        message = None
    try:
        request = oi.parse_request(data)
        for tensor in request.inputs:
            plain_contents(tensor.contents or ())
    except InvalidInput:
        assert message is None, "we refuse what protobuf takes"
        return
    assert message is not None, "we take what protobuf refuses"
    same(request, message)


@settings(max_examples=400)
@given(st.binary(max_size=60))
@example(b"\x0b\x0c")
@example(b"\x2a\x04\x18\x01\x18\x02")
@example(b"\x22\x00")
def test_agrees_with_protobuf_on_any_bytes(data):
    agrees_on(data)


@settings(max_examples=400)
@given(st.lists(st.tuples(st.integers(0, 200), st.integers(0, 255)), min_size=1, max_size=4))
@example([(13, 9)])
@example([(129, 17)])
def test_agrees_with_protobuf_on_damaged_messages(changes):
    message = ModelInferRequest(model_name="resnet", id="7", raw_input_contents=[b"\x00" * 16])
    message.parameters["timeout"].int64_param = 5
    tensor = message.inputs.add(name="INPUT0", datatype="FP32", shape=[-1, 300])
    tensor.contents.fp32_contents.extend([1.0, 2.0])
    tensor.contents.int_contents.extend([-1, 700])
    tensor.contents.bytes_contents.append(b"abc")
    message.outputs.add(name="OUTPUT0")
    data = bytearray(message.SerializeToString())
    for at, value in changes:
        data[at % len(data)] = value
    agrees_on(bytes(data))


def test_unpacked_numbers_and_repeated_messages_merge():
    contents = b"\x35" + struct.pack("<f", 1.5) + b"\x32\x04" + struct.pack("<f", 2.5) + b"\x10\x05\x12\x02\x06\x07"
    tensor = b"\x2a" + bytes((len(contents),)) + contents + b"\x2a\x02\x10\x09"
    agrees_on(b"\x2a" + bytes((len(tensor),)) + tensor)
    (read,) = oi.parse_request(b"\x2a" + bytes((len(tensor),)) + tensor).inputs
    assert plain_contents(read.contents) == {"fp32_contents": [1.5, 2.5], "int_contents": [5, 6, 7, 9]}


def test_raw_contents_are_views_of_the_request():
    data = ModelInferRequest(raw_input_contents=[b"x" * 1000]).SerializeToString()
    assert oi.parse_request(data).raw_input_contents[0].obj is data


def test_typed_contents_are_views_of_the_request_in_which_nothing_is_read():
    data = ModelInferRequest(inputs=[{"contents": {"bytes_contents": [b""] * 100_000}}]).SerializeToString()
    (contents,) = oi.parse_request(data).inputs[0].contents
    assert contents.obj is data
    assert len(contents) == 200_000


@pytest.mark.parametrize(
    "piece",
    [b"\x3a\x00", b"\x2a\x00", b"\x32\x00", b"\x22\x00", b"\x40\x01", b"\x4b\x4c"],
    ids=["raw contents", "input", "output", "parameter", "unknown number", "unknown group"],
)
@pytest.mark.parametrize("outer", [b"", b"\x2a", b"\x32", b"\x22", b"\x22\x12"], ids=["itself", "input", "output", "entry", "value"])
def test_fields_of_a_request_have_a_limit_wherever_they_stand(piece, outer):
    def message(fields: int) -> bytes:
        data = piece * (fields - len(outer))
        for tag in reversed(outer):
            data = bytes((tag,)) + wire.varint(len(data)) + data
        return data

    oi.parse_request(message(oi.MAX_REQUEST_FIELDS))
    with pytest.raises(
        InvalidInput, match=rf"fields '{oi.MAX_REQUEST_FIELDS + 1} or more': at most {oi.MAX_REQUEST_FIELDS} in one request$"
    ):
        oi.parse_request(message(oi.MAX_REQUEST_FIELDS + 1))


def test_fields_of_all_parts_of_a_request_count_together():
    one = b"\x2a\x04" + b"\x40\x01" * 2
    oi.parse_request(one * (oi.MAX_REQUEST_FIELDS // 3))
    with pytest.raises(InvalidInput, match="inputs fields"):
        oi.parse_request(one * (oi.MAX_REQUEST_FIELDS // 3 + 1))


@pytest.mark.parametrize(
    "shape", [b"\x18\x01" * oi.MAX_REQUEST_FIELDS, b"\x1a" + wire.varint(oi.MAX_REQUEST_FIELDS) + b"\x01" * oi.MAX_REQUEST_FIELDS]
)
def test_dimensions_count_as_fields(shape):
    with pytest.raises(InvalidInput, match=r"fields .* at most"):
        oi.parse_request(b"\x2a" + wire.varint(len(shape)) + shape)


@pytest.mark.parametrize("data", [b"\x0a\x05ab", b"\x0a\x01\xff", b"\x00", b"\x0f", b"\xff" * 11, b"\x0b\x08\x01"])
def test_malformed_messages_name_what_is_wrong(data):
    with pytest.raises(InvalidInput) as caught:
        oi.parse_request(data)
    assert len(str(caught.value)) > 10


@given(PARAMETERS)
def test_parameters_are_what_protobuf_reads_behind_any_message(parameters):
    encoded = oi.encode_parameters(parameters)
    for kind in (ModelInferRequest, ModelInferResponse):
        message = kind.FromString(kind(model_name="m").SerializeToString() + encoded)
        assert message.model_name == "m"
        assert repr({key: chosen(message.parameters[key]) for key in parameters}) == repr(parameters)
        assert len(message.parameters) == len(parameters)


def test_parameter_beyond_64_bits_is_refused():
    with pytest.raises(InvalidInput, match="64 bits"):
        oi.encode_parameters({"n": 1 << 64})


@given(
    NAMES,
    NAMES,
    NAMES,
    PARAMETERS,
    st.lists(st.tuples(NAMES, NAMES, st.lists(INT64, max_size=4), PARAMETERS, st.binary(max_size=50)), max_size=3),
)
def test_raw_response_is_what_protobuf_reads(name, version, request_id, parameters, outputs):
    data = oi.encode_response(name, version, request_id, [oi.OutputTensor(n, d, s, raw, p) for n, d, s, p, raw in outputs], parameters)
    message = ModelInferResponse.FromString(data)
    assert (message.model_name, message.model_version, message.id) == (name, version, request_id)
    assert list(message.raw_output_contents) == [raw for *_, raw in outputs]
    assert [(o.name, o.datatype, list(o.shape), set(o.parameters)) for o in message.outputs] == [
        (n, d, s, set(p)) for n, d, s, p, _ in outputs
    ]


@given(st.sampled_from(["bool", "int", "int64", "uint", "uint64", "fp32", "fp64", "bytes"]), st.data())
def test_typed_response_is_what_protobuf_reads(kind, data):
    field = f"{kind}_contents"
    values = data.draw(CONTENTS.map(lambda contents: contents.get(field)).filter(bool))
    ours = values
    if kind in ("bool", "int", "int64", "uint", "uint64"):
        ours = b"".join(map(wire.varint, values))
    elif kind in ("fp32", "fp64"):
        ours = struct.pack(f"<{len(values)}{'f' if kind == 'fp32' else 'd'}", *values)
    message = ModelInferResponse.FromString(oi.encode_response("m", "1", "", [oi.OutputTensor("o", "X", [len(values)], (field, ours))]))
    assert list(getattr(message.outputs[0].contents, field)) == values
    assert not message.raw_output_contents


@pytest.mark.parametrize(
    "piece",
    [b"\x3a\x00", b"\x22\x00", b"\x40\x01", b"\x1a\x00", b"\x4b\x4c"],
    ids=["raw contents", "parameters", "unknown number", "id", "unknown group"],
)
def test_a_head_of_many_fields_is_refused_and_the_limit_itself_is_not(piece):
    start = b"\x0a\x01m"
    assert heads.parse_head(start + piece * (heads.MAX_HEAD_FIELDS - 1)).model_name == "m"
    with pytest.raises(InvalidInput, match=f"ModelInferRequest fields .*at most {heads.MAX_HEAD_FIELDS}"):
        heads.parse_head(start + piece * heads.MAX_HEAD_FIELDS)


@given(
    st.lists(
        st.tuples(st.sampled_from([b"\x0a", b"\x12", b"\x1a", b"\x22", b"\x2a", b"\x3a", b"\x40", b"\x8a\x01"]), st.binary(max_size=200)),
        max_size=6,
    ),
    st.integers(0, 30),
)
def test_a_head_read_the_short_way_is_what_the_whole_reader_finds(pieces, cut):
    data = b"".join(tag + wire.varint(len(value)) + value for tag, value in pieces)
    data = data[: len(data) - cut]
    short = heads._plain_head(data)
    if short is not None:
        request = oi.parse_request(data) if not any(tag in (b"\x2a", b"\x32") for tag, _ in pieces) else None
        if request is not None:
            assert (short.model_name, short.model_version, short.id) == (request.model_name, request.model_version, request.id)
            assert request.parameters == {}


@pytest.mark.parametrize(
    ("field", "items"),
    [
        (b"\x1a\x02\x08\x03", 8),
        (b"\x0a\x01x\x12\x04FP32\x1a\x03\xac\x02\x03", 300),
        (b"", 1),
        (b"\x1a\x00", 1),
        (b"\x1a\x02\x00\x03", 1),
        (b"\x1a\x0a" + b"\xff" * 9 + b"\x01", 1),
        (b"\x18\x08\x18\x03", 1),
        (b"\x1a\x05\xff", 1),
        (b"\x1a", 1),
    ],
    ids=["shape", "behind name and datatype", "no shape", "empty shape", "no item", "negative", "not packed", "cut off", "no length"],
)
@pytest.mark.parametrize("parameter", [b"", b"\x22\x00"], ids=["read the short way", "read the long way"])
def test_a_head_says_how_many_items_the_first_input_has(field, items, parameter):
    other = b"\x2a\x04\x1a\x02\x07\x01"
    data = b"\x0a\x01m" + parameter + b"\x2a" + wire.varint(len(field)) + field + other
    assert (heads._plain_head(data) is None) == bool(parameter)
    assert heads.parse_head(data).items == items


def test_fields_inside_a_skipped_group_count():
    def inside(count: int) -> bytes:
        return b"\x4b" + b"\x53\x54" + b"\x08\x01" * count + b"\x4c"

    heads.parse_head(inside(heads.MAX_HEAD_FIELDS - 2))
    with pytest.raises(InvalidInput, match="ModelInferRequest fields"):
        heads.parse_head(inside(heads.MAX_HEAD_FIELDS - 1))
    oi.parse_request(inside(heads.MAX_HEAD_FIELDS))


@pytest.mark.parametrize("field", ["model_name", "model_version"])
@pytest.mark.parametrize("parameter", [b"", b"\x22\x00"], ids=["read the short way", "read the long way"])
def test_names_of_a_head_have_a_length(field, parameter):
    limit = heads.MAX_HEAD_NAME_BYTES

    def message(length: int) -> bytes:
        return parameter + ModelInferRequest(**{field: "é" + "x" * (length - 2)}).SerializeToString()

    assert (heads._plain_head(message(limit)) is None) == bool(parameter)
    assert len(getattr(heads.parse_head(message(limit)), field)) == limit - 1
    for length in (limit + 1, 1 << 20):
        with pytest.raises(InvalidInput, match=rf"^{field} 'éx+\.\.\.': at most {limit} bytes, got {length}$") as refused:
            heads.parse_head(message(length))
        assert len(str(refused.value)) < 160
    other = ModelInferRequest(id="i" * (limit + 1), raw_input_contents=[bytes(1 << 20)]).SerializeToString()
    assert heads._plain_head(other) is not None
    assert len(heads.parse_head(parameter + other).id) == limit + 1


def test_parameters_of_a_head_have_a_length_in_all():
    def message(total: int) -> bytes:
        made = ModelInferRequest(model_name="m")
        made.parameters["a"].string_param = "x" * 1000
        first = made.SerializeToString()[3:]
        made.parameters.clear()
        made.parameters["b"].string_param = "x" * 1000
        spare = total - 2 * (len(first) - 3)
        made.parameters["b"].string_param = "x" * (1000 + spare)
        entry = made.SerializeToString()[3:]
        return b"\x0a\x01m" + first + entry

    for total in range(heads.MAX_HEAD_PARAMETER_BYTES - 20, heads.MAX_HEAD_PARAMETER_BYTES + 20):
        data = message(total)
        real = sum(len(value) for number, _, value in wire.fields(memoryview(data), "m") if number == 4)
        if real <= heads.MAX_HEAD_PARAMETER_BYTES:
            assert set(heads.parse_head(data).parameters) == {"a", "b"}
        else:
            with pytest.raises(InvalidInput, match=f"parameters bytes {real}: at most {heads.MAX_HEAD_PARAMETER_BYTES}"):
                heads.parse_head(data)
