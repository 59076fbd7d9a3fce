"""File formats by name, each imported when it is first used: pyarrow is large, and an extra."""

from __future__ import annotations

from tessera.domain.errors import Unsupported
from tessera.profiler.batch.ports import FileFormat


def file_format(name: str) -> FileFormat:
    """Raises: Unsupported: its library is not installed."""
    if name == "npz":
        from tessera.profiler.batch.adapters.npz import NpzFormat

        return NpzFormat()
    if name == "jsonl":
        from tessera.profiler.batch.adapters.jsonl import JsonlFormat

        return JsonlFormat()
    try:
        from tessera.profiler.batch.adapters.parquet import ParquetFormat
    except ImportError as error:
        raise Unsupported(f"format parquet: {error}; install tessera-profiler[parquet]") from error
    return ParquetFormat()
