"""The reading side, for runtimes: blobs mapped read-only, each once per process.

A mapping is never taken from under a view: when the last reference is closed the map object is let go, and the memory is unmapped when
the last memoryview or array of it is gone. Raw pointers (ONNX Runtime keeps such) are the caller's to end first.
"""

from __future__ import annotations

import math
import mmap
import os
import threading
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from tessera.domain.artifact import TensorRef
from tessera.domain.errors import DataCorrupted, InvalidInput, NotFound
from tessera.domain.ids import Digest
from tessera.tensorstore.seal import is_sealed

MADV_POPULATE_READ = 22
"""Linux 5.14; not in the `mmap` module of Python 3.11."""

_NUMPY: dict[str, str] = {
    "BOOL": "?", "UINT8": "u1", "UINT16": "<u2", "UINT32": "<u4", "UINT64": "<u8", "INT8": "i1", "INT16": "<i2", "INT32": "<i4",
    "INT64": "<i8", "FP16": "<f2", "BF16": "<u2", "FP32": "<f4", "FP64": "<f8",
}  # fmt: skip


def numpy_dtype(datatype: str) -> np.dtype[Any]:
    """numpy's dtype for an Open Inference datatype; BF16, which numpy lacks, comes as its bits in uint16.

    Raises:
        InvalidInput: the datatype has no fixed size (BYTES) or is unknown.
    """
    code = _NUMPY.get(datatype)
    if code is None:
        raise InvalidInput("dtype", datatype, f"must be one of {', '.join(_NUMPY)}")
    return np.dtype(code)


def tensor_view(view: memoryview, ref: TensorRef) -> npt.NDArray[Any]:
    """The tensor `ref` in the bytes of its blob (or of the pack), without a copy: read-only, of `ref.dtype` and `ref.shape`.

    Raises:
        DataCorrupted: dtype and shape do not make `ref.size_bytes`, or the tensor reaches beyond the blob.
    """
    dtype = numpy_dtype(ref.dtype)
    offset = ref.pack_offset or 0
    count = math.prod(ref.shape)
    if min(ref.shape, default=0) < 0 or count * dtype.itemsize != ref.size_bytes:
        raise DataCorrupted(f"tensor {ref.slot}: {ref.dtype} of shape {list(ref.shape)} is not {ref.size_bytes} bytes long")
    if offset < 0 or offset + ref.size_bytes > len(view) or (ref.pack_offset is None and ref.size_bytes != len(view)):
        raise DataCorrupted(f"tensor {ref.slot}: bytes {offset} to {offset + ref.size_bytes} of a blob of {len(view)}")
    array: npt.NDArray[Any] = np.ndarray(ref.shape, dtype, view if count else None, offset if count else 0)
    array.flags.writeable = False
    return array


class Mapped(NamedTuple):
    """Where a blob is mapped, and the file's device and inode. `alone`: whoever asked is the only one who has it open."""

    view: memoryview
    device: int
    inode: int
    alone: bool


@dataclass(slots=True)
class _Mapped:
    file: tuple[int, int, int]  # device, inode, time of the last change
    view: memoryview
    references: int


class BlobMap:
    """The mapped blobs of this process, by file name (which is the digest). Thread-safe.

    With `keep_idle` a mapping that is closed for the last time stays until `trim`, so that the next `open` costs a `stat`.
    """

    def __init__(self, keep_idle: bool = False) -> None:
        self._keep_idle = keep_idle
        self._mapped: dict[Digest, _Mapped] = {}
        self._lock = threading.Lock()

    def open(self, path: Path | str) -> memoryview:
        """The blob's bytes, read-only; each `open` wants one `close`. Files of no length give an empty view.

        A file that was replaced meanwhile (quarantined and fetched again) is mapped anew; views of the old one stay what they were.

        Raises:
            NotFound: the file is not there.
        """
        digest = Digest(os.path.basename(path))
        with self._lock:
            try:
                mapped = self._mapped.get(digest)
                if mapped is None:
                    mapped = self._mapped[digest] = _map(path, 0)
                else:
                    if mapped.file != _identity(os.stat(path)):
                        mapped = self._mapped[digest] = _map(path, mapped.references)
            except FileNotFoundError as error:
                raise NotFound(f"blob file {path} is not there") from error
            mapped.references += 1
            return mapped.view

    def is_current(self, path: Path | str) -> bool:
        """Whether an open blob is the file that is there now, unchanged since it was mapped."""
        mapped = self._mapped.get(Digest(os.path.basename(path)))
        try:
            return mapped is not None and mapped.file == _identity(os.stat(path))
        except FileNotFoundError:
            return False

    def is_sealed(self, path: Path | str) -> bool:
        """Whether an open blob was not written to between its arrival in the store and its mapping (`tessera.tensorstore.seal`)."""
        digest = Digest(os.path.basename(path))
        return is_sealed(self._mapped[digest].file[2], digest)

    def mapped(self, path: Path | str) -> Mapped:
        """An open blob as it is mapped now."""
        mapped = self._mapped[Digest(os.path.basename(path))]
        device, inode, _ = mapped.file
        return Mapped(mapped.view, device, inode, mapped.references == 1 and not self._keep_idle)

    def close(self, path: Path | str) -> bool:
        """Gives one `open` of a path or digest back. True: that was the last one and the blob is let go.

        Raises:
            ValueError: it is not open.
        """
        digest = Digest(os.path.basename(path))
        with self._lock:
            mapped = self._mapped.get(digest)
            if mapped is None or mapped.references == 0:
                raise ValueError(f"blob {digest} is not open")
            mapped.references -= 1
            if mapped.references or self._keep_idle:
                return False
            del self._mapped[digest]
            return True

    def touch(self, path: Path | str) -> None:
        """Faults the pages of an open blob in, so that the first run does not. Does nothing on kernels that cannot (before 5.14)."""
        with self._lock:
            mapped = self._mapped.get(Digest(os.path.basename(path)))
            memory = mapped.view.obj if mapped else None
        if isinstance(memory, mmap.mmap):
            try:
                memory.madvise(MADV_POPULATE_READ)
            except OSError:  # EINVAL before Linux 5.14; the pages then come at first use
                pass

    def trim(self, digests: Iterable[Digest] | None = None) -> list[Digest]:
        """Lets idle mappings go (None: all of them). Returns those that went; what is open stays."""
        with self._lock:
            wanted = list(self._mapped) if digests is None else list(digests)
            gone = [digest for digest in wanted if digest in self._mapped and self._mapped[digest].references == 0]
            for digest in gone:
                del self._mapped[digest]
            return gone

    def digests(self) -> dict[Digest, int]:
        """What is mapped, open or idle, and its length in bytes."""
        with self._lock:
            return {digest: len(mapped.view) for digest, mapped in self._mapped.items()}

    @property
    def mapped_bytes(self) -> int:
        return sum(self.digests().values())


def _map(path: Path | str, references: int) -> _Mapped:
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        seen = os.fstat(fd)
        if seen.st_size == 0:
            view = memoryview(b"")
        else:
            view = memoryview(mmap.mmap(fd, seen.st_size, flags=mmap.MAP_SHARED, prot=mmap.PROT_READ))
    finally:
        os.close(fd)
    return _Mapped(_identity(seen), view, references)


def _identity(seen: os.stat_result) -> tuple[int, int, int]:
    return seen.st_dev, seen.st_ino, seen.st_mtime_ns
