"""Records as bytes in etcd: canonical JSON by msgspec, strict on the way in."""

from __future__ import annotations

from typing import Any, TypeVar

import msgspec

from tessera.domain.errors import DataCorrupted

T = TypeVar("T")

_ENCODER = msgspec.json.Encoder(order="deterministic")


def encode(record: Any) -> bytes:
    """Canonical JSON of a record (a frozen dataclass of tessera.domain)."""
    return _ENCODER.encode(record)


def decode(record_type: type[T], data: bytes) -> T:
    """Reads a record back.

    Raises:
        DataCorrupted: names the type and what does not fit.
    """
    try:
        return msgspec.json.decode(data, type=record_type)
    except msgspec.MsgspecError as error:
        raise DataCorrupted(f"{record_type.__name__}: {error}") from error
