from __future__ import annotations

import struct

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tessera.api.open_inference.inference_pb2 import ModelInferRequest, ModelInferResponse
from tessera.domain.errors import Internal, InvalidInput
from tessera.domain.signature import Signature, TensorSpec
from tessera.frames.openinference import encode_response, parse_request
from tessera.runtime.backends.interface import Tensor
from tessera.runtime.contents import CONTENTS_OF
from tessera.runtime.tensors import check_request, join, joinable_key, output_tensors, split
from tessera.tensorstore.mapping import numpy_dtype

ANY = Signature((TensorSpec("INPUT0", "ANY", (), True),), (TensorSpec("OUTPUT0", "ANY", (), True),), False)
TWO = Signature(
    (TensorSpec("a", "FP32", (-1, 2)), TensorSpec("b", "INT64", (-1, -1))),
    (TensorSpec("y", "FP32", (-1, 2)), TensorSpec("z", "FP32", (-1,))),
)
FIXED_SIZE = ["BOOL", "UINT8", "UINT16", "UINT32", "UINT64", "INT8", "INT16", "INT32", "INT64", "FP16", "BF16", "FP32", "FP64"]


def message(**inputs: tuple[str, list[int], bytes]) -> ModelInferRequest:
    made = ModelInferRequest(model_name="m")
    for name, (datatype, shape, raw) in inputs.items():
        made.inputs.add(name=name, datatype=datatype, shape=shape)
        made.raw_input_contents.append(raw)
    return made


def checked(made: ModelInferRequest, signature: Signature = TWO, max_batch: int = 4):
    return check_request(parse_request(made.SerializeToString()), signature, max_batch)


def good() -> ModelInferRequest:
    return message(a=("FP32", [2, 2], bytes(16)), b=("INT64", [2, 3], bytes(48)))


def test_good_request():
    request = checked(good())
    assert (request.rows, request.raw, request.outputs, request.timeout_us) == (2, True, ("y", "z"), None)
    assert request.tensors["a"].array.shape == (2, 2)
    assert request.tensors["b"].array.dtype == np.int64


def damaged(change) -> ModelInferRequest:
    made = good()
    change(made)
    return made


def set_shape(made, place, shape):
    made.inputs[place].ClearField("shape")
    made.inputs[place].shape.extend(shape)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda m: m.ClearField("inputs"), "must hold a, b"),
        (lambda m: m.raw_input_contents.pop(), "each of the 2 inputs"),
        (lambda m: m.raw_input_contents.append(b""), "raw_input_contents 3"),
        (lambda m: m.inputs[0].contents.fp32_contents.append(1.0), "may not be mixed"),
        (lambda m: setattr(m.inputs[1], "name", "a"), "is there twice"),
        (lambda m: setattr(m.inputs[1], "name", "c"), "the model has a, b"),
        (lambda m: (m.inputs.pop(), m.raw_input_contents.pop()), "b is missing"),
        (lambda m: setattr(m.inputs[0], "datatype", "FP64"), "'FP64': must be FP32"),
        (lambda m: set_shape(m, 0, [2, 2, 1]), "must be [-1, 2]"),
        (lambda m: set_shape(m, 0, [4, 1]), "must be [-1, 2]"),
        (lambda m: set_shape(m, 0, [-2, 2]), "must not be negative"),
        (lambda m: set_shape(m, 0, [3, 2]), "raw bytes 16: must be 24"),
        (lambda m: set_shape(m, 1, [1, 6]), "must be 2 as in the other inputs"),
        (lambda m: m.outputs.add(name="q"), "the model has y, z"),
        (lambda m: (m.outputs.add(name="y"), m.outputs.add(name="y")), "is there twice"),
        (lambda m: setattr(m.parameters["binary_data_output"], "int64_param", 1), "must be a bool"),
        (lambda m: setattr(m.parameters["timeout"], "int64_param", -1), "at least 0"),
    ],
)
def test_bad_requests_name_field_value_and_limit(change, words):
    with pytest.raises(InvalidInput) as caught:
        checked(damaged(change))
    assert words in str(caught.value)


