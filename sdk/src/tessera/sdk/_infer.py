"""Requests and answers of the Open Inference Protocol as numpy."""

from __future__ import annotations

import os
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from tessera.api.open_inference import inference_pb2 as oip
from tessera.domain.errors import InvalidInput

MODEL_INFER = "/inference.GRPCInferenceService/ModelInfer"

Array = npt.NDArray[Any]
Parameter = bool | int | float | str

_TO_WIRE = {
    np.dtype(kind): name
    for kind, name in {
        "bool": "BOOL", "uint8": "UINT8", "uint16": "UINT16", "uint32": "UINT32", "uint64": "UINT64", "int8": "INT8", "int16": "INT16",
        "int32": "INT32", "int64": "INT64", "float16": "FP16", "float32": "FP32", "float64": "FP64",
    }.items()
}  # fmt: skip
_FROM_WIRE = {name: kind.newbyteorder("<") for kind, name in _TO_WIRE.items()}


@dataclass(frozen=True)
class InferResult:
    """An answer. `outputs` by name; BF16 comes as float32. `start_path` is how the instance that answered came to be."""

    outputs: dict[str, Array]
    model: str
    model_version: str
    variant: str
    node: str
    start_path: str
    request_id: str
    id: str = ""
    parameters: dict[str, Parameter] = field(default_factory=dict)


def _bytes_tensor(array: Array) -> bytes:
    parts = []
    for element in array.ravel():
        raw = element.encode() if isinstance(element, str) else bytes(element)
        parts.append(struct.pack("<I", len(raw)) + raw)
    return b"".join(parts)


def _encode(name: str, array: Array) -> tuple[str, bytes]:
    if array.dtype.kind in "OSU":
        return "BYTES", _bytes_tensor(array)
    datatype = _TO_WIRE.get(array.dtype.newbyteorder("="))
    if datatype is None:
        raise InvalidInput(
            f"input {name}: dtype", str(array.dtype), f"must be one of {', '.join(str(kind) for kind in _TO_WIRE)}, or bytes"
        )
    return datatype, np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("<")).tobytes()


def infer_request(
    model: str,
    inputs: Mapping[str, npt.ArrayLike],
    *,
    version: int | str | None = None,
    outputs: Sequence[str] | None = None,
    parameters: Mapping[str, Parameter] | None = None,
    request_id: str = "",
) -> bytes:
    """The encoded ModelInferRequest (raw contents).

    Raises:
        InvalidInput: an array's dtype has no Open Inference name, or a parameter's type is none of bool, int, float, str.
    """
    request = oip.ModelInferRequest(model_name=model, model_version="" if version is None else str(version), id=request_id)
    for name, given in inputs.items():
        array = np.asarray(given)
        datatype, raw = _encode(name, array)
        request.inputs.add(name=name, datatype=datatype, shape=array.shape)
        request.raw_input_contents.append(raw)
    for name in outputs or ():
        request.outputs.add(name=name)
    for name, value in (parameters or {}).items():
        _set_parameter(request.parameters[name], name, value)
    return request.SerializeToString()


def _set_parameter(target: oip.InferParameter, name: str, value: Parameter) -> None:
    if isinstance(value, bool):
        target.bool_param = value
    elif isinstance(value, int):
        target.int64_param = value
    elif isinstance(value, float):
        target.double_param = value
    elif isinstance(value, str):
        target.string_param = value
    else:
        raise InvalidInput(f"parameter {name}", value, "must be a bool, an int, a float or a str")


def _decode(output: oip.ModelInferResponse.InferOutputTensor, raw: bytes) -> Array:
    shape = tuple(output.shape)
    if output.datatype == "BYTES":
        elements: list[bytes] = []
        at = 0
        while at < len(raw):
            (length,) = struct.unpack_from("<I", raw, at)
            elements.append(raw[at + 4 : at + 4 + length])
            at += 4 + length
        array = np.empty(len(elements), dtype=object)
        array[:] = elements
        return array.reshape(shape)
    if output.datatype == "BF16":
        wide = np.frombuffer(raw, dtype="<u2").astype(np.uint32) << 16
        return wide.view(np.float32).reshape(shape)
    return np.frombuffer(raw, dtype=_FROM_WIRE[output.datatype]).reshape(shape)


def infer_result(data: bytes) -> InferResult:
    """Reads an encoded ModelInferResponse with raw contents."""
    answer = oip.ModelInferResponse.FromString(data)
    found: dict[str, Parameter] = {}
    for name, parameter in answer.parameters.items():
        kind = parameter.WhichOneof("parameter_choice")
        if kind is not None:
            found[name] = getattr(parameter, kind)
    known = {name: str(found.pop(name, "")) for name in ("variant", "node", "start_path", "request_id")}
    outputs = {output.name: _decode(output, raw) for output, raw in zip(answer.outputs, answer.raw_output_contents, strict=True)}
    return InferResult(outputs, answer.model_name, answer.model_version, id=answer.id, parameters=found, **known)


def fresh_traceparent() -> tuple[str, str]:
    """A new W3C context: (request id, header)."""
    trace, span = os.urandom(16).hex(), os.urandom(8).hex()
    return trace, f"00-{trace}-{span}-01"
