"""Requests and answers of the Open Inference Protocol as numpy."""

from __future__ import annotations

import os
import re
import struct
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

import numpy as np
import numpy.typing as npt

from tessera.api.open_inference import inference_pb2 as oip
from tessera.domain.errors import Internal, InvalidInput, TesseraError
from tessera.domain.objectives import Objectives

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
    """An answer. `outputs` by name; BF16 comes as float32. `start_path` is how the instance that answered came to be.

    `answered_by` is MODEL@VERSION, where `model` is what was asked for: an alias or a task. `objective_missed` says which objectives the
    answer was expected to miss, and by how much ("latency_ms by 3.1"); "" where it met them.
    """

    outputs: dict[str, Array]
    model: str
    model_version: str
    variant: str
    node: str
    start_path: str
    request_id: str
    answered_by: str = ""
    objective_missed: str = ""
    id: str = ""
    parameters: dict[str, Parameter] = field(default_factory=dict)


def _array(given: npt.ArrayLike) -> Array:
    """Texts stay as they are: numpy's own dtypes for them end where only NULs follow."""
    array = np.asarray(given)
    return np.asarray(given, dtype=object) if array.dtype.kind in "SU" and not isinstance(given, np.ndarray) else array


def _bytes_tensor(name: str, array: Array) -> bytes:
    parts = []
    for element in array.ravel():
        if not isinstance(element, str | bytes | bytearray | memoryview):
            raise InvalidInput(f"input {name}: element", element, "must be str or bytes, as in every array of dtype object")
        raw = element.encode() if isinstance(element, str) else bytes(element)
        parts.append(struct.pack("<I", len(raw)) + raw)
    return b"".join(parts)


def _encode(name: str, array: Array) -> tuple[str, bytes]:
    if array.dtype.kind in "OSU":
        return "BYTES", _bytes_tensor(name, array)
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
    objectives: Objectives | None = None,
    request_id: str = "",
) -> bytes:
    """The encoded ModelInferRequest (raw contents). How many texts a request may have, the runtime says: `tessera.sdk.Client.infer`.

    Raises:
        InvalidInput: an array's dtype has no Open Inference name, an object in one is neither str nor bytes, a parameter's type is none of
            bool, int, float, str, or an objective is said twice.
    """
    request = oip.ModelInferRequest(model_name=model, model_version="" if version is None else str(version), id=request_id)
    for name, given in inputs.items():
        array = _array(given)
        datatype, raw = _encode(name, array)
        request.inputs.add(name=name, datatype=datatype, shape=array.shape)
        request.raw_input_contents.append(raw)
    for name in outputs or ():
        request.outputs.add(name=name)
    asked_for = _said(objectives)
    for name, value in (parameters or {}).items():
        if name in asked_for:
            raise InvalidInput(f"parameter {name}", value, "is among the objectives, too")
        _set_parameter(request.parameters[name], name, value)
    for name, value in asked_for.items():
        _set_parameter(request.parameters[name], name, value)
    return request.SerializeToString()


def _said(objectives: Objectives | None) -> dict[str, Parameter]:
    """What was asked for, as request parameters."""
    given = {} if objectives is None else {each.name: getattr(objectives, each.name) for each in fields(objectives)}
    return {name: value for name, value in given.items() if value not in (None, "", False)}


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
    """Raises: Internal when the bytes do not make the tensor that the answer describes."""
    shape = tuple(output.shape)
    try:
        if output.datatype == "BYTES":
            return _objects(_split(raw)).reshape(shape)
        if output.datatype == "BF16":
            wide = np.frombuffer(raw, dtype="<u2").astype(np.uint32) << 16
            return wide.view(np.float32).reshape(shape)
        return np.frombuffer(raw, dtype=_FROM_WIRE[output.datatype]).reshape(shape)
    except (KeyError, ValueError, struct.error) as error:
        described = f"{output.datatype} {list(shape)}"
        raise Internal(f"output {output.name}: {len(raw)} bytes do not make {described}: {error}") from None


def _split(raw: bytes) -> list[bytes]:
    elements: list[bytes] = []
    at = 0
    while at < len(raw):
        (length,) = struct.unpack_from("<I", raw, at)
        at += 4
        if at + length > len(raw):
            raise ValueError(f"element {len(elements)} of {length} bytes ends behind them")
        elements.append(raw[at : at + length])
        at += length
    return elements


def _objects(elements: Sequence[bytes]) -> Array:
    array = np.empty(len(elements), dtype=object)
    array[:] = elements
    return array


def _decode_typed(output: oip.ModelInferResponse.InferOutputTensor) -> Array:
    """An output in the fields of InferTensorContents, which a server may answer with instead of raw bytes."""
    filled = [values for _, values in output.contents.ListFields()]
    values = filled[0] if filled else []
    if output.datatype == "BYTES":
        return _objects(list(values)).reshape(tuple(output.shape))
    return np.asarray(values, dtype=_FROM_WIRE[output.datatype]).reshape(tuple(output.shape))


def infer_result(data: bytes) -> InferResult:
    """Reads an encoded ModelInferResponse. Arrays are views of its bytes and cannot be written to.

    Raises:
        Internal: the answer does not hold what it describes.
    """
    answer = oip.ModelInferResponse.FromString(data)
    found: dict[str, Parameter] = {}
    for name, parameter in answer.parameters.items():
        kind = parameter.WhichOneof("parameter_choice")
        if kind is not None:
            found[name] = getattr(parameter, kind)
    known = {name: str(found.pop(name, "")) for name in ("variant", "node", "start_path", "request_id", "objective_missed")}
    answered_by = str(found.pop("model", "")) or f"{answer.model_name}@{answer.model_version}"
    raw = answer.raw_output_contents
    if raw and len(raw) != len(answer.outputs):
        raise Internal(f"the answer has {len(answer.outputs)} outputs and {len(raw)} raw contents")
    if raw:
        outputs = {output.name: _decode(output, content) for output, content in zip(answer.outputs, raw, strict=True)}
    else:
        outputs = {output.name: _decode_typed(output) for output in answer.outputs}
    return InferResult(outputs, answer.model_name, answer.model_version, id=answer.id, answered_by=answered_by, parameters=found, **known)


_REQUEST_ID = re.compile(r"(?!0{32})[0-9a-f]{32}")

Metadata = tuple[tuple[str, str], ...]


def request_context(request_id: str | None) -> tuple[str, Metadata]:
    """The id that a request will be known by, and the metadata that says so.

    Within a span of the program's own the request joins that trace, else it gets an id of its own.

    Raises:
        InvalidInput: a given id is not 32 lowercase hex digits.
    """
    if request_id is None:
        # Nobody has opened a span where telemetry was never imported.
        telemetry = sys.modules.get("tessera.telemetry")
        context = telemetry.current_context() if telemetry is not None else None
        if context is not None:
            return context.trace_id, ()
        request_id = os.urandom(16).hex()
    elif not _REQUEST_ID.fullmatch(request_id):
        raise InvalidInput("request_id", request_id[:80], "must be 32 lowercase hex digits, not all zero")
    return request_id, (("traceparent", f"00-{request_id}-{os.urandom(8).hex()}-01"),)


def note(error: TesseraError, request_id: str) -> None:
    """Puts the request's id into the error's traceback, so that `tessera explain` can be asked about it."""
    error.add_note(f"request id {request_id}")
