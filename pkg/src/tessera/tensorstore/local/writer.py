"""One blob on its way in: a temporary file, hashed while it is written, renamed under its digest when it is complete."""

from __future__ import annotations

import errno
import fcntl
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Self

from tessera.domain.errors import DataCorrupted, ResourceExhausted
from tessera.domain.ids import Digest
from tessera.tensorstore.interface import BytesLike, flat
from tessera.tensorstore.local.follower import Follower
from tessera.tensorstore.local.layout import BLOB_MODE
from tessera.tensorstore.seal import seal

PIPE_BYTES = 1 << 20
"""What an unprivileged process may give a pipe."""


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
        self._lock = threading.Lock()
        self._written = 0
        self._ahead: dict[int, int] = {}  # offset -> length of what lies behind a gap
        self._pulled = 0
        self._fd = -1
        self._pipe: tuple[int, int] | None = None
        self._follower: Follower | None = None

    @property
    def digest(self) -> Digest:
        return self._digest

    @property
    def size_bytes(self) -> int:
        return self._size_bytes

    @property
    def written_bytes(self) -> int:
        return self._written

    @property
    def pulled_bytes(self) -> int:
        """Of what was written, those bytes that came from a socket."""
        return self._pulled

    def open(self) -> None:
        """Makes the temporary file at its full length: tmpfs gives huge pages only below the length a file has when it is written."""
        self._fd = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            os.ftruncate(self._fd, self._size_bytes)
            self._follower = Follower(self._fd, self._size_bytes)
        except OSError:
            self._discard()
            raise

    def write(self, chunk: BytesLike) -> None:
        view = flat(chunk)
        self._check(self._written, len(view))
        with self._full_is_said():
            self._put(self._written, view)
        self._advance(self._written, len(view))

    def write_at(self, offset: int, chunk: BytesLike) -> None:
        view = flat(chunk)
        self._check(offset, len(view), ends=False)  # the file stays open as long as others may be writing to it
        with self._full_is_said(ends=False):
            self._put(offset, view)
        self._advance(offset, len(view))

    def pull(self, source: int, most_bytes: int) -> int:
        self._check(self._written, 0)
        if self._pipe is None:
            self._pipe = os.pipe2(os.O_CLOEXEC)
            fcntl.fcntl(self._pipe[1], fcntl.F_SETPIPE_SZ, PIPE_BYTES)
        outlet, inlet = self._pipe
        there = os.splice(source, inlet, min(most_bytes, PIPE_BYTES, self._size_bytes - self._written))
        with self._full_is_said():
            moved = 0
            while moved < there:
                moved += os.splice(outlet, self._fd, there - moved, offset_dst=self._written + moved)
        self._pulled += there
        self._advance(self._written, there)
        return there

    def _check(self, offset: int, length: int, *, ends: bool = True) -> None:
        if self._fd < 0:
            raise ValueError(f"writer of {self._digest} is closed")
        if offset + length > self._size_bytes:
            if ends:
                self.abort()
            raise DataCorrupted(f"blob {self._digest}: more than the {self._size_bytes} bytes announced arrived")

    def _put(self, offset: int, view: memoryview) -> None:
        while view:
            done = os.pwrite(self._fd, view, offset)
            offset += done
            view = view[done:]

    def _advance(self, offset: int, length: int) -> None:
        with self._lock:
            if length:
                self._ahead[offset] = length
            before = self._written
            while self._written in self._ahead:
                self._written += self._ahead.pop(self._written)
            if self._written > before and self._follower is not None:
                self._follower.advance(self._written)

    @contextmanager
    def _full_is_said(self, *, ends: bool = True) -> Iterator[None]:
        """Bytes that cannot be written end the writer, with words for the one reason that has some."""
        try:
            yield
        except OSError as error:
            free = os.statvfs(self.path.parent)
            if ends:
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
            assert self._follower is not None
            actual = self._follower.hexdigest()
            self._follower.close()  # who loses against another writer is unlinked, and must not be mapped then
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
        if self._follower is not None:
            self._follower.close()
        fd, self._fd = self._fd, -1
        pipe, self._pipe = self._pipe, None
        for one in (fd, *(pipe or ())):
            os.close(one)

    def __del__(self) -> None:
        if getattr(self, "_fd", -1) >= 0:  # dropped without commit or abort; the store's weak reference ends with it
            self._discard()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.abort()
