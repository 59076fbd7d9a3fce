from __future__ import annotations

import subprocess
import sys
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from tessera.api.open_inference import inference_pb2 as oip
from tessera.domain.errors import Internal, InvalidInput, Unavailable
from tessera.sdk._infer import infer_request, infer_result, note, request_context

Array = npt.NDArray[Any]


def echoed(data: bytes, **changes: Any) -> bytes:
    """The answer of a model that gives back what it gets."""
    request = oip.ModelInferRequest.FromString(data)
    answer = oip.ModelInferResponse(model_name=request.model_name, model_version="3", id=request.id)
    for tensor, raw in zip(request.inputs, request.raw_input_contents, strict=True):
        answer.outputs.add(name=tensor.name, datatype=changes.get("datatype", tensor.datatype), shape=changes.get("shape", tensor.shape))
        answer.raw_output_contents.append(changes.get("raw", raw))
    return answer.SerializeToString()


def round_trip(array: npt.ArrayLike) -> Array:
    return infer_result(echoed(infer_request("m", {"x": array}))).outputs["x"]


_dtypes = st.sampled_from(["bool", "u1", "u2", "u4", "u8", "i1", "i2", "i4", "i8", "f2", "f4", "f8"])


@given(_dtypes.flatmap(lambda dtype: hnp.arrays(np.dtype(dtype), hnp.array_shapes(min_dims=0, min_side=0, max_dims=4, max_side=5))))
def test_every_array_comes_back_as_it_went(array: Array) -> None:
    found = round_trip(array)
    assert found.dtype == array.dtype
    np.testing.assert_array_equal(found, array)


@given(st.lists(st.binary(max_size=20), max_size=10))
def test_bytes_arrays(elements: list[bytes]) -> None:
    array = np.empty(len(elements), dtype=object)
    array[:] = elements
    assert list(round_trip(array)) == elements


def test_layouts_and_orders() -> None:
    array = np.arange(24, dtype=np.float32).reshape(2, 3, 4)
    for odd in (array.T, array[:, ::2], np.asfortranarray(array), array.astype(">f4")):
        np.testing.assert_array_equal(round_trip(odd), odd)


def test_strings_become_bytes() -> None:
    assert list(round_trip(["grüße", "b"])) == ["grüße".encode(), b"b"]
    assert list(round_trip(np.array([b"x", "y"], dtype=object))) == [b"x", b"y"]


@given(st.lists(st.binary(max_size=9), min_size=1, max_size=5))
@example([b"a\x00", b"\x00"])
def test_a_list_of_bytes_goes_whole(elements: list[bytes]) -> None:
    assert list(round_trip(elements)) == elements
    assert round_trip([elements]).tolist() == [elements]
    assert round_trip(elements[0]).tolist() == elements[0]


@given(st.lists(st.text(st.characters(codec="utf-8"), max_size=9), min_size=1, max_size=5))
@example(["a\x00", "b"])
def test_a_list_of_texts_goes_whole(elements: list[str]) -> None:
    assert list(round_trip(elements)) == [each.encode() for each in elements]


@pytest.mark.parametrize("element", [3, 2.5, None, True, [b"a"], 1 << 70])
def test_an_object_that_is_no_text_is_named(element: object) -> None:
    array = np.empty(2, dtype=object)
    array[:] = [b"a", element]
    with pytest.raises(InvalidInput, match=r"input x: element.*: must be str or bytes"):
        infer_request("m", {"x": array})


def test_numbers_beside_texts_are_not_made_texts() -> None:
    with pytest.raises(InvalidInput, match="input x: element 1: must be str or bytes"):
        infer_request("m", {"x": ["a", 1]})  # type: ignore[list-item] # what a caller may do


def test_bf16_is_widened() -> None:
    raw = (np.array([1.0, -2.5], dtype=np.float32).view(np.uint32) >> 16).astype("<u2").tobytes()
    data = echoed(infer_request("m", {"x": np.zeros(2, np.int16)}), datatype="BF16", raw=raw)
    assert list(infer_result(data).outputs["x"]) == [1.0, -2.5]


def test_an_array_that_has_no_datatype() -> None:
    with pytest.raises(InvalidInput, match="input x: dtype 'complex128'"):
        infer_request("m", {"x": np.zeros(2, complex)})


