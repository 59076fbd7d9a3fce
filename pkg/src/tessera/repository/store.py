"""The repository on any file system that fsspec knows: one object per blob, `blobs/<first two digits>/<digest>`.

On `file://` a put is durable when it returns: file and folder are synced. Elsewhere durability is what the storage promises once an
object is complete; S3 promises it when it acknowledges. A blob appears under its digest complete or not at all, there too: it is written
under another name and moved, which on S3 is a copy on the server. Credentials, region and endpoint of `s3://` come from the usual AWS
environment and files, or from `options`.
"""

from __future__ import annotations

import os
import secrets
import threading
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from typing import Any

import fsspec
from blake3 import blake3

from tessera.domain.errors import DataCorrupted, InvalidInput, NotFound
from tessera.domain.ids import Digest, checked_digest
from tessera.repository.durable import durable_put, make_folder, sync_folder
from tessera.repository.failures import translated
from tessera.repository.interface import Piece
from tessera.tensorstore.interface import BytesLike, flat

CHUNK_BYTES = 1 << 20
LOCAL_RANGE_BYTES = 4 << 20
"""Most tensors whole: a thread that has to ask again gives its core away each time."""
REMOTE_RANGE_BYTES = 8 << 20
"""Long enough that the round trip to an object store is a small part of reading it."""
S3_OPTIONS = {"use_listings_cache": False, "default_block_size": REMOTE_RANGE_BYTES}
"""Other processes write there as well; and a writer buffers a block of each object."""
UNFINISHED = ".unfinished-"
"""How the names of objects begin that are still being written; no digest begins so."""


