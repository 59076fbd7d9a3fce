"""One blob on its way in: a temporary file, hashed while it is written, renamed under its digest when it is complete."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Self

from blake3 import blake3

from tessera.domain.errors import DataCorrupted, ResourceExhausted
from tessera.domain.ids import Digest
from tessera.tensorstore.interface import BytesLike, flat
from tessera.tensorstore.local.layout import BLOB_MODE
from tessera.tensorstore.seal import seal


class LocalWriter:
    """`publish` renames and indexes under the store's lock and says whether this writer won; `forget` gives the reservation back."""

    def __init__(
        self,
        path: Path,
        digest: Digest,
        size_bytes: int,
        holder: str | None,
        publish: Callable[[LocalWriter], bool],
        forget: Callable[[LocalWriter], None],
    ) -> None:
        self.path = path
        self.holder = holder
        self._digest = digest
        self._size_bytes = size_bytes
        self._publish = publish
        self._forget = forget
        self._hasher = blake3()
        self._written = 0
        self._fd = -1

    @property
    def digest(self) -> Digest:
        return self._digest

    @property
    def size_bytes(self) -> int:
        return self._size_bytes

    def open(self) -> None:
        """Makes the temporary file at its full length: tmpfs gives huge pages only below the length a file has when it is written."""
        self._fd = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            os.ftruncate(self._fd, self._size_bytes)
        except OSError:
            self._discard()
            raise

    def write(self, chunk: BytesLike) -> None:
        view = flat(chunk)
        if self._fd < 0:
            raise ValueError(f"writer of {self._digest} is closed")
        if self._written + len(view) > self._size_bytes:
            self.abort()
            raise DataCorrupted(f"blob {self._digest}: more than the {self._size_bytes} bytes announced arrived")
        self._hasher.update(view)
        try:
            while view:
                done = os.pwrite(self._fd, view, self._written)
                self._written += done
                view = view[done:]
        except OSError as error:
            free = os.statvfs(self.path.parent)
            self.abort()
            if error.errno != errno.ENOSPC:
                raise
            raise ResourceExhausted(
                f"tensor store {self.path.parent.parent}: its file system is full ({free.f_bavail * free.f_frsize} bytes free) while "
                f"blob {self._digest} of {self._size_bytes} bytes was written; something outside the store uses the space"
            ) from error

    def commit(self) -> bool:
        if self._fd < 0:
            raise ValueError(f"writer of {self._digest} is closed")
        try:
            if self._written != self._size_bytes:
                raise DataCorrupted(f"blob {self._digest}: {self._written} of {self._size_bytes} bytes arrived")
            actual = self._hasher.hexdigest()
            if actual != self._digest:
                raise DataCorrupted(f"blob {self._digest}: the bytes that arrived have digest {actual}")
            os.fchmod(self._fd, BLOB_MODE)
            seal(self._fd, self._digest)
            won = self._publish(self)
        except BaseException:
            self.abort()
            raise
        self._close()
        return won

    def abort(self) -> None:
        if self._fd < 0:
            return
        try:
            self._discard()
        finally:
            self._forget(self)

    def _discard(self) -> None:
        self._close()
        try:
            os.unlink(self.path)
        except FileNotFoundError:  # published, swept, or the folder went
            pass

    def _close(self) -> None:
        fd, self._fd = self._fd, -1
        os.close(fd)

    def __del__(self) -> None:
        if getattr(self, "_fd", -1) >= 0:  # dropped without commit or abort; the store's weak reference ends with it
            self._discard()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.abort()
