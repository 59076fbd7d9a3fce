"""What a job has written, as JSON beside it: a manifest (what is done) and a note for each part (that it is complete).

A part counts when its note is there: the note is written after the part, each whole or not at all. `manifest.json` of a running job
says what may go on here; that of a done one has all notes in it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeVar

import msgspec

from tessera.domain.errors import DataCorrupted
from tessera.domain.objectives import NO_OBJECTIVES, Objectives
from tessera.domain.records import BatchRecord

LAYOUT = 1
MAX_MESSAGE_CHARS = 300

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class RowError:
    """A row that was not answered; rows count from 0. `kind`: of `tessera.domain.errors`."""

    row: int
    kind: str
    message: str


@dataclass(frozen=True, slots=True)
class PartNote:
    """A complete part: rows `first` to `first + rows`, of which those in `errors` failed. `digest`: BLAKE3 of its bytes."""

    part: int
    first: int
    rows: int
    size_bytes: int
    digest: str
    errors: tuple[RowError, ...] = ()


@dataclass(frozen=True, slots=True)
class InputVersion:
    """Which bytes were read: by size, and the storage's mark of their version (ETag, else the time of modification)."""

    size_bytes: int
    mark: str


@dataclass(frozen=True, slots=True)
class Manifest:
    """`model`: what requests name (`BatchRecord.asked`). `done` False: a job is or was under way. `part_rows` 0: not known before the first
    answers. `digest`, `size_bytes`: of the file that the parts were joined into; "" and 0 where they stay parts."""

    job_id: str
    model: str
    input_url: str
    input_format: str
    input: InputVersion
    output_format: str
    rows: int
    part_rows: int = 0
    objectives: Objectives = NO_OBJECTIVES
    done: bool = False
    rows_failed: int = 0
    size_bytes: int = 0
    digest: str = ""
    parts: tuple[PartNote, ...] = ()
    layout: int = LAYOUT

    def why_not_continued(self, other: Manifest) -> str:
        """Why `other`'s job cannot go on where this one stopped; "" where it can."""
        differing = {
            "model": (self.model, other.model),
            "objectives": (self.objectives, other.objectives),
            "input": (self.input_url, other.input_url),
            "input's version": (self.input, other.input),
            "input format": (self.input_format, other.input_format),
            "output format": (self.output_format, other.output_format),
            "rows": (self.rows, other.rows),
        }
        reasons = [f"its {what} was {was}, now it is {now}" for what, (was, now) in differing.items() if was != now]
        if self.model != other.model and "@" in self.model and len(reasons) == 1:
            reasons.append(f"name {self.model} to go on there, or begin anew with overwrite")
        return "; ".join(reasons)

    def describes(self, job: BatchRecord) -> bool:
        return self.job_id == job.job_id


def encode(value: Manifest | PartNote) -> bytes:
    return msgspec.json.format(msgspec.json.encode(value), indent=1) + b"\n"


def decode(kind: type[T], data: bytes, where: str) -> T:
    """Raises: DataCorrupted: it is none, or of another layout; names the place."""
    try:
        found = msgspec.json.decode(data, type=kind)
    except msgspec.MsgspecError as error:
        raise DataCorrupted(f"{where} is no {kind.__name__}: {error}") from error
    if isinstance(found, Manifest) and found.layout != LAYOUT:
        raise DataCorrupted(f"{where} has layout {found.layout}, this profiler knows {LAYOUT}")
    return found


def finished(notes: Mapping[int, PartNote], sizes: Mapping[int, int], part_rows: int, rows: int) -> tuple[PartNote, ...]:
    """The parts from the first on that are complete and lie where they should; what follows a gap is made again.

    Args:
        sizes: bytes of each part that is there.
    """
    found: list[PartNote] = []
    for number in range(len(notes)):
        note = notes.get(number)
        first, count = part_range(number, part_rows, rows)
        if note is None or count <= 0 or (note.part, note.first, note.rows, note.size_bytes) != (number, first, count, sizes.get(number)):
            break
        found.append(note)
    return tuple(found)


def part_range(number: int, part_rows: int, rows: int) -> tuple[int, int]:
    """First row and number of rows of a part."""
    first = number * part_rows
    return first, max(0, min(part_rows, rows - first))


def part_rows_for(answer_bytes: int, answered_rows: int, batch_size: int, most_rows: int, most_bytes: int) -> int:
    """Rows of each part: as many as fit into both limits at the size of the first answers, whole batches, at least one of them."""
    fitting = most_rows
    if answer_bytes > 0 and answered_rows > 0:
        fitting = min(most_rows, most_bytes * answered_rows // answer_bytes)
    return max(batch_size, fitting // batch_size * batch_size)