def test_batch_limits():
    made = message(a=("FP32", [5, 2], bytes(40)), b=("INT64", [5, 1], bytes(40)))
    with pytest.raises(InvalidInput, match="5: must be 1 to 4"):
        checked(made)
    made = message(a=("FP32", [0, 2], b""), b=("INT64", [0, 1], b""))
    with pytest.raises(InvalidInput, match="0: must be 1 to 4"):
        checked(made)


def test_absurd_shapes_cost_nothing():
    made = message(INPUT0=("FP32", [2**40, 2**40], b""))
    with pytest.raises(InvalidInput, match="must be"):
        checked(made, ANY)
    with pytest.raises(InvalidInput, match="too large"):
        checked(message(INPUT0=("FP32", [2**62, 2**62, 0], b"")), ANY)
    with pytest.raises(InvalidInput, match="at most 32"):
        checked(message(INPUT0=("FP32", [1] * 40, bytes(4))), ANY)
    with pytest.raises(InvalidInput, match="must be one of"):
        checked(message(INPUT0=("FP8", [1], b"1")), ANY)


def test_outputs_parameters_and_form():
    made = good()
    made.outputs.add(name="z")
    made.parameters["binary_data_output"].bool_param = False
    made.parameters["timeout"].int64_param = 500
    request = checked(made)
    assert (request.outputs, request.raw, request.timeout_us) == (("z",), False, 500)


@pytest.mark.parametrize("datatype", FIXED_SIZE)
@given(st.data())
def test_raw_values_survive_both_ways(datatype, data):
    """Request to array to answer: the bytes are the client's."""
    size = numpy_dtype(datatype).itemsize
    shape = data.draw(st.lists(st.integers(0, 3), max_size=3))
    count = int(np.prod(shape, dtype=int))
    raw = data.draw(st.binary(min_size=count * size, max_size=count * size))
    request = checked(message(INPUT0=(datatype, shape, raw)), ANY)
    answer = encode_response("m", "1", "", output_tensors({"OUTPUT0": request.tensors["INPUT0"]}, ("OUTPUT0",), True))
    read = ModelInferResponse.FromString(answer)
    assert (read.outputs[0].datatype, list(read.outputs[0].shape), read.raw_output_contents[0]) == (datatype, shape, raw)


@pytest.mark.parametrize("datatype", [name for name in FIXED_SIZE if name in CONTENTS_OF])
@given(st.data())
def test_typed_values_survive_both_ways(datatype, data):
    dtype = numpy_dtype(datatype)
    element = (
        st.booleans()
        if datatype == "BOOL"
        else st.integers(*_limits(dtype))
        if dtype.kind in "iu"
        else st.floats(width=32, allow_nan=False)
    )
    values = data.draw(st.lists(element, max_size=5))
    made = ModelInferRequest()
    tensor = made.inputs.add(name="INPUT0", datatype=datatype, shape=[len(values)])
    getattr(tensor.contents, CONTENTS_OF[datatype]).extend(values)
    request = checked(made, ANY)
    assert request.raw is False
    answer = encode_response("m", "1", "", output_tensors({"OUTPUT0": request.tensors["INPUT0"]}, ("OUTPUT0",), False))
    read = ModelInferResponse.FromString(answer)
    assert list(getattr(read.outputs[0].contents, CONTENTS_OF[datatype])) == values


def _limits(dtype):
    return int(np.iinfo(dtype).min), int(np.iinfo(dtype).max)


