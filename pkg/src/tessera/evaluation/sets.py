"""An evaluation set: a numpy archive (`.npz`) with one array per input of the model and the right answers.

It is untrusted: nothing pickled is read, and no size is believed before the bytes that it claims are there.
"""

from __future__ import annotations

import io
import math
import zipfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from tessera.domain.accuracy import MIN_CALIBRATION_SAMPLES
from tessera.domain.errors import InvalidInput
from tessera.domain.signature import ANY_DATATYPE, DATATYPES, Signature, TensorSpec
from tessera.evaluation.base import LABELS, Array, Arrays

MAX_SET_BYTES = 1 << 30
"""Of all arrays together, unpacked."""
_MAX_ARRAYS = 256
_MAX_HEADER_BYTES = 10_000
_SHOWN = 80

_CODES: dict[str, str] = {
    "BOOL": "?", "UINT8": "u1", "UINT16": "u2", "UINT32": "u4", "UINT64": "u8", "INT8": "i1", "INT16": "i2", "INT32": "i4", "INT64": "i8",
    "FP16": "f2", "BF16": "u2", "FP32": "f4", "FP64": "f8",
}  # fmt: skip
"""numpy's dtype for a datatype. BF16, which numpy lacks, comes as its bits in uint16."""


@dataclass(frozen=True, slots=True)
class EvaluationSet:
    """`inputs`: one array per input of the signature, in its order; `truth`: the right answers, by output or `labels`.

    Samples stand in dimension 0 of every array. Where the signature is not batched that dimension comes before the model's own.
    """

    inputs: Arrays
    truth: Arrays
    samples: int
    batched: bool

    def requests(self, max_batch: int) -> Iterator[dict[str, Array]]:
        """The inputs cut into what the model takes at once: `max_batch` samples, or one without its leading dimension."""
        step = max_batch if self.batched else 1
        for start in range(0, self.samples, step):
            yield {name: array[start : start + step] if self.batched else array[start] for name, array in self.inputs.items()}

    def joined(self, answers: Sequence[Arrays]) -> dict[str, Array]:
        """Answers to all of `requests`, in their order, as a metric wants them.

        Raises:
            InvalidInput: an output without the batch in dimension 0, or of a shape that changes from request to request.
        """
        found: dict[str, Array] = {}
        for name in answers[0] if answers else ():
            parts = [np.asarray(one[name]) for one in answers]
            try:
                found[name] = np.concatenate(parts) if self.batched else np.stack(parts)
            except ValueError:
                shapes = sorted({str(list(part.shape)) for part in parts})
                raise InvalidInput(f"output {name} shape", ", ".join(shapes[:4]), "must be the same for every sample") from None
            if len(found[name]) != self.samples:
                raise InvalidInput(f"output {name} shape", list(found[name].shape), f"must have {self.samples} samples in dimension 0")
        return found


def read_set(data: bytes | memoryview, signature: Signature, max_bytes: int = MAX_SET_BYTES) -> EvaluationSet:
    """The evaluation set in a `.npz` archive, checked against the model's signature.

    Raises:
        InvalidInput: not such an archive, larger than `max_bytes`, or an array is missing, unknown, or of another dtype or shape:
            names the array, what it is and what was expected.
    """
    found = _read(data, signature, max_bytes, "evaluation set")
    if not found.truth:
        names = ", ".join(spec.name for spec in signature.outputs)
        raise InvalidInput("evaluation set", ", ".join(found.inputs), f"has no right answers: an array {LABELS}, or one named {names}")
    return found


def read_inputs(data: bytes | memoryview, signature: Signature, max_bytes: int = MAX_SET_BYTES) -> EvaluationSet:
    """A calibration set: as `read_set`, and right answers may be left out.

    Raises:
        InvalidInput: as `read_set`, or it has fewer than `MIN_CALIBRATION_SAMPLES` samples.
    """
    found = _read(data, signature, max_bytes, "calibration set")
    if found.samples < MIN_CALIBRATION_SAMPLES:
        raise InvalidInput("calibration set samples", found.samples, f"at least {MIN_CALIBRATION_SAMPLES}")
    return found


def _read(data: bytes | memoryview, signature: Signature, max_bytes: int, what: str) -> EvaluationSet:
    arrays = _read_archive(data, max_bytes, what)
    inputs: dict[str, Array] = {}
    for spec in signature.inputs:
        if spec.name not in arrays:
            raise InvalidInput(what, ", ".join(sorted(arrays))[:_SHOWN] or "(empty)", f"input {spec.name} is missing")
        inputs[spec.name] = _fitting(arrays.pop(spec.name), spec, signature.batched, what)
    outputs = [spec.name for spec in signature.outputs]
    unknown = [name for name in arrays if name != LABELS and name not in outputs]
    if unknown:
        expected = ", ".join([*inputs, LABELS, *outputs])
        raise InvalidInput(f"{what}: array", unknown[0][:_SHOWN], f"must be named after an input, {LABELS} or an output: {expected}")
    samples = _samples({**inputs, **arrays}, what)
    return EvaluationSet(inputs, arrays, samples, signature.batched)


