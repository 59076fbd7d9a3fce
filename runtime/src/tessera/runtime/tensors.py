"""Tensors of a request checked against the signature, and answers turned into Open Inference outputs."""

from __future__ import annotations

import math
import struct
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from tessera.domain.errors import Internal, InvalidInput
from tessera.domain.signature import ANY_DATATYPE, DATATYPES, Signature, TensorSpec
from tessera.frames.codec import Buffer
from tessera.frames.openinference import ContentValues, InferInput, InferRequest, OutputTensor
from tessera.runtime import varints
from tessera.runtime.backends.interface import Tensor
from tessera.runtime.contents import CONTENTS_OF, MAX_ELEMENTS, MAX_NUMBERS, Decoder

_U32 = struct.Struct("<I")


@dataclass(frozen=True, slots=True)
class CheckedRequest:
    """`rows`: the batch size, 1 where the signature is not batched. `raw`: how to answer. `outputs`: what to answer, in order."""

    tensors: dict[str, Tensor]
    rows: int
    raw: bool
    outputs: tuple[str, ...]
    timeout_us: int | None


def check_request(request: InferRequest, signature: Signature, max_batch: int) -> CheckedRequest:
    """Raises:
    InvalidInput: names the field, the value and the limit; `Decoder` has those of how many values there may be.
    """
    raw = request.raw_input_contents
    if not request.inputs:
        raise InvalidInput("inputs", None, f"must hold {', '.join(spec.name for spec in signature.inputs)}; there are none")
    if raw and any(tensor.contents is not None for tensor in request.inputs):
        raise InvalidInput("raw_input_contents", None, "raw and typed contents may not be mixed in one request")
    if raw and len(raw) != len(request.inputs):
        raise InvalidInput("raw_input_contents", len(raw), f"must have one entry for each of the {len(request.inputs)} inputs")
    tensors: dict[str, Tensor] = {}
    decoder = Decoder()
    for index, tensor in enumerate(request.inputs):
        spec = signature.input(tensor.name)
        if spec is None:
            known = ", ".join(item.name for item in signature.inputs)
            raise InvalidInput("inputs.name", tensor.name[:80], f"the model has {known}")
        if tensor.name in tensors:
            raise InvalidInput("inputs.name", tensor.name, "is there twice")
        count = _check_spec(tensor, spec)
        data = raw[index] if raw else None
        array = decoder.array(tensor, count, data)
        try:
            tensors[tensor.name] = Tensor(tensor.datatype, array.reshape(tensor.shape))
        except ValueError:  # no elements, but dimensions whose product no array has
            raise InvalidInput(f"inputs {tensor.name} shape", tensor.shape[:16], "is too large") from None
    missing = [spec.name for spec in signature.inputs if spec.name not in tensors]
    if missing:
        raise InvalidInput("inputs", None, f"{', '.join(missing)} {'is' if len(missing) == 1 else 'are'} missing")
    rows = _rows(tensors, max_batch) if signature.batched else 1
    return CheckedRequest(tensors, rows, _answer_raw(request), _outputs(request, signature), _timeout_us(request))


def _check_spec(tensor: InferInput, spec: TensorSpec) -> int:
    """Datatype, rank and dimensions; returns the number of elements."""
    field = f"inputs {tensor.name}"
    if spec.datatype == ANY_DATATYPE:
        if tensor.datatype not in DATATYPES:
            raise InvalidInput(f"{field} datatype", tensor.datatype[:40], f"must be one of {', '.join(DATATYPES)}")
    elif tensor.datatype != spec.datatype:
        raise InvalidInput(f"{field} datatype", tensor.datatype[:40], f"must be {spec.datatype}")
    shape = tensor.shape
    if any(dimension < 0 for dimension in shape):
        raise InvalidInput(f"{field} shape", shape[:16], "dimensions must not be negative")
    if not spec.any_rank:
        fits = len(shape) == len(spec.shape) and all(want in (-1, got) for want, got in zip(spec.shape, shape, strict=True))
        if not fits:
            raise InvalidInput(f"{field} shape", shape[:16], f"must be {list(spec.shape)} (-1: any)")
    elif len(shape) > 32:
        raise InvalidInput(f"{field} shape", None, f"{len(shape)} dimensions: at most 32")
    return math.prod(shape)


def _rows(tensors: Mapping[str, Tensor], max_batch: int) -> int:
    rows: int | None = None
    for name, tensor in tensors.items():
        if not tensor.array.shape:
            raise InvalidInput(f"inputs {name} shape", [], "must have a batch dimension")
        got = tensor.array.shape[0]
        if rows is not None and got != rows:
            raise InvalidInput(
                f"inputs {name} shape", list(tensor.array.shape), f"the batch (dimension 0) must be {rows} as in the other inputs"
            )
        rows = got
    if rows is None or not 1 <= rows <= max_batch:
        raise InvalidInput("batch (dimension 0)", rows, f"must be 1 to {max_batch}")
    return rows