@given(st.lists(st.binary(max_size=6), max_size=5))
def test_bytes_elements_in_both_forms(elements):
    raw = b"".join(struct.pack("<I", len(element)) + element for element in elements)
    request = checked(message(INPUT0=("BYTES", [len(elements)], raw)), ANY)
    assert request.tensors["INPUT0"].array.tolist() == elements
    (output,) = output_tensors({"OUTPUT0": request.tensors["INPUT0"]}, ("OUTPUT0",), True)
    assert output.data == raw
    made = ModelInferRequest()
    made.inputs.add(name="INPUT0", datatype="BYTES", shape=[len(elements)]).contents.bytes_contents.extend(elements)
    (output,) = output_tensors({"OUTPUT0": checked(made, ANY).tensors["INPUT0"]}, ("OUTPUT0",), False)
    assert output.data == ("bytes_contents", elements)


@pytest.mark.parametrize(
    ("raw", "count", "words"),
    [
        (b"\x01\x00", 1, "raw bytes 2: cut off: the lengths alone of 1 elements of BYTES are 4 bytes"),
        (b"\x01\x00\x00\x00a\x02\x00\x00", 2, "length of element 1 is cut off at byte 5"),
        (b"\x05\x00\x00\x00abc", 1, "ends at byte 9 of 7"),
        (b"\x04\x00\x00\x00abcd", 2, "elements 1: must be 2"),
        (b"\x00\x00\x00\x00" * 3, 1, "elements '2 or more': must be 1"),
    ],
)
def test_malformed_bytes_elements(raw, count, words):
    with pytest.raises(InvalidInput, match=words):
        checked(message(INPUT0=("BYTES", [count], raw)), ANY)


@pytest.mark.parametrize(
    ("datatype", "field", "values", "words"),
    [
        ("INT8", "int_contents", [200], "must be -128 to 127"),
        ("UINT16", "uint_contents", [70000], "must be 0 to 65535"),
        ("FP16", "fp32_contents", [1.0], "send raw_input_contents"),
        ("INT32", "int64_contents", [1], "belongs into int_contents"),
        ("FP32", "fp32_contents", [1.0, 2.0], "elements 2: must be 1"),
        ("FP32", "bytes_contents", [b"x"], "belongs into fp32_contents"),
    ],
)
def test_typed_contents_that_do_not_fit(datatype, field, values, words):
    made = ModelInferRequest()
    tensor = made.inputs.add(name="INPUT0", datatype=datatype, shape=[1])
    getattr(tensor.contents, field).extend(values)
    with pytest.raises(InvalidInput, match=words):
        checked(made, ANY)


def test_half_precision_answers_are_raw_whatever_was_asked():
    outputs = output_tensors(
        {"y": Tensor("FP16", np.zeros(2, np.float16)), "z": Tensor("FP32", np.zeros(1, np.float32))}, ("y", "z"), False
    )
    assert [len(output.data) for output in outputs] == [4, 4]


@given(st.lists(st.integers(1, 4), min_size=1, max_size=5))
def test_split_undoes_join(rows):
    parts = [{"x": Tensor("FP32", np.full((count, 2), index, np.float32))} for index, count in enumerate(rows)]
    found = split(join(parts), rows)
    assert all(np.array_equal(a["x"].array, b["x"].array) for a, b in zip(parts, found, strict=True))
    assert len({joinable_key(part) for part in parts}) == 1


def test_what_has_no_batch_cannot_be_split():
    with pytest.raises(Internal, match="output y"):
        split({"y": Tensor("FP32", np.zeros((3, 2), np.float32))}, [1, 1])
    assert split({"y": Tensor("FP32", np.zeros((), np.float32))}, [1])[0]["y"].array.shape == ()


def test_misaligned_bytes_are_copied_before_anything_computes_on_them():
    data = message(INPUT0=("FP64", [3], struct.pack("<3d", 1, 2, 3))).SerializeToString()
    for shift in range(8):
        request = check_request(parse_request(memoryview(bytes(shift) + data)[shift:]), ANY, 1)
        assert request.tensors["INPUT0"].array.flags.aligned
        assert request.tensors["INPUT0"].array.tolist() == [1, 2, 3]
