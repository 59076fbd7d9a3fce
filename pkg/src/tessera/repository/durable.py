"""Files that survive a power cut: written under another name, synced, then linked under the right one, and the folder synced."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterable
from pathlib import Path

from tessera.tensorstore.interface import BytesLike, flat

_NO_LINKS = (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK)


def sync_folder(folder: str) -> None:
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def durable_put(folder: str, unfinished: str, target: str, chunks: Iterable[BytesLike]) -> bool:
    """Writes `chunks` to `target` by way of `unfinished`, both in `folder`. False: another writer was first.

    An error of `chunks` or of the disk leaves nothing behind; the caller's iterator verifies the digest by raising. `folder` has been
    made by `make_folder`.
    """
    try:
        fd = os.open(unfinished, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
        try:
            for chunk in chunks:
                view = flat(chunk)
                while view:
                    view = view[os.write(fd, view) :]
            os.fsync(fd)
            os.fchmod(fd, 0o444)
        finally:
            os.close(fd)
        new = _appear(unfinished, target)
    finally:
        Path(unfinished).unlink(missing_ok=True)
    sync_folder(folder)
    return new


def _appear(unfinished: str, target: str) -> bool:
    """A link fails where a rename would replace, so that of many writers exactly one hears that its blob was new."""
    try:
        os.link(unfinished, target)
    except FileExistsError:
        return False
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
        new = not os.path.exists(target)
        os.rename(unfinished, target)
        return new
    return True


def make_folder(folder: str) -> None:
    """Makes a folder with all above it, durably. Its entry is synced even if it is there: who made it may not have got that far."""
    above = os.path.dirname(folder)
    if not os.path.isdir(above):
        make_folder(above)
    os.makedirs(folder, exist_ok=True)
    sync_folder(above)
