"""What the sandbox is told, and what it answers. Both sides of the pipe use these classes."""

from __future__ import annotations

from typing import Any

import msgspec

from tessera.domain.accuracy import Agreement


class Limits(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What one import may use. Zero means: leave the process's own limit."""

    memory_bytes: int = 24 << 30
    cpu_s: int = 1800
    file_bytes: int = 64 << 30
    open_files: int = 4096
    threads: int = 4096
    nice: int = 5


class Builder(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A callable of the allow-list, its arguments (JSON values), the seed set before it is called."""

    reference: str
    arguments: dict[str, Any]
    seed: int


class Task(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One import.

    `source` holds the uploaded files under their paths; `out` is empty and receives `blobs/<digest>`. `builder` is None for a
    directory, `.pt2` or ONNX source. Folders are absolute paths, and so are `evaluation` and `calibration`: `.npz` files or "".
    """

    source: str
    out: str
    builder: Builder | None
    allowed_builders: tuple[str, ...]
    max_batch: int
    limits: Limits = Limits()
    make_onnx: bool = True
    evaluation: str = ""
    metric: str = ""
    calibration: str = ""


class Progress(msgspec.Struct, frozen=True, tag="progress", tag_field="event"):
    """`fraction` (0..1) of the import."""

    step: str
    message: str
    fraction: float


class Failure(msgspec.Struct, frozen=True, tag="failure", tag_field="event"):
    """The import ended with a domain error."""

    kind: str
    message: str


class Made(msgspec.Struct, frozen=True, tag="made", tag_field="event"):
    """The import ended well. `aten` and `onnx` are digests of artifacts below `out/blobs`. `aten` is "" for what came as ONNX, `onnx` is ""
    when that export failed, and `onnx_reason` says why. `blobs` lists everything below `out/blobs` as (digest, bytes), artifacts
    included."""

    source_kind: str
    aten: str
    onnx: str
    onnx_reason: str
    blobs: tuple[tuple[str, int], ...]
    notes: tuple[str, ...] = ()
    agreement: Agreement | None = None
    """Of the model itself on its evaluation set: only the score tells something."""


Event = Progress | Failure | Made

_ENCODER = msgspec.json.Encoder()
_DECODER: msgspec.json.Decoder[Event] = msgspec.json.Decoder(Event)


def encode_event(event: Event) -> bytes:
    """One line, newline included."""
    return _ENCODER.encode(event) + b"\n"


def decode_event(line: bytes) -> Event:
    """Raises: msgspec.MsgspecError when the line is not an event."""
    return _DECODER.decode(line)


def encode_task(task: Task) -> bytes:
    return _ENCODER.encode(task)


def decode_task(data: bytes) -> Task:
    return msgspec.json.decode(data, type=Task)