def test_names_versions_outputs_and_parameters() -> None:
    data = infer_request(
        "m", {"x": [1]}, version=2, outputs=["y", "z"], parameters={"a": True, "b": 3, "c": 0.5, "d": "word"}, request_id="mine"
    )
    request = oip.ModelInferRequest.FromString(data)
    assert (request.model_name, request.model_version, request.id) == ("m", "2", "mine")
    assert [output.name for output in request.outputs] == ["y", "z"]
    assert request.parameters["a"].WhichOneof("parameter_choice") == "bool_param"
    assert request.parameters["b"].int64_param == 3
    assert request.parameters["c"].double_param == 0.5
    assert request.parameters["d"].string_param == "word"
    with pytest.raises(InvalidInput, match="parameter e"):
        infer_request("m", {"x": [1]}, parameters={"e": None})  # type: ignore[dict-item] # what a caller may do


def test_the_gateways_parameters_become_fields() -> None:
    answer = oip.ModelInferResponse.FromString(echoed(infer_request("m", {"x": [1]}, request_id="mine")))
    for name, value in {"variant": "ort-fp32", "node": "n", "start_path": "bind", "request_id": "ab" * 16, "own": "1"}.items():
        answer.parameters[name].string_param = value
    result = infer_result(answer.SerializeToString())
    assert (result.variant, result.node, result.start_path, result.request_id) == ("ort-fp32", "n", "bind", "ab" * 16)
    assert (result.id, result.model_version, result.parameters) == ("mine", "3", {"own": "1"})


@pytest.mark.parametrize(
    "changes", [{"shape": [5]}, {"datatype": "FP13"}, {"raw": b"\x01"}, {"datatype": "BYTES", "raw": b"\x09\x00\x00\x00ab"}]
)
def test_an_answer_that_does_not_hold_what_it_says(changes: dict[str, Any]) -> None:
    with pytest.raises(Internal, match="output x"):
        infer_result(echoed(infer_request("m", {"x": np.zeros(2, np.float32)}), **changes))


def test_raw_contents_that_are_too_few() -> None:
    answer = oip.ModelInferResponse.FromString(echoed(infer_request("m", {"x": [1], "y": [2]})))
    del answer.raw_output_contents[1]
    with pytest.raises(Internal, match="2 outputs and 1 raw contents"):
        infer_result(answer.SerializeToString())


def test_typed_answers() -> None:
    answer = oip.ModelInferResponse()
    answer.outputs.add(name="a", datatype="FP32", shape=[1, 2]).contents.fp32_contents.extend([1.5, 2.5])
    answer.outputs.add(name="b", datatype="BYTES", shape=[2]).contents.bytes_contents.extend([b"x", b""])
    answer.outputs.add(name="c", datatype="INT8", shape=[0])
    outputs = infer_result(answer.SerializeToString()).outputs
    assert outputs["a"].tolist() == [[1.5, 2.5]]
    assert outputs["b"].tolist() == [b"x", b""]
    assert outputs["c"].dtype == np.int8


def test_request_ids() -> None:
    first, metadata = request_context(None)
    assert dict(metadata)["traceparent"].startswith(f"00-{first}-")
    assert request_context(None)[0] != first
    assert request_context("ab" * 16)[0] == "ab" * 16
    for bad in ("", "AB" * 16, "0" * 32, "abc"):
        with pytest.raises(InvalidInput, match="request_id"):
            request_context(bad)
    error = Unavailable("gone")
    note(error, first)
    assert error.__notes__ == [f"request id {first}"]


def test_a_request_within_a_span_joins_its_trace() -> None:
    from tessera import telemetry

    with telemetry.span("tessera.test.outer"):
        assert request_context(None) == (telemetry.current_trace_id(), ())


def test_importing_it_is_cheap() -> None:
    """No torch, ever; and nothing that only a server needs."""
    heavy = "('torch', 'onnxruntime', 'opentelemetry', 'structlog', 'pydantic', 'tessera.rpc._server', 'tessera.sdk._async_client')"
    code = f"import sys, tessera.sdk; sys.exit(','.join(name for name in {heavy} if name in sys.modules) or 0)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
