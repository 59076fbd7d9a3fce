"""npz: an array of all rows per input; read a batch at a time, so that a file larger than memory does."""

from __future__ import annotations

import io
import math
import zipfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from typing import BinaryIO, cast

import numpy as np
from numpy.lib import format as npy

from tessera.domain.errors import DataCorrupted, InvalidInput
from tessera.domain.signature import Signature
from tessera.profiler.batch.core.answers import Answers, check_storable, filled
from tessera.profiler.batch.core.checkpoint import PartNote
from tessera.profiler.batch.core.rows import Array, Chunk, Portion, check_column, row_specs
from tessera.profiler.batch.ports import OpenFile, ReadPart, Source

MAX_READ_BYTES = 64 << 20
_BROKEN = (zipfile.BadZipFile, zlib.error, EOFError, ValueError, NotImplementedError, RuntimeError)
"""What the readers of zip and npy say to bytes that are none."""


class _Column:
    """One array of the file, read from front to back."""

    def __init__(self, open_file: OpenFile, name: str) -> None:
        self._open_file = open_file
        self._name = name
        self._file: BinaryIO | None = None
        self._at = 0
        self._open()
        self.shape, self.dtype, self.fortran = self._header()

    def _open(self) -> None:
        self.close()
        self._file = self._open_file()
        self._member = zipfile.ZipFile(self._file).open(f"{self._name}.npy")  # noqa: SIM115 # read bit by bit; `close` ends it
        self._at = 0

    def _header(self) -> tuple[tuple[int, ...], np.dtype[np.generic], bool]:
        version = npy.read_magic(self._member)
        if version not in ((1, 0), (2, 0)):
            raise ValueError(f"npy version {version}")
        read = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
        shape, fortran, dtype = read(self._member)
        if any(size < 0 for size in shape):
            raise ValueError(f"shape {list(shape)}")
        return shape, dtype, bool(fortran)

    @property
    def row_bytes(self) -> int:
        return self.dtype.itemsize * math.prod(self.shape[1:])

    def rows(self, first: int, count: int) -> Array:
        if first < self._at:
            self._open()
            self._header()
        self._pass_over((first - self._at) * self.row_bytes)
        data = self._take(count * self.row_bytes)
        self._at = first + count
        return np.frombuffer(data, self.dtype).reshape((count, *self.shape[1:]))

    def _pass_over(self, size_bytes: int) -> None:
        while size_bytes > 0:
            size_bytes -= len(self._take(min(size_bytes, 1 << 20)))

    def _take(self, size_bytes: int) -> bytes:
        data = bytearray()
        while len(data) < size_bytes:
            piece = self._member.read(size_bytes - len(data))
            if not piece:
                raise EOFError(f"array {self._name} ends early")
            data += piece
        return bytes(data)

    def close(self) -> None:
        if self._file is not None:
            self._member.close()
            self._file.close()
            self._file = None


class _NpzSource:
    def __init__(self, columns: Mapping[str, _Column], rows: int) -> None:
        self._columns = columns
        self._row_bytes = sum(column.row_bytes for column in columns.values())
        self.rows = rows
        if self._row_bytes > MAX_READ_BYTES:
            # A small file can say so, and be unpacked to it.
            raise InvalidInput("input rows", f"{self._row_bytes} bytes each", f"must be at most {MAX_READ_BYTES}, what a request may have")

    def read(self, first: int, most: int) -> Portion:
        count = min(most, self.rows - first, max(1, MAX_READ_BYTES // max(1, self._row_bytes)))
        try:
            inputs = {name: column.rows(first, count) for name, column in self._columns.items()}
        except _BROKEN as error:
            raise DataCorrupted(f"the input is damaged near row {first}: {error}") from error
        return Portion(count, (Chunk(first, count, inputs),))

    def close(self) -> None:
        for column in self._columns.values():
            column.close()


class NpzFormat:
    def open_source(self, open_file: OpenFile, signature: Signature, count: bool) -> Source:
        specs = row_specs(signature)
        columns: dict[str, _Column] = {}
        try:
            present = _members(open_file)
            missing = [spec.name for spec in specs if spec.name not in present]
            if missing:
                raise InvalidInput("input arrays", ", ".join(missing), f"missing; the file has {', '.join(present)[:300] or 'none'}")
            for spec in specs:
                column = columns[spec.name] = _Column(open_file, spec.name)
                check_column(spec, column.dtype, column.shape)
                if column.fortran and len(column.shape) > 1:
                    raise InvalidInput(f"array {spec.name}", None, "is stored by columns: save numpy.ascontiguousarray of it")
            return _NpzSource(columns, _row_count(columns))
        except BaseException as error:
            for column in columns.values():
                column.close()
            if isinstance(error, _BROKEN):
                raise DataCorrupted(f"the input is no npz file: {error}") from error
            raise

    def encode(self, answers: Answers) -> bytes:
        buffer = io.BytesIO()
        np.savez(buffer, allow_pickle=False, **{name: answers.column(name) for name in answers.names()})
        return buffer.getvalue()

    def join(self, target: BinaryIO, parts: Sequence[PartNote], read: ReadPart) -> Iterator[None]:
        """An array at a time, each part of it in turn: memory holds one part."""
        forms: dict[str, tuple[np.dtype[np.generic], tuple[int, ...]]] = {}
        for part in parts:
            for name, array in _arrays(read(part)):
                check_storable(name, array.dtype)
                form = forms.setdefault(name, (array.dtype, array.shape[1:]))
                if form != (array.dtype, array.shape[1:]):
                    shapes = f"{list(form[1])} and {list(array.shape[1:])}"
                    raise InvalidInput(f"output {name}", None, f"has rows of shapes {shapes}: npz cannot hold them, jsonl and parquet can")
            yield
        rows = sum(part.rows for part in parts)
        with zipfile.ZipFile(target, "w", zipfile.ZIP_STORED) as archive:
            for name, (dtype, shape) in sorted(forms.items()):
                with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                    described = {"descr": npy.dtype_to_descr(dtype), "fortran_order": False, "shape": (rows, *shape)}
                    npy.write_array_header_2_0(cast(BinaryIO, member), described)
                    for part in parts:
                        found = dict(_arrays(read(part))).get(name)
                        member.write((filled(part.rows, dtype, shape) if found is None else found).tobytes())
                        yield


def _members(open_file: OpenFile) -> list[str]:
    with open_file() as file, zipfile.ZipFile(file) as archive:
        return [name.removesuffix(".npy") for name in archive.namelist() if name.endswith(".npy")]


def _row_count(columns: Mapping[str, _Column]) -> int:
    """Raises: InvalidInput: arrays differ in their number of rows, or have none."""
    counts = {name: column.shape[0] for name, column in columns.items()}
    if len(set(counts.values())) > 1:
        raise InvalidInput("input arrays", ", ".join(f"{name}: {count}" for name, count in counts.items()), "must have as many rows each")
    rows = next(iter(counts.values()))
    if rows == 0:
        raise InvalidInput("input arrays", None, "have no rows")
    return rows


def _arrays(data: bytes) -> Iterator[tuple[str, Array]]:
    with np.load(io.BytesIO(data), allow_pickle=False) as found:
        for name in found.files:
            yield name, found[name]
