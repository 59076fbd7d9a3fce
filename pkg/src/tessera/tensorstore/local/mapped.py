"""Which process maps which file of a store: read from the machine, never counted along.

`/proc/*/maps` shows it, with files that lost their name as deleted. Processes of other users cannot be read without privileges and are
passed over. A process in a mount namespace of its own (a container) shows its own path for the same file: where the store is a tmpfs
of its own the device tells, else only the path does.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

from tessera.tensorstore.interface import MappedFile

_DELETED = b" (deleted)"


def store_mappings(root: Path, proc: Path = Path("/proc")) -> list[MappedFile]:
    """Each file below `root` once per process that maps it."""
    device = _own_device(root)
    prefix = os.fsencode(f"{root}/")
    hint = prefix if device is None else b" " + device + b" "
    found: list[MappedFile] = []
    for entry in os.scandir(proc):
        if not entry.name.isdigit():
            continue
        try:
            maps = Path(entry.path, "maps").read_bytes()
        except OSError:  # ended meanwhile, or not ours to read
            continue
        if hint in maps:
            found += _in_one(int(entry.name), maps, prefix, device)
    return found


def unlinked_bytes(mapped: Iterable[MappedFile]) -> int:
    """Bytes of files that were unlinked but are still mapped (whole pages), each file once, whoever maps it."""
    lengths: dict[int, int] = {}
    for file in mapped:
        if file.deleted:
            lengths[file.inode] = max(lengths.get(file.inode, 0), file.length_bytes)
    return sum(lengths.values())


def _own_device(root: Path) -> bytes | None:
    """The device as `/proc/*/maps` writes it, when nothing but the store lies on it."""
    try:
        device = os.stat(root).st_dev
        if device == os.stat(root.parent).st_dev:
            return None
    except FileNotFoundError:
        return None
    return f"{os.major(device):02x}:{os.minor(device):02x}".encode()


def _in_one(pid: int, maps: bytes, prefix: bytes, device: bytes | None) -> Iterable[MappedFile]:
    files: dict[int, MappedFile] = {}
    for line in maps.splitlines():
        fields = line.split(None, 5)  # range perms offset device inode path
        if len(fields) < 6 or not (fields[3] == device if device is not None else fields[5].startswith(prefix)):
            continue
        deleted = fields[5].endswith(_DELETED)
        path = fields[5].removesuffix(_DELETED)
        start, _, end = fields[0].partition(b"-")
        inode, length = int(fields[4]), int(fields[2], 16) + int(end, 16) - int(start, 16)
        known = files.get(inode)
        files[inode] = MappedFile(
            pid, os.fsdecode(path.rpartition(b"/")[2]), inode, max(length, known.length_bytes if known is not None else 0), deleted
        )
    return files.values()
