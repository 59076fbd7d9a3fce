"""parquet: a column per input or output, lists for tensors; a row that failed is null and has its words in `_error`.

pyarrow is the extra `tessera-profiler[parquet]`.
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from tessera.domain.errors import DataCorrupted, InvalidInput
from tessera.domain.signature import Signature
from tessera.profiler.batch.core.answers import Answers
from tessera.profiler.batch.core.checkpoint import PartNote, RowError
from tessera.profiler.batch.core.rows import Array, Portion, chunks_of, row_specs, value_of
from tessera.profiler.batch.ports import OpenFile, ReadPart, Source

ERROR = "_error"


class _ParquetSource:
    def __init__(self, open_file: OpenFile, signature: Signature) -> None:
        self._specs = row_specs(signature)
        self._file = open_file()
        try:
            self._parquet = pq.ParquetFile(self._file)
            names = self._parquet.schema_arrow.names
        except (pa.ArrowException, ValueError) as error:
            self._file.close()
            raise DataCorrupted(f"the input is no parquet file: {error}") from error
        missing = [spec.name for spec in self._specs if spec.name not in names]
        if missing:
            self._file.close()
            raise InvalidInput("input columns", ", ".join(missing), f"missing; the file has {', '.join(names)[:300]}")
        self.rows: int = self._parquet.metadata.num_rows
        if not self.rows:
            self._file.close()
            raise InvalidInput("input", None, "has no rows")
        self._batches: Iterator[Any] = iter(())
        self._held: Any = None
        self._at = -1

    def read(self, first: int, most: int) -> Portion:
        """One batch of a row group is in memory at a time."""
        most = min(most, self.rows - first)
        found: list[Mapping[str, Array] | RowError] = []
        try:
            if first != self._at:
                self._seek(first, most)
            while len(found) < most:
                if self._held is None or not self._held.num_rows:
                    self._held = next(self._batches)
                taken = self._held.slice(0, most - len(found))
                self._held = self._held.slice(taken.num_rows)
                columns = {spec.name: taken.column(spec.name) for spec in self._specs}
                for offset in range(taken.num_rows):
                    found.append(self._row(first + len(found), {name: column[offset] for name, column in columns.items()}))
        except (pa.ArrowException, OSError, StopIteration) as error:
            raise DataCorrupted(f"the input is damaged near row {first + len(found)}: {error}") from error
        self._at = first + most
        return chunks_of(first, found)

    def _seek(self, first: int, most: int) -> None:
        group, before = 0, 0
        while before + self._parquet.metadata.row_group(group).num_rows <= first:
            before += self._parquet.metadata.row_group(group).num_rows
            group += 1
        groups = list(range(group, self._parquet.num_row_groups))
        names = [spec.name for spec in self._specs]
        self._batches = self._parquet.iter_batches(batch_size=most, row_groups=groups, columns=names)
        self._held = None
        skip = first - before
        while skip:
            batch = next(self._batches)
            self._held = batch.slice(min(skip, batch.num_rows))
            skip -= min(skip, batch.num_rows)

    def _row(self, row: int, cells: Mapping[str, Any]) -> Mapping[str, Array] | RowError:
        try:
            return {spec.name: value_of(spec, _value(cells[spec.name])) for spec in self._specs}
        except InvalidInput as error:
            return RowError(row, error.kind, error.message[:300])

    def close(self) -> None:
        self._batches = iter(())
        self._parquet.close(force=True)
        self._file.close()


class ParquetFormat:
    def open_source(self, open_file: OpenFile, signature: Signature, count: bool) -> Source:
        source = _ParquetSource(open_file, signature)
        if not count:
            try:
                portion = source.read(0, 1)
                if portion.errors:
                    raise InvalidInput("input row 0", None, portion.errors[0].message)
            except BaseException:
                source.close()
                raise
        return source

    def encode(self, answers: Answers) -> bytes:
        errors = answers.errors_by_row()
        columns = {name: _column([None if row is None else row for row in answers.by_row(name)]) for name in answers.names()}
        words = [errors.get(row) for row in range(answers.first, answers.first + answers.rows)]
        columns[ERROR] = pa.array([None if error is None else f"{error.kind}: {error.message}" for error in words], pa.string())
        buffer = io.BytesIO()
        pq.write_table(pa.table(columns), buffer)
        return buffer.getvalue()

    def join(self, target: BinaryIO, parts: Sequence[PartNote], read: ReadPart) -> Iterator[None]:
        """Parts become row groups; one whose rows all failed lacks the columns of the others."""
        schema: Any = None
        for part in parts:
            found = pq.read_schema(io.BytesIO(read(part)))
            if schema is None or len(found.names) > len(schema.names):
                schema = found
            yield
        with pq.ParquetWriter(pa.PythonFile(target, mode="w"), schema) as writer:
            for part in parts:
                table = pq.read_table(io.BytesIO(read(part)))
                lacking = [field for field in schema if field.name not in table.column_names]
                for field in lacking:
                    table = table.append_column(field, pa.nulls(table.num_rows, field.type))
                if table.select(schema.names).schema != schema:
                    raise InvalidInput("outputs", str(table.schema)[:200], "rows of different parts differ in type: write jsonl")
                writer.write_table(table.select(schema.names))
                yield


def _value(cell: Any) -> Any:
    """A cell as numpy or plain values; texts as they are."""
    if not cell.is_valid:
        return None
    values = getattr(cell, "values", None)
    if isinstance(values, pa.Array) and not values.null_count and pa.types.is_primitive(values.type):
        return values.to_numpy(zero_copy_only=False)
    return cell.as_py()


def _column(rows: list[Array | None]) -> Any:
    """Rows of one output as lists as deep as it has dimensions."""
    example = next(row for row in rows if row is not None)
    inner = pa.binary() if example.dtype.hasobject else pa.from_numpy_dtype(example.dtype)
    kind: Any = inner
    for _ in range(example.ndim):
        kind = pa.list_(kind)
    if example.ndim == 1 and not example.dtype.hasobject:
        # By far the most common, and ten times faster than by Python's lists.
        lengths = [0 if row is None else len(row) for row in rows]
        offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
        values = np.concatenate([row for row in rows if row is not None])
        mask = pa.array([row is None for row in rows])
        return pa.ListArray.from_arrays(pa.array(offsets), pa.array(values, inner), mask=mask)
    return pa.array([None if row is None else row.tolist() for row in rows], kind)
