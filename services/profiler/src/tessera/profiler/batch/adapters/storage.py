"""Files of batch jobs on any storage that fsspec knows, below the roots of one trust domain.

A local path is judged by where its links lead, and an opened file once more by what was opened. Whoever can change folders below a root
while a job runs is trusted as the service is: that much is for whoever configures roots.
"""

from __future__ import annotations

import io
import os
import re
import secrets
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, BinaryIO, cast

import fsspec
from blake3 import blake3

from tessera.domain.errors import InvalidInput, NotFound, PermissionDenied, ResourceExhausted, TesseraError, Unavailable
from tessera.profiler.batch.core.checkpoint import InputVersion
from tessera.profiler.batch.core.locations import Location, check_allowed
from tessera.repository.durable import make_folder, sync_folder
from tessera.repository.failures import translated

_REMOTE_BLOCK_BYTES = 8 << 20
_OBJECT_STORES = ("s3", "s3a", "gs", "gcs", "abfs", "az")
"""An object appears there when its upload is complete."""
_UNFINISHED = re.compile(r"\.unfinished-[0-9a-f]{16}-(.+)", re.DOTALL)
"""What a file is called elsewhere while it is written; the group is the name that it will have."""


class FsspecStorage:
    """Implements `Storage`. Thread-safe.

    Args:
        options: by protocol, what fsspec gives to its file system.
    """

    def __init__(self, roots: Sequence[Location], options: Mapping[str, Mapping[str, Any]]) -> None:
        self._roots = tuple(roots)
        self._options = options

    def check(self, field: str, place: Location) -> None:
        check_allowed(field, place, self._roots)
        if place.protocol != "file":
            self._files(place)
        elif not self._is_below(os.path.realpath(place.path)):
            raise PermissionDenied(f"{field} {str(place)[:200]!r}: leads out of the profiler's batch roots by a link")

    def version(self, place: Location) -> InputVersion | None:
        self.check("file", place)
        with _said(place):
            try:
                info = self._files(place).info(place.path)
            except FileNotFoundError:
                return None
        if info.get("type") == "directory":
            return None
        return InputVersion(int(info.get("size") or 0), str(info.get("ETag") or info.get("mtime") or info.get("created") or ""))

    def names(self, folder: Location) -> dict[str, int]:
        self.check("folder", folder)
        with _said(folder):
            try:
                found = self._files(folder).ls(folder.path, detail=True)
            except (FileNotFoundError, NotADirectoryError):
                return {}
        # An object store lists an object of this very name, too.
        inside = [info for info in found if info.get("type") != "directory" and info["name"].rstrip("/") != folder.path]
        sizes = {info["name"].rpartition("/")[2]: int(info.get("size") or 0) for info in inside}
        return {name: size for name, size in sizes.items() if not _UNFINISHED.fullmatch(name)}

    def open(self, place: Location) -> BinaryIO:
        self.check("file", place)
        with _said(place):
            try:
                if place.protocol == "file":
                    return self._open_local(place)
                remote = self._files(place).open(place.path, "rb", block_size=_REMOTE_BLOCK_BYTES)
                return cast(BinaryIO, io.BufferedReader(_Remote(remote, place)))
            except FileNotFoundError:
                raise NotFound(f"{place} is not there") from None
            except IsADirectoryError:
                raise InvalidInput("file", str(place), "is a folder") from None

    def _open_local(self, place: Location) -> BinaryIO:
        # O_NONBLOCK: a named pipe would be waited for.
        handle = os.open(place.path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        file = os.fdopen(handle, "rb")
        if not self._is_below(os.readlink(f"/proc/self/fd/{handle}")) or not os.path.isfile(place.path):
            file.close()
            raise PermissionDenied(f"file {str(place)[:200]!r}: is no file below the profiler's batch roots")
        return file

    def read(self, place: Location) -> bytes:
        with self.open(place) as file, _said(place):
            return file.read()

    def put(self, place: Location, data: bytes) -> None:
        def pieces(file: BinaryIO) -> Iterator[None]:
            file.write(data)
            yield

        for _ in self.write(place, pieces):
            pass

    def write(self, place: Location, pieces: Callable[[BinaryIO], Iterator[None]]) -> Iterator[tuple[int, str] | None]:
        self.check("file", place)
        folder, direct = place.folder, place.protocol in _OBJECT_STORES
        unfinished = place.path if direct else f"{folder}/.unfinished-{secrets.token_hex(8)}-{place.name}"
        with _said(place):
            files = self._files(place)
            if place.protocol == "file":
                make_folder(folder)
                self.check("file", place)
            elif not direct:
                files.makedirs(folder, exist_ok=True)
            opened = _created(files, place, unfinished)
            target = _Hashing(opened)
            complete = False
            try:
                for _ in pieces(cast(BinaryIO, target)):
                    yield None
                if place.protocol == "file":
                    opened.flush()
                    os.fsync(opened.fileno())
                opened.close()
                if place.protocol == "file":
                    os.replace(unfinished, place.path)
                    sync_folder(folder)
                elif not direct:
                    files.mv(unfinished, place.path)
                complete = True
            finally:
                if not complete:
                    _discard(files, opened, unfinished, direct)
            yield target.size_bytes, target.digest

    def remove(self, folder: Location, names: Sequence[str]) -> None:
        self.check("folder", folder)
        with _said(folder):
            _remove(self._files(folder), [folder.inside(name).path for name in names])
        if folder.protocol == "file":
            try:
                os.rmdir(folder.path)
            except OSError:
                return  # not empty, or not there

    def sweep(self, beside: Location, own: Callable[[str], bool]) -> None:
        self.check("file", beside)
        if beside.protocol in _OBJECT_STORES:
            return
        files = self._files(beside)
        with _said(beside):
            try:
                paths = files.ls(beside.folder, detail=False)
            except (FileNotFoundError, NotADirectoryError):
                return
            left = {path: _UNFINISHED.fullmatch(path.rpartition("/")[2]) for path in paths}
            _remove(files, [path for path, found in left.items() if found and own(found[1])])

    def _files(self, place: Location) -> Any:
        """Raises: InvalidInput: fsspec has no such protocol here."""
        caching = {} if place.protocol == "file" else {"use_listings_cache": False}
        try:
            return fsspec.filesystem(place.protocol, **{**caching, **self._options.get(place.protocol, {})})
        except (ImportError, ValueError, TypeError) as error:
            raise InvalidInput("url", str(place)[:200], f"{error}; for s3:// install tessera-pkg[s3]") from error

    def _is_below(self, real: str) -> bool:
        below = (os.path.realpath(root.path) for root in self._roots if root.protocol == "file")
        return any(real.startswith(root.rstrip("/") + "/") for root in below)


@contextmanager
def _said(place: Location) -> Iterator[None]:
    """Failures of the storage as domain errors that name the place. Raises: PermissionDenied, ResourceExhausted, Unavailable."""
    try:
        with translated(str(place), lambda error: isinstance(error, PermissionError)):
            yield
    except PermissionError as error:
        raise PermissionDenied(f"{place}: {error.strerror or error}") from error
    except ResourceExhausted as error:
        raise ResourceExhausted(f"the storage of {place} is full") from error
    except Unavailable as error:
        raise Unavailable(error.message.replace("repository ", "", 1)) from error
    except TesseraError:
        raise


class _Remote(io.RawIOBase):
    """A remote file whose failures are domain errors: object stores have exceptions of their own."""

    def __init__(self, file: Any, place: Location) -> None:
        self._file = file
        self._place = place

    def readinto(self, buffer: Any) -> int:
        view = memoryview(buffer).cast("B")
        with _said(self._place):
            data = self._file.read(len(view))
        view[: len(data)] = data
        return len(data)

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        return int(self._file.seek(offset, whence))

    def tell(self) -> int:
        return int(self._file.tell())

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def close(self) -> None:
        if not self.closed:
            self._file.close()
        super().close()


class _Hashing:
    """A file that is only written to, from front to back: zip and parquet writers then never go back to patch a header."""

    def __init__(self, file: Any) -> None:
        self._file = file
        self._hasher = blake3()
        self.size_bytes = 0
        self.closed = False

    def write(self, data: Any) -> int:
        view = memoryview(data).cast("B") if not isinstance(data, bytes) else data
        self._file.write(view)
        self._hasher.update(view)
        self.size_bytes += len(view)
        return len(view)

    def tell(self) -> int:
        return self.size_bytes

    def flush(self) -> None: ...

    def close(self) -> None: ...

    def writable(self) -> bool:
        return True

    def readable(self) -> bool:
        return False

    def seekable(self) -> bool:
        return False

    @property
    def digest(self) -> str:
        return str(self._hasher.hexdigest())


def _created(files: Any, place: Location, unfinished: str) -> Any:
    return open(unfinished, "xb") if place.protocol == "file" else files.open(unfinished, "wb", block_size=_REMOTE_BLOCK_BYTES)


def _remove(files: Any, paths: Iterable[str]) -> None:
    for path in paths:
        try:
            files.rm_file(path)
        except FileNotFoundError:
            continue


def _discard(files: Any, opened: Any, unfinished: str, direct: bool) -> None:
    """Nothing of a broken-off write stays: an object store forgets an upload that is not completed."""
    if direct:
        discard = getattr(opened, "discard", None)
        if discard is not None and not opened.closed:
            discard()
        opened.closed = True  # closing it would complete the upload
        return
    opened.close()
    _remove(files, [unfinished])