def _samples(arrays: Mapping[str, Array], what: str) -> int:
    first, samples = "", -1
    for name, array in arrays.items():
        if not array.shape or not len(array):
            raise InvalidInput(f"{what}: {name} shape", list(array.shape), "must have at least 1 sample in dimension 0")
        if samples < 0:
            first, samples = name, len(array)
        if len(array) != samples:
            raise InvalidInput(f"{what}: {name} shape", list(array.shape), f"must have {samples} samples in dimension 0, as {first}")
    return samples


def _fitting(array: Array, spec: TensorSpec, batched: bool, what: str) -> Array:
    field = f"{what}: {spec.name}"
    if spec.datatype == ANY_DATATYPE:
        expected = [np.dtype(code) for code in _CODES.values()]
    elif spec.datatype in _CODES:
        expected = [np.dtype(_CODES[spec.datatype])]
    else:
        raise InvalidInput(field, spec.datatype, f"has no evaluation sets; there are some for {', '.join(_CODES)}")
    if array.dtype not in expected:
        raise InvalidInput(f"{field} dtype", str(array.dtype), f"must be {' or '.join(map(str, expected))} ({spec.datatype})")
    wanted = spec.shape if batched else (-1, *spec.shape)
    if spec.any_rank:
        return array
    # Dimension 0 counts the samples, also where the model was exported for one batch size alone.
    fits = array.ndim == len(wanted) and all(want in (-1, got) for want, got in zip(wanted[1:], array.shape[1:], strict=True))
    if not fits:
        raise InvalidInput(f"{field} shape", list(array.shape), f"must be {[-1, *wanted[1:]]} (-1: any; dimension 0 counts the samples)")
    return array


def _read_archive(data: bytes | memoryview, max_bytes: int, what: str) -> dict[str, Array]:
    if len(data) > max_bytes:
        raise InvalidInput(what, f"{len(data)} bytes", f"at most {max_bytes}")
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            entries = archive.infolist()
            _check_entries(entries, max_bytes, what)
            return {entry.filename.removesuffix(".npy"): _read_array(archive, entry, what) for entry in entries}
    except (zipfile.BadZipFile, zlib.error, EOFError, OSError, NotImplementedError, RuntimeError, UnicodeDecodeError) as error:
        raise InvalidInput(what, None, f"is no .npz archive of numpy.savez: {error}") from None


def _check_entries(entries: list[zipfile.ZipInfo], max_bytes: int, what: str) -> None:
    if len(entries) > _MAX_ARRAYS:
        raise InvalidInput(what, f"{len(entries)} arrays", f"at most {_MAX_ARRAYS}")
    total, names = 0, set()
    for entry in entries:
        if not entry.filename.endswith(".npy") or entry.filename in names:
            raise InvalidInput(f"{what}: entry", entry.filename[:_SHOWN], "must be a .npy array, once")
        if entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise InvalidInput(f"{what}: entry", entry.filename[:_SHOWN], "must be stored or deflated, as numpy.savez does")
        names.add(entry.filename)
        total += entry.file_size
    if total > max_bytes:
        raise InvalidInput(what, f"{total} bytes unpacked", f"at most {max_bytes}")


def _read_array(archive: zipfile.ZipFile, entry: zipfile.ZipInfo, what: str) -> Array:
    """The array, in native byte order and C order."""
    field = f"{what}: {entry.filename.removesuffix('.npy')[:_SHOWN]}"
    with archive.open(entry) as file:
        raw = file.read(entry.file_size + 1)
    head = io.BytesIO(raw)
    try:
        version = np.lib.format.read_magic(head)
        read_header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, fortran, dtype = read_header(head, max_header_size=_MAX_HEADER_BYTES)
    except (ValueError, TypeError, SyntaxError, RecursionError, MemoryError) as error:
        raise InvalidInput(field, None, f"is no .npy array: {str(error)[:200]}") from None
    if dtype.kind not in "biuf":
        raise InvalidInput(
            f"{field} dtype", str(dtype)[:_SHOWN], f"must be one of {', '.join(name for name in DATATYPES if name in _CODES)}"
        )
    bytes_left = len(raw) - head.tell()
    if min(shape, default=0) < 0 or math.prod(shape) * dtype.itemsize != bytes_left:
        raise InvalidInput(f"{field} shape", list(shape[:16]), f"of {dtype} does not make the {bytes_left} bytes that are there")
    try:
        flat = np.frombuffer(raw, dtype, offset=head.tell()) if bytes_left else np.empty(0, dtype)
        array: Array = flat.reshape(shape, order="F" if fortran else "C")
    except (ValueError, OverflowError):  # no elements, but dimensions whose product no array has
        raise InvalidInput(f"{field} shape", list(shape[:16]), "is too large") from None
    return np.ascontiguousarray(array.astype(dtype.newbyteorder("="), copy=False)).reshape(shape)
