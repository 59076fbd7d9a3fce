"""The repository on any file system that fsspec knows: one object per blob, `blobs/<first two digits>/<digest>`.

On `file://` a put is durable when it returns: file and folder are synced. Elsewhere durability is what the storage promises once an
object is complete. A blob appears under its digest complete or not at all, there too: it is written under another name and moved.
"""

from __future__ import annotations

import os
import secrets
import threading
from collections.abc import Generator, Iterable, Iterator
from typing import Any

import fsspec
from blake3 import blake3

from tessera.domain.errors import DataCorrupted, NotFound
from tessera.domain.ids import Digest, checked_digest
from tessera.repository.durable import durable_put, make_folder, sync_folder
from tessera.repository.interface import Piece
from tessera.tensorstore.interface import BytesLike, flat

CHUNK_BYTES = 1 << 20
UNFINISHED = ".unfinished-"
"""How the names of objects begin that are still being written; no digest begins so."""


class Repository:
    """Implements `BlobRepository`. Thread-safe, and safe beside other processes on the same storage."""

    def __init__(self, url: str) -> None:
        """`url` is any fsspec url of a folder: `file:///srv/tessera`, `memory://name`, a plain path.

        Raises:
            OSError: a local folder cannot be made.
        """
        self._fs: Any
        self._fs, root = fsspec.core.url_to_fs(url)
        self._root: str = root.rstrip("/")
        self._local = "file" in ((self._fs.protocol,) if isinstance(self._fs.protocol, str) else self._fs.protocol)
        self._moving = threading.Lock()  # so that of several threads one hears that its blob was new; a local folder needs none
        self.url = url
        self._durable_folders: set[str] = set()
        self._make_folder(f"{self._root}/blobs")

    def locate(self, digest: Digest) -> list[Piece]:
        name = _object(digest)
        try:
            size: int = self._fs.info(f"{self._root}/{name}")["size"]
        except FileNotFoundError as error:
            raise NotFound(f"blob {digest} is not in repository {self.url}") from error
        return [Piece(name, 0, size)]

    def open_reader(self, digest: Digest, *, verify: bool = True) -> Generator[bytes, None, None]:
        return self._chunks(digest, self.locate(digest), verify)

    def _chunks(self, digest: Digest, pieces: list[Piece], verify: bool) -> Generator[bytes, None, None]:
        hasher = blake3()
        for piece in pieces:
            try:
                # Large sequential reads: fsspec's own cache would only copy once more.
                with self._fs.open(f"{self._root}/{piece.object}", "rb", cache_type="none") as file:
                    file.seek(piece.offset)
                    left = piece.length
                    while left > 0:
                        chunk: bytes = file.read(min(left, CHUNK_BYTES))
                        if not chunk:
                            raise DataCorrupted(f"blob {digest} in repository {self.url} ends {left} bytes early")
                        left -= len(chunk)
                        if verify:
                            hasher.update(chunk)
                        yield chunk
            except FileNotFoundError as error:
                raise NotFound(f"blob {digest} left repository {self.url} while it was read") from error
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
        for path, info in self._fs.find(f"{self._root}/blobs", detail=True).items():
            name = path.rpartition("/")[2]
            if not name.startswith(UNFINISHED):
                yield Digest(name), info["size"]

    def put(self, digest: Digest, chunks: Iterable[BytesLike]) -> bool:
        target = f"{self._root}/{_object(checked_digest('digest', digest))}"
        folder, _, _ = target.rpartition("/")
        if self._fs.exists(target):
            if self._local:
                sync_folder(folder)  # who put it first may not have got that far, and False promises durability too
            return False
        unfinished = f"{folder}/{UNFINISHED}{os.getpid()}-{secrets.token_hex(8)}"
        if self._local:
            self._make_folder(folder)
            return durable_put(folder, unfinished, target, _verified(digest, chunks))
        self._make_folder(folder)
        try:
            with self._fs.open(unfinished, "wb") as file:
                for chunk in _verified(digest, chunks):
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
        try:
            freed = sum(piece.length for piece in self.locate(digest))
            self._fs.rm_file(f"{self._root}/{_object(digest)}")
        except (NotFound, FileNotFoundError):
            return 0
        return freed

    def sweep(self) -> int:
        unfinished = [path for path in self._fs.find(f"{self._root}/blobs") if path.rpartition("/")[2].startswith(UNFINISHED)]
        for path in unfinished:
            self._fs.rm_file(path)
        return len(unfinished)


def _object(digest: Digest) -> str:
    return f"blobs/{digest[:2]}/{digest}"


def _verified(digest: Digest, chunks: Iterable[BytesLike]) -> Iterator[BytesLike]:
    """Passes the chunks on and ends in `DataCorrupted` when they have another digest."""
    hasher = blake3()
    for chunk in chunks:
        hasher.update(flat(chunk))
        yield chunk
    if (actual := hasher.hexdigest()) != digest:
        raise DataCorrupted(f"blob {digest}: the bytes that arrived have digest {actual}")
