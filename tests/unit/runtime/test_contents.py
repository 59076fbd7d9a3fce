from __future__ import annotations

import struct
import tracemalloc
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from tessera.api.open_inference.inference_pb2 import ModelInferRequest
from tessera.domain.errors import InvalidInput
from tessera.domain.signature import Signature, TensorSpec
from tessera.frames import protowire as wire
from tessera.frames.openinference import MAX_REQUEST_FIELDS, parse_request
from tessera.runtime import contents, tensors, varints
from tessera.runtime.backends.interface import Tensor
from tessera.runtime.tensors import check_request, output_tensors

ANY = Signature(
    (TensorSpec("INPUT0", "ANY", (), True),),
    (TensorSpec("OUTPUT0", "ANY", (), True),),
    False,
)
TWO = Signature((TensorSpec("a", "ANY", (), True), TensorSpec("b", "ANY", (), True)), ANY.outputs, False)
MIB = 1 << 20
LIMIT = 20
"""What tests of the limits' edges set them to."""


def field(number: int, data: bytes) -> bytes:
    return wire.varint(number << 3 | wire.LENGTH) + wire.varint(len(data)) + data


def encoded(
    datatype: str, count: int, typed: bytes | None = None, raw: bytes | None = None, name: str = "INPUT0", late: bool = False
) -> bytes:
    """A request of one input. `late`: what it is stands behind what it holds."""
    about = [field(1, name.encode()), field(2, datatype.encode()), field(3, wire.varint(count))]
    held = [] if typed is None else [field(5, typed)]
    tensor = b"".join(held + about if late else about + held)
    return field(5, tensor) + (b"" if raw is None else field(7, raw))


def checked(data: bytes, signature: Signature = ANY) -> dict[str, list]:
    request = check_request(parse_request(data), signature, 1)
    return {name: tensor.array.tolist() for name, tensor in request.tensors.items()}