def _answer_raw(request: InferRequest) -> bool:
    wanted = request.parameters.get("binary_data_output")
    if wanted is None:
        return bool(request.raw_input_contents)
    if not isinstance(wanted, bool):
        raise InvalidInput("parameters binary_data_output", wanted, "must be a bool")
    return wanted


def _timeout_us(request: InferRequest) -> int | None:
    timeout = request.parameters.get("timeout")
    if timeout is None:
        return None
    if isinstance(timeout, bool) or not isinstance(timeout, int) or timeout < 0:
        raise InvalidInput("parameters timeout", timeout, "must be a whole number of microseconds, at least 0")
    return timeout or None


def _outputs(request: InferRequest, signature: Signature) -> tuple[str, ...]:
    known = [spec.name for spec in signature.outputs]
    if not request.outputs:
        return tuple(known)
    wanted: list[str] = []
    for output in request.outputs:
        if output.name not in known:
            raise InvalidInput("outputs.name", output.name[:80], f"the model has {', '.join(known)}")
        if output.name in wanted:
            raise InvalidInput("outputs.name", output.name, "is there twice")
        wanted.append(output.name)
    return tuple(wanted)


def output_tensors(answers: Mapping[str, Tensor], names: tuple[str, ...], raw: bool) -> list[OutputTensor]:
    """What `encode_response` wants. Typed where `raw` is False, except that FP16 and BF16, which have no typed form, make all raw, and so
    do more booleans and integers than `MAX_NUMBERS`.

    Raises:
        InvalidInput: more than `MAX_ELEMENTS` of BYTES, which are written one by one in either form.
    """
    elements = sum(answers[name].array.size for name in names if answers[name].datatype == "BYTES")
    if elements > MAX_ELEMENTS:
        raise InvalidInput("outputs elements", elements, f"at most {MAX_ELEMENTS} of BYTES in one answer: send less at a time")
    raw = raw or any(answers[name].datatype not in CONTENTS_OF for name in names)
    raw = raw or sum(answers[name].array.size for name in names if answers[name].array.dtype.kind in "biu") > MAX_NUMBERS
    return [
        OutputTensor(
            name, answers[name].datatype, answers[name].array.shape, _raw_data(answers[name]) if raw else _typed_data(answers[name])
        )
        for name in names
    ]


def _raw_data(tensor: Tensor) -> Buffer:
    if tensor.datatype == "BYTES":
        return b"".join(_U32.pack(len(element)) + element for element in tensor.array.reshape(-1))
    array = np.ascontiguousarray(tensor.array)
    return array.reshape(-1).view(np.uint8).data if array.size else b""


def _typed_data(tensor: Tensor) -> tuple[str, ContentValues]:
    field = CONTENTS_OF[tensor.datatype]
    if tensor.datatype in ("FP32", "FP64"):
        return field, _raw_data(tensor)
    return field, tensor.array.reshape(-1).tolist() if tensor.datatype == "BYTES" else varints.encode(tensor.array)


def join(parts: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    """Requests joined along dimension 0. All have the same names, datatypes and further dimensions (see `joinable_key`)."""
    if len(parts) == 1:
        return parts[0]
    return {name: Tensor(tensor.datatype, np.concatenate([part[name].array for part in parts])) for name, tensor in parts[0].items()}


def joinable_key(tensors: Mapping[str, Tensor]) -> tuple[tuple[str, str, tuple[int, ...]], ...]:
    """Requests with equal keys may share a batch."""
    return tuple((name, tensors[name].datatype, tensors[name].array.shape[1:]) for name in sorted(tensors))


def split(answers: Mapping[str, Tensor], rows: list[int]) -> list[dict[str, Tensor]]:
    """Each request's part of a batch's answers.

    Raises:
        Internal: an output does not have the batch in dimension 0, so that nobody can say whose is what.
    """
    if len(rows) == 1:
        return [dict(answers)]
    total = sum(rows)
    for name, tensor in answers.items():
        if not tensor.array.shape or tensor.array.shape[0] != total:
            raise Internal(f"output {name} has shape {list(tensor.array.shape)} for a batch of {total}: it cannot be split")
    parts, start = [], 0
    for count in rows:
        parts.append({name: Tensor(tensor.datatype, tensor.array[start : start + count]) for name, tensor in answers.items()})
        start += count
    return parts
