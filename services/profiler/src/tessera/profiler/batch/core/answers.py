"""The answers of a part's rows, until the part is written."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from tessera.domain.errors import Internal, InvalidInput
from tessera.profiler.batch.core.checkpoint import RowError
from tessera.profiler.batch.core.rows import Array, Chunk


@dataclass(frozen=True, slots=True)
class Segment:
    """The answers to one request: dimension 0 of every array counts its rows."""

    first: int
    rows: int
    outputs: Mapping[str, Array]


def segment_of(chunk: Chunk, outputs: Mapping[str, Array], batched: bool) -> Segment:
    """Raises: Internal: an output has not as many rows as were asked about."""
    found = dict(outputs) if batched else {name: array[np.newaxis] for name, array in outputs.items()}
    for name, array in found.items():
        if not array.shape or array.shape[0] != chunk.rows:
            raise Internal(f"output {name} of shape {list(array.shape)} answers {chunk.rows} rows")
    return Segment(chunk.first, chunk.rows, found)


@dataclass(slots=True)
class Answers:
    """Rows `first` to `first + rows`; segments come in any order and leave in that of the rows."""

    first: int
    rows: int
    segments: list[Segment] = field(default_factory=list)
    errors: list[RowError] = field(default_factory=list)

    @property
    def answered(self) -> int:
        return sum(segment.rows for segment in self.segments)

    def check_complete(self) -> None:
        """Raises: Internal: a row was neither answered nor failed, or was twice."""
        seen = sorted([row for each in self.segments for row in range(each.first, each.first + each.rows)] + [e.row for e in self.errors])
        if seen != list(range(self.first, self.first + self.rows)):
            raise Internal(f"rows {self.first} to {self.first + self.rows} have {len(seen)} answers, not one each")

    def names(self) -> list[str]:
        return sorted({name for segment in self.segments for name in segment.outputs})

    def by_row(self, name: str) -> Iterator[Array | None]:
        """An output row by row; None for a row that failed."""
        at = self.first
        for segment in sorted(self.segments, key=lambda each: each.first):
            yield from (None for _ in range(at, segment.first))
            yield from segment.outputs[name]
            at = segment.first + segment.rows
        yield from (None for _ in range(at, self.first + self.rows))

    def column(self, name: str) -> Array:
        """An output as one array, failed rows filled in.

        Raises:
            InvalidInput: rows differ in shape, or are texts.
        """
        forms = {(segment.outputs[name].dtype, segment.outputs[name].shape[1:]) for segment in self.segments}
        if len(forms) > 1:
            shapes = sorted({str(list(shape)) for _, shape in forms})
            raise InvalidInput(
                f"output {name}", None, f"has rows of shapes {' and '.join(shapes)}: npz cannot hold them, jsonl and parquet can"
            )
        ((dtype, shape),) = forms
        check_storable(name, dtype)
        found = filled(self.rows, dtype, shape)
        for segment in self.segments:
            start = segment.first - self.first
            found[start : start + segment.rows] = segment.outputs[name]
        return found

    def errors_by_row(self) -> dict[int, RowError]:
        return {error.row: error for error in self.errors}


def check_storable(name: str, dtype: np.dtype[Any]) -> None:
    if dtype.hasobject:
        raise InvalidInput(f"output {name}", "BYTES", "npz cannot hold texts: write jsonl or parquet")


def filled(rows: int, dtype: np.dtype[Any], shape: tuple[int, ...]) -> Array:
    """What stands for rows that failed where a format has no word for nothing: NaN, 0 or false."""
    return np.full((rows, *shape), np.nan if dtype.kind == "f" else 0, dtype=dtype)


def size_bytes(segment: Segment) -> int:
    return sum(
        array.nbytes if not array.dtype.hasobject else sum(len(element) for element in array.ravel()) for array in segment.outputs.values()
    )