@pytest.fixture
def low(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (contents, tensors):
        monkeypatch.setattr(module, "MAX_ELEMENTS", LIMIT)
        monkeypatch.setattr(module, "MAX_NUMBERS", LIMIT)


def elements(count: int) -> bytes:
    return b"\x42\x01x" * count


def lengths(count: int) -> bytes:
    return b"\1\0\0\0x" * count


def unpacked(count: int) -> bytes:
    return b"\x18\x05" * count


def unpacked_floats(count: int) -> bytes:
    return (b"\x35" + struct.pack("<f", 1.5)) * count


def packed(count: int) -> bytes:
    return field(3, b"\xac\x02" * count)


EDGES: dict[str, tuple[str, Callable[[int], bytes], bool, str]] = {
    "elements": ("BYTES", elements, False, f"elements 21: at most {LIMIT} of BYTES in one request: send fewer at a time"),
    "raw elements": ("BYTES", lengths, True, f"elements 21: at most {LIMIT} of BYTES in one request: send fewer at a time"),
    "unpacked integers": (
        "INT64",
        unpacked,
        False,
        f"contents fields '21 or more': at most {LIMIT} in one request: send raw_input_contents",
    ),
    "unpacked floats": (
        "FP32",
        unpacked_floats,
        False,
        f"contents fields '21 or more': at most {LIMIT} in one request: send raw_input_con",
    ),
    "integers": (
        "INT64",
        packed,
        False,
        f"elements 21: at most {LIMIT} booleans and integers in typed contents of one request: send raw_in",
    ),
}


@pytest.mark.usefixtures("low")
@pytest.mark.parametrize("late", [False, True], ids=["shape first", "shape last"])
@pytest.mark.parametrize("kind", EDGES)
def test_the_limit_itself_passes_and_one_more_does_not(kind, late):
    datatype, make, raw, words = EDGES[kind]

    def message(count: int) -> bytes:
        held = {"raw" if raw else "typed": make(count)}
        return encoded(datatype, count, late=late, **held)

    assert len(checked(message(LIMIT))["INPUT0"]) == LIMIT
    with pytest.raises(InvalidInput, match=f"^inputs INPUT0 {words}"):
        checked(message(LIMIT + 1))


@pytest.mark.usefixtures("low")
@pytest.mark.parametrize("kind", EDGES)
def test_limits_are_of_all_inputs_of_a_request(kind):
    datatype, make, raw, words = EDGES[kind]

    def message(first: int, second: int) -> bytes:
        return b"".join(
            encoded(datatype, count, name=name, **{"raw" if raw else "typed": make(count)}) for name, count in (("a", first), ("b", second))
        )

    assert len(checked(message(LIMIT - 5, 5), TWO)["b"]) == 5
    with pytest.raises(InvalidInput, match="^inputs b .*" + words[words.index(": at most") :]):
        checked(message(LIMIT - 5, 6), TWO)


@pytest.mark.usefixtures("low")
def test_each_byte_of_an_integer_that_is_not_packed_counts():
    assert checked(encoded("INT64", LIMIT // 2, b"\x18\xac\x02" * (LIMIT // 2)))["INPUT0"] == [300] * (LIMIT // 2)
    assert checked(encoded("INT64", LIMIT // 10, (b"\x18" + b"\xff" * 9 + b"\x01") * (LIMIT // 10)))["INPUT0"] == [-1] * (LIMIT // 10)
    for one in (b"\x18\xac\x02", b"\x18" + b"\xff" * 9 + b"\x01"):
        count = LIMIT // (len(one) - 1) + 1
        with pytest.raises(InvalidInput, match=f"contents fields '{LIMIT + 1} or more'"):
            checked(encoded("INT64", count, one * count))


@pytest.mark.usefixtures("low")
def test_floats_and_raw_values_of_fixed_size_have_no_such_limit():
    values = np.arange(1000, dtype=np.float32)
    assert checked(encoded("FP32", 1000, field(6, values.tobytes())))["INPUT0"] == values.tolist()
    assert checked(encoded("FP64", 500, field(7, np.arange(500.0).tobytes())))["INPUT0"] == list(range(500))
    assert checked(encoded("INT64", 500, raw=np.arange(500).tobytes()))["INPUT0"] == list(range(500))


def test_images_in_typed_contents_pass():
    image = 3 * 224 * 224
    for datatype, count, name in (("FP32", image, "fp32_contents"), ("UINT8", 8 * image, "uint_contents")):
        made = ModelInferRequest()
        getattr(made.inputs.add(name="INPUT0", datatype=datatype, shape=[count]).contents, name).extend([200] * count)
        assert set(checked(made.SerializeToString())["INPUT0"]) == {200}


BYTES_MANY = b"\x42\x00" * (2 * MIB)
TWO_BYTES = b"\xac\x02" * (2 * MIB + 1)
ATTACKS: dict[str, tuple[Callable[[], bytes], str]] = {
    "elements, shape of one": (lambda: encoded("BYTES", 1, BYTES_MANY), "elements '2 or more': must be 1"),
    "elements, shape of one behind them": (lambda: encoded("BYTES", 1, BYTES_MANY, late=True), "elements '2 or more': must be 1"),
    "elements, shape of all": (lambda: encoded("BYTES", 2 * MIB, BYTES_MANY), "elements 2097152: at most 131072 of BYTES"),
    "elements of another datatype": (lambda: encoded("FP32", 2 * MIB, BYTES_MANY), "bytes_contents'?: FP32 belongs into"),
    "elements beside raw contents": (lambda: encoded("BYTES", 1, BYTES_MANY, raw=b""), "may not be mixed"),
    "raw elements, shape of one": (lambda: encoded("BYTES", 1, raw=bytes(4 * MIB)), "elements '2 or more': must be 1"),
    "raw elements, shape of all": (lambda: encoded("BYTES", MIB, raw=bytes(4 * MIB)), "elements 1048576: at most 131072 of BYTES"),
    "raw elements, shape of more": (lambda: encoded("BYTES", 2**62, raw=bytes(4 * MIB)), "raw bytes 4194304: cut off"),
    "integers, shape of one": (lambda: encoded("INT64", 1, field(3, TWO_BYTES)), "elements 2097153: must be 1"),
    "integers, shape of all": (lambda: encoded("INT64", 2 * MIB + 1, field(3, TWO_BYTES)), "elements 2097153: at most 2097152 booleans"),
    "integers cut off": (lambda: encoded("INT64", MIB, field(3, b"\xff" * 4 * MIB)), "varint cut off"),
    "integers too long": (lambda: encoded("INT64", 1, field(3, b"\xff" * 4 * MIB + b"\1")), "varint cut off or too long"),
    "integers not packed": (lambda: encoded("INT64", 2 * MIB, b"\x18\x01" * 2 * MIB), "fields '131073 or more': at most 131072"),
    "floats packed one by one": (lambda: encoded("FP32", MIB, b"\x32\x04\0\0\0\0" * MIB), "fields '131073 or more': at most 131072"),
    "groups": (lambda: encoded("INT64", 1, b"\x4b" + b"\x48\x01" * 2 * MIB + b"\x4c"), "fields '131073 or more': at most 131072"),
}  # fmt: skip


@pytest.mark.parametrize("what", ATTACKS)
def test_what_is_too_much_is_refused_before_objects_are_made_of_it(what):
    make, words = ATTACKS[what]
    data = make()
    assert len(data) > 3_000_000
    tracemalloc.start()
    try:
        with pytest.raises(InvalidInput, match=words):
            checked(data)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 3 * MIB


def test_a_request_of_inputs_alone_is_refused():
    with pytest.raises(InvalidInput, match=f"at most {MAX_REQUEST_FIELDS} in one request"):
        checked(b"\x2a\x00" * 2 * MIB)


@given(st.lists(st.integers(-(2**63), 2**64 - 1) | st.integers(0, 300), max_size=60))
@example([1] * 40)
@example([2**64 - 1, 0, 127, 128, -1] * 9)
def test_varints_are_those_of_protobuf_whatever_the_pieces(values):
    data = b"".join(map(wire.varint, values))
    with pytest.MonkeyPatch.context() as patch:
        for size in (10, 11, 19, 1000):
            patch.setattr(varints, "_DECODED_AT_ONCE_BYTES", size)
            patch.setattr(varints, "_ENCODED_AT_ONCE", size)
            patch.setattr(varints, "_COUNTED_AT_ONCE_BYTES", size)
            assert varints.count(data) == len(values)
            assert varints.decode(data, np.uint64, len(values), "f").tolist() == [value % 2**64 for value in values]
            assert varints.decode(data, np.bool_, len(values), "f").tolist() == [value != 0 for value in values]
            for kind in (np.uint64, np.int64, np.int32, np.uint8):
                numbers = np.array([value % 2**64 for value in values], np.uint64).astype(kind)
                assert varints.encode(numbers) == b"".join(wire.varint(int(value)) for value in numbers)


@given(
    st.lists(st.binary(min_size=1, max_size=12) | st.sampled_from([b"\xff" * 9, b"\x80" * 10, b"\x01"]), min_size=1, max_size=6).map(
        b"".join
    )
)
@example(b"\x80" * 9 + b"\x7f")
@example(b"\x80" * 10 + b"\x01")
def test_malformed_varints_are_those_of_the_reader_in_python(data):
    try:
        expected = wire.varints(wire.LENGTH, memoryview(data), "f")
    except InvalidInput:
        expected = None
    with pytest.MonkeyPatch.context() as patch:
        for size in (10, 13, 1000):
            patch.setattr(varints, "_DECODED_AT_ONCE_BYTES", size)
            if expected is None:
                with pytest.raises(InvalidInput, match=r"^f: malformed message: varint cut off or too long$"):
                    varints.decode(data, np.uint64, varints.count(data), "f")
            else:
                assert varints.decode(data, np.uint64, len(expected), "f").tolist() == expected


def test_packed_and_unpacked_numbers_come_in_their_order():
    typed = b"\x18\x05\x18\x05" + field(3, b"\x06\xac\x02") + b"\x1a\x00" + b"\x18\x07" + field(3, b"\x08")
    assert checked(encoded("INT64", 6, typed))["INPUT0"] == [5, 5, 6, 300, 7, 8]
    assert checked(encoded("INT64", 0, b""))["INPUT0"] == []
    with pytest.raises(InvalidInput, match="inputs INPUT0 contents int64_contents: malformed message: varint cut off"):
        checked(encoded("INT64", 2, field(3, b"\x06\xac") + field(3, b"\x02")))


@pytest.mark.usefixtures("low")
def test_answers_have_the_limits_of_requests():
    def answer(datatype: str, array: np.ndarray, raw: bool):
        return output_tensors({"y": Tensor(datatype, array)}, ("y",), raw)[0].data

    for raw in (False, True):
        answer("BYTES", np.array([b"x"] * LIMIT, object), raw)
        with pytest.raises(
            InvalidInput, match=f"^outputs elements {LIMIT + 1}: at most {LIMIT} of BYTES in one answer: send less at a time$"
        ):
            answer("BYTES", np.array([b"x"] * (LIMIT + 1), object), raw)
    assert answer("INT16", np.arange(LIMIT, dtype=np.int16), False) == ("int_contents", bytes(range(LIMIT)))
    assert bytes(answer("INT16", np.arange(LIMIT + 1, dtype=np.int16), False)) == np.arange(LIMIT + 1, dtype=np.int16).tobytes()
    assert answer("FP32", np.zeros(LIMIT + 1, np.float32), False)[0] == "fp32_contents"
