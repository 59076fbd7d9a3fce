"""Uploaded files on disk, by digest: `FOLDER/<trust domain>/<digest>`, complete, synced and read-only, or not there.

A file that is being received lies beside under a random name; what a dead registry left of those is swept at start.
"""

from __future__ import annotations

import os
import secrets
import shutil
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from blake3 import blake3

from tessera.domain.errors import FailedPrecondition, InvalidInput, ResourceExhausted
from tessera.domain.ids import Digest, TrustDomain
from tessera.registry.core.manifest import SourceFile
from tessera.repository.durable import sync_folder
from tessera.repository.failures import FULL

_INCOMING = ".incoming-"


class UploadFolder:
    """Implements `ports.Uploads`. Sizes named at `expect` are checked while bytes arrive."""

    def __init__(self, folder: Path, max_file_bytes: int) -> None:
        self._folder = folder
        self._max_file_bytes = max_file_bytes
        self._expected: dict[tuple[TrustDomain, Digest], SourceFile] = {}
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        for left in folder.glob(f"*/{_INCOMING}*"):
            left.unlink()

    def missing(self, domain: TrustDomain, files: Sequence[SourceFile]) -> list[Digest]:
        """Digests that were not uploaded yet, each once, in the order of the files. Present files count as used now."""
        found: dict[Digest, None] = {}
        for file in files:
            path = self._path(domain, file.digest)
            if path.is_file():
                os.utime(path)
            else:
                found[file.digest] = None
        return list(found)

    def expect(self, domain: TrustDomain, files: Sequence[SourceFile]) -> None:
        """Remembers names and sizes, for messages and limits; kept until the file has arrived."""
        for file in files:
            if not self._path(domain, file.digest).is_file():
                self._expected[domain, file.digest] = file

    def receive(self, domain: TrustDomain, digest: Digest) -> IncomingFile:
        """Begins a file, from its first byte. Raises: ResourceExhausted when the disk is full."""
        expected = self._expected.get((domain, digest))
        name = f"file {expected.path}" if expected else f"file with digest {digest}"
        limit = expected.size_bytes if expected else self._max_file_bytes
        return IncomingFile(self._path(domain, digest), digest, name, limit)

    def arrived(self, domain: TrustDomain, digest: Digest) -> None:
        self._expected.pop((domain, digest), None)

    def lay_out(self, domain: TrustDomain, files: Sequence[SourceFile], folder: Path) -> None:
        folder.mkdir(parents=True)
        for file in files:
            stored = self._path(domain, file.digest)
            if not stored.is_file():
                raise FailedPrecondition(
                    f"file {file.path} ({file.digest}) was not uploaded: upload it with BeginUpload and UploadFiles first"
                )
            if stored.stat().st_size != file.size_bytes:
                raise InvalidInput(f"size of {file.path}", file.size_bytes, f"the uploaded file has {stored.stat().st_size} bytes")
            os.utime(stored)
            target = folder / file.path
            target.parent.mkdir(parents=True, exist_ok=True)
            try:
                os.link(stored, target)
            except OSError:  # another file system, or one without hard links
                shutil.copyfile(stored, target)

    def sweep(self, older_than_unix_s: float, keep: Iterable[tuple[TrustDomain, Digest]]) -> int:
        """Removes files not used since then; returns the bytes. `keep` names those that jobs need."""
        needed = {self._path(domain, digest) for domain, digest in keep}
        freed = 0
        for path in self._folder.glob("*/*"):
            if path in needed or path.name.startswith(_INCOMING):
                continue
            status = path.stat()
            if status.st_mtime < older_than_unix_s:
                path.unlink(missing_ok=True)
                freed += status.st_size
        return freed

    def _path(self, domain: TrustDomain, digest: Digest) -> Path:
        return self._folder / domain / digest


class IncomingFile:
    """One file on its way. `write` in order, then `finish`; `discard` leaves nothing. Each but that raises ResourceExhausted when the disk
    is full."""

    def __init__(self, target: Path, digest: Digest, name: str, limit_bytes: int) -> None:
        self.digest = digest
        self.received_bytes = 0
        self._target = target
        self._name = name
        self._limit_bytes = limit_bytes
        self._hasher = blake3()
        self._temporary = target.with_name(f"{_INCOMING}{secrets.token_hex(8)}")
        with self._full_is_said():
            target.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            self._file = self._temporary.open("xb")

    def write(self, offset: int, data: bytes) -> None:
        """Raises: InvalidInput when a piece is out of order or the file grows beyond its size."""
        if offset != self.received_bytes:
            raise InvalidInput(
                f"offset of {self._name}", offset, f"{self.received_bytes} bytes arrived so far; pieces follow one another from 0"
            )
        if self.received_bytes + len(data) > self._limit_bytes:
            raise InvalidInput(f"size of {self._name}", self.received_bytes + len(data), f"at most {self._limit_bytes} bytes")
        with self._full_is_said():
            self._file.write(data)
        self._hasher.update(data)
        self.received_bytes += len(data)

    def finish(self) -> None:
        """Makes the file visible; durable when it returns.

        Raises:
            InvalidInput: the bytes have another digest; nothing is kept.
        """
        actual = self._hasher.hexdigest()
        if actual != self.digest:
            self.discard()
            raise InvalidInput(self._name, None, f"{self.received_bytes} bytes with digest {actual} arrived, not {self.digest}")
        with self._full_is_said():
            self._file.flush()
            os.fsync(self._file.fileno())
            os.fchmod(self._file.fileno(), 0o444)
            self._file.close()
            os.replace(self._temporary, self._target)
            sync_folder(str(self._target.parent))

    def discard(self) -> None:
        with suppress(OSError):  # what is still buffered finds no room either; it is closed all the same
            self._file.close()
        self._temporary.unlink(missing_ok=True)

    @contextmanager
    def _full_is_said(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            if error.errno not in FULL:
                raise
            raise ResourceExhausted(
                f"{self._name}: the registry's disk for uploads is full after {self.received_bytes} bytes of it: {error.strerror}"
            ) from error
