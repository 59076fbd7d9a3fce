"""Where things lie in the store's folder, and the lock that makes its writer the only one.

ROOT/blobs/<digest>  ROOT/incoming/<random>  ROOT/quarantine/<digest>  ROOT/lock
"""

from __future__ import annotations

import fcntl
import os
import re
import stat
from dataclasses import dataclass
from pathlib import Path

from tessera.domain.errors import FailedPrecondition
from tessera.domain.ids import Digest

BLOB_MODE = 0o444
READ_CHUNK_BYTES = 1 << 20

_DIGEST = re.compile(r"[0-9a-f]{64}")


def is_digest(name: str) -> bool:
    return _DIGEST.fullmatch(name) is not None


@dataclass(frozen=True, slots=True)
class Layout:
    root: Path

    @property
    def blobs(self) -> Path:
        return self.root / "blobs"

    @property
    def incoming(self) -> Path:
        return self.root / "incoming"

    @property
    def quarantine(self) -> Path:
        return self.root / "quarantine"

    @property
    def lock(self) -> Path:
        return self.root / "lock"

    def blob(self, digest: Digest) -> Path:
        return self.blobs / digest

    def make(self) -> None:
        """Makes the folders. Runtimes may run as another user: they may look into `blobs` and nowhere else."""
        self.root.mkdir(mode=0o755, parents=True, exist_ok=True)
        self.blobs.mkdir(mode=0o755, exist_ok=True)
        self.incoming.mkdir(mode=0o700, exist_ok=True)
        self.quarantine.mkdir(mode=0o700, exist_ok=True)


@dataclass(frozen=True, slots=True)
class DiskFile:
    name: str
    size_bytes: int
    mode: int
    modified_s: float
    regular: bool


def listing(folder: Path) -> list[DiskFile]:
    """Every entry of a folder as it lies on disk, without following links; sorted by name."""
    found = []
    with os.scandir(folder) as entries:
        for entry in entries:
            seen = entry.stat(follow_symlinks=False)
            found.append(DiskFile(entry.name, seen.st_size, stat.S_IMODE(seen.st_mode), seen.st_mtime, stat.S_ISREG(seen.st_mode)))
    return sorted(found, key=lambda file: file.name)


class WriterLock:
    """flock on ROOT/lock, held as long as the process lives. A child that is forked without exec shares it: the agent execs."""

    def __init__(self, path: Path) -> None:
        """Takes the lock.

        Raises:
            FailedPrecondition: somebody else has it; names the process id.
        """
        self._path = path
        self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            pid = os.pread(self._fd, 32, 0).decode(errors="replace").strip()
            os.close(self._fd)
            raise FailedPrecondition(f"tensor store {path.parent}: process {pid or 'unknown'} is its writer; end it first") from error
        os.ftruncate(self._fd, 0)
        os.pwrite(self._fd, f"{os.getpid()}\n".encode(), 0)

    def is_whole(self) -> bool:
        """False when the lock file was removed or replaced under us, so that a second writer could get in."""
        try:
            return os.path.samestat(os.fstat(self._fd), os.stat(self._path))
        except OSError:
            return False

    def release(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