class Repository:
    """Implements `BlobRepository`. Thread-safe, and safe beside other processes on the same storage."""

    def __init__(self, url: str, options: Mapping[str, Any] | None = None) -> None:
        """`url` is any fsspec url of a folder: `file:///srv/tessera`, `s3://bucket/prefix`, `memory://name`, a plain path. `options` are
        what fsspec passes to its file system, `endpoint_url` for one.

        Raises:
            InvalidInput: a kind of url, or an option, that is not known here; says what to install.
            OSError: a local folder cannot be made.
        """
        self._fs: Any
        protocol = fsspec.core.split_protocol(url)[0] or "file"
        self._s3 = protocol in ("s3", "s3a")
        try:
            self._fs, root = fsspec.core.url_to_fs(url, **{**(S3_OPTIONS if self._s3 else {}), **(options or {})})
        except ImportError as error:
            raise InvalidInput("repository_url", url, f"{error}; for s3:// install tessera-pkg[s3]") from error
        except (ValueError, TypeError) as error:
            raise InvalidInput("repository_url", url, str(error)) from error
        self._root: str = root.rstrip("/")
        self._local = "file" in ((self._fs.protocol,) if isinstance(self._fs.protocol, str) else self._fs.protocol)
        self._moving = threading.Lock()  # so that of several threads one hears that its blob was new; a local folder needs none
        self.url = url
        self._durable_folders: set[str] = set()
        self._make_folder(f"{self._root}/blobs")

    @property
    def range_bytes(self) -> int:
        return REMOTE_RANGE_BYTES if self._s3 else LOCAL_RANGE_BYTES if self._local else CHUNK_BYTES

    def locate(self, digest: Digest) -> list[Piece]:
        name = _object(digest)
        with translated(self.url):
            try:
                path = f"{self._root}/{name}"
                size: int = os.stat(path).st_size if self._local else self._fs.info(path)["size"]
            except FileNotFoundError as error:
                raise NotFound(f"blob {digest} is not in repository {self.url}") from error
        return [Piece(name, 0, size)]

    def read_range(self, digest: Digest, pieces: Sequence[Piece], offset: int, length: int) -> bytes:
        parts = []
        with translated(self.url):
            for piece in pieces:
                if offset < piece.length and length > 0:
                    part: bytes = self._read(digest, piece, offset, min(length, piece.length - offset))
                    parts.append(part)
                    length -= len(part)
                offset = max(0, offset - piece.length)
        if length:
            raise DataCorrupted(f"blob {digest} in repository {self.url} ends {length} bytes early")
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def _read(self, digest: Digest, piece: Piece, offset: int, length: int) -> bytes:
        start = piece.offset + offset
        try:
            path = f"{self._root}/{piece.object}"
            data: bytes = _local_range(path, start, length) if self._local else self._fs.cat_file(path, start=start, end=start + length)
        except FileNotFoundError as error:
            raise NotFound(f"blob {digest} left repository {self.url} while it was read") from error
        if len(data) < length:
            raise DataCorrupted(f"blob {digest} in repository {self.url} ends {length - len(data)} bytes early")
        return data

    def open_reader(self, digest: Digest, *, verify: bool = True) -> Generator[bytes, None, None]:
        return self._chunks(digest, self.locate(digest), verify)

    def _chunks(self, digest: Digest, pieces: list[Piece], verify: bool) -> Generator[bytes, None, None]:
        hasher = blake3()
        for piece in pieces:
            for offset in range(0, piece.length, self.range_bytes):
                data = self.read_range(digest, [piece], offset, min(self.range_bytes, piece.length - offset))
                if verify:
                    hasher.update(data)
                for start in range(0, len(data), CHUNK_BYTES):
                    yield data[start : start + CHUNK_BYTES]
        if verify and (actual := hasher.hexdigest()) != digest:
            raise DataCorrupted(f"blob {digest} in repository {self.url} is corrupted: its bytes have digest {actual}")

    def read(self, digest: Digest) -> bytes:
        return b"".join(self.open_reader(digest))

    def has(self, digest: Digest) -> bool:
        try:
            self.locate(digest)
        except NotFound:
            return False
        return True

    def verify(self, digest: Digest) -> bool:
        try:
            for _ in self.open_reader(digest):
                pass
        except DataCorrupted:
            return False
        return True

    def digests(self) -> Iterator[tuple[Digest, int]]:
        with translated(self.url):
            found = self._fs.find(f"{self._root}/blobs", detail=True)
        for path, info in found.items():
            name = path.rpartition("/")[2]
            if not name.startswith(UNFINISHED):
                yield Digest(name), info["size"]

    def put(self, digest: Digest, chunks: Iterable[BytesLike]) -> bool:
        target = f"{self._root}/{_object(checked_digest('digest', digest))}"
        folder, _, _ = target.rpartition("/")
        verified = _Verified(digest, chunks)
        with translated(self.url, verified.raised):
            if self._fs.exists(target):
                if self._local:
                    sync_folder(folder)  # who put it first may not have got that far, and False promises durability too
                return False
            unfinished = f"{folder}/{UNFINISHED}{os.getpid()}-{secrets.token_hex(8)}"
            self._make_folder(folder)
            if self._local:
                return durable_put(folder, unfinished, target, verified)
            return self._put(unfinished, target, verified)

    def _put(self, unfinished: str, target: str, chunks: Iterable[BytesLike]) -> bool:
        try:
            with self._fs.open(unfinished, "wb") as file:
                for chunk in chunks:
                    file.write(chunk)
            with self._moving:
                new = not self._fs.exists(target)
                self._fs.mv(unfinished, target)
        except BaseException:
            if self._fs.exists(unfinished):
                self._fs.rm_file(unfinished)
            raise
        return new

    def _make_folder(self, folder: str) -> None:
        if self._s3:
            return  # it has none; and a bucket is not ours to make
        if not self._local:
            self._fs.makedirs(folder, exist_ok=True)
        elif folder not in self._durable_folders:
            make_folder(folder)
            self._durable_folders.add(folder)

    def put_bytes(self, data: BytesLike) -> Digest:
        view = flat(data)
        digest = Digest(blake3(view).hexdigest())
        self.put(digest, (view[start : start + CHUNK_BYTES] for start in range(0, len(view), CHUNK_BYTES)))
        return digest

    def delete(self, digest: Digest) -> int:
        with translated(self.url):
            try:
                freed = sum(piece.length for piece in self.locate(digest))
                self._fs.rm_file(f"{self._root}/{_object(digest)}")
            except (NotFound, FileNotFoundError):
                return 0
        return freed

    def sweep(self) -> int:
        with translated(self.url):
            unfinished = [path for path in self._fs.find(f"{self._root}/blobs") if path.rpartition("/")[2].startswith(UNFINISHED)]
            for path in unfinished:
                self._fs.rm_file(path)
        return len(unfinished)


def _local_range(path: str, start: int, length: int) -> bytes:
    """As `cat_file`, which opens a file for each range as well, in a tenth of a millisecond under the interpreter's lock."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        return os.pread(fd, length, start)
    finally:
        os.close(fd)


def _object(digest: Digest) -> str:
    return f"blobs/{digest[:2]}/{digest}"


class _Verified:
    """Passes the chunks on and ends in `DataCorrupted` when they have another digest. Knows the errors that are not the storage's."""

    def __init__(self, digest: Digest, chunks: Iterable[BytesLike]) -> None:
        self._digest = digest
        self._chunks = chunks
        self._error: Exception | None = None

    def raised(self, error: Exception) -> bool:
        return error is self._error

    def __iter__(self) -> Iterator[BytesLike]:
        hasher = blake3()
        try:
            for chunk in self._chunks:
                hasher.update(flat(chunk))
                yield chunk
        except Exception as error:
            self._error = error
            raise
        if (actual := hasher.hexdigest()) != self._digest:
            raise DataCorrupted(f"blob {self._digest}: the bytes that arrived have digest {actual}")
