"""jsonl: a JSON object per line, values by input or output name; a row that failed is `{"_error": {...}}`. Blank lines are no rows."""

from __future__ import annotations

import base64
import binascii
import io
from collections.abc import Generator, Iterator, Mapping, Sequence
from typing import Any, BinaryIO

import msgspec

from tessera.domain.errors import DataCorrupted, InvalidInput
from tessera.domain.signature import Signature
from tessera.profiler.batch.core.answers import Answers
from tessera.profiler.batch.core.checkpoint import PartNote, RowError
from tessera.profiler.batch.core.rows import Array, Portion, chunks_of, row_specs, value_of
from tessera.profiler.batch.ports import OpenFile, ReadPart, Source

MAX_LINE_BYTES = 16 << 20
ERROR = "_error"
_BUFFER_BYTES = 1 << 20
_PROBED_ROWS = 1
_ENCODER = msgspec.json.Encoder()


class _JsonlSource:
    def __init__(self, open_file: OpenFile, signature: Signature) -> None:
        self._open_file = open_file
        self._specs = row_specs(signature)
        self._lines: Generator[bytes, None, None] | None = None
        self._at = 0
        self.rows = 0

    def _open(self) -> Generator[bytes, None, None]:
        with self._open_file() as file, io.BufferedReader(file, _BUFFER_BYTES) as reader:  # type: ignore[type-var] # readinto is all it needs
            yield from _lines(reader)

    def count(self) -> None:
        self.rows = sum(1 for _ in self._open())
        if not self.rows:
            raise InvalidInput("input", None, "has no rows")

    def read(self, first: int, most: int) -> Portion:
        if first < self._at:
            self.close()
        if self._lines is None:
            self._lines, self._at = self._open(), 0
        lines = self._lines
        while self._at < first and next(lines, None) is not None:
            self._at += 1
        found: list[Mapping[str, Array] | RowError] = []
        while len(found) < most and (line := next(lines, None)) is not None:
            found.append(self._row(first + len(found), line))
        self._at = first + len(found)
        return chunks_of(first, found)

    def _row(self, row: int, line: bytes) -> Mapping[str, Array] | RowError:
        try:
            values = msgspec.json.decode(line, type=dict[str, Any])
            return {spec.name: value_of(spec, _texts(values.get(spec.name))) for spec in self._specs}
        except (msgspec.MsgspecError, UnicodeDecodeError) as error:
            return RowError(row, InvalidInput.kind, f"is no JSON object: {error}"[:300])
        except RecursionError:
            return RowError(row, InvalidInput.kind, "is nested too deep")
        except InvalidInput as error:
            return RowError(row, error.kind, error.message[:300])

    def close(self) -> None:
        if self._lines is not None:
            self._lines.close()
            self._lines = None


class JsonlFormat:
    def open_source(self, open_file: OpenFile, signature: Signature, count: bool) -> Source:
        source = _JsonlSource(open_file, signature)
        try:
            if count:
                source.count()
            else:
                _probe(source)
        except BaseException:
            source.close()
            raise
        return source

    def encode(self, answers: Answers) -> bytes:
        errors = answers.errors_by_row()
        columns = {name: answers.by_row(name) for name in answers.names()}
        lines = []
        for row in range(answers.first, answers.first + answers.rows):
            values = {name: next(column) for name, column in columns.items()}
            error = errors.get(row)
            said = (
                {ERROR: {"kind": error.kind, "message": error.message}} if error else {name: _plain(each) for name, each in values.items()}
            )
            lines.append(_ENCODER.encode(said))
        return b"\n".join(lines) + b"\n"

    def join(self, target: BinaryIO, parts: Sequence[PartNote], read: ReadPart) -> Iterator[None]:
        for part in parts:
            target.write(read(part))
            yield


def _lines(reader: Any) -> Iterator[bytes]:
    number = 0
    while line := reader.readline(MAX_LINE_BYTES + 1):
        number += 1
        if len(line) > MAX_LINE_BYTES:
            raise DataCorrupted(f"line {number} of the input is longer than {MAX_LINE_BYTES} bytes")
        if line.strip():
            yield line


def _probe(source: _JsonlSource) -> None:
    """Raises: InvalidInput: not even the first row can be sent."""
    portion = source.read(0, _PROBED_ROWS)
    if portion.errors:
        raise InvalidInput("input row 0", None, portion.errors[0].message)
    if not portion.rows:
        raise InvalidInput("input", None, "has no rows")


def _texts(value: Any) -> Any:
    """`{"base64": TEXT}` stands for bytes that are no text. Raises: InvalidInput."""
    if isinstance(value, list):
        return [_texts(each) for each in value] if value and isinstance(value[0], list | dict | str) else value
    if isinstance(value, dict):
        try:
            return base64.b64decode(value["base64"], validate=True)
        except (KeyError, TypeError, binascii.Error):
            raise InvalidInput("object", str(value)[:60], 'only {"base64": TEXT} stands for a value') from None
    return value


def _plain(value: Array | None) -> Any:
    """As JSON has it: NaN and infinities become null, BYTES texts (`{"base64": ...}` where they are none)."""
    if value is None:
        return None
    if value.dtype.kind != "O":
        return value.tolist()
    return _plain_text(value.tolist())


def _plain_text(value: Any) -> Any:
    if isinstance(value, list):
        return [_plain_text(each) for each in value]
    raw = bytes(value) if not isinstance(value, str) else value.encode()
    try:
        return raw.decode()
    except UnicodeDecodeError:
        return {"base64": base64.b64encode(raw).decode()}
