"""Bytes of store files that were unlinked but are still mapped: read from the machine, never counted along.

`/proc/*/maps` shows them as deleted. Processes of other users cannot be read without privileges and are passed over.
"""

from __future__ import annotations

import os
from pathlib import Path


def unlinked_bytes(root: Path, proc: Path = Path("/proc")) -> int:
    """Sum over deleted files under `root` of the length that is mapped (whole pages), each file once."""
    prefix = os.fsencode(f"{root}/")
    lengths: dict[bytes, int] = {}
    for entry in os.scandir(proc):
        if not entry.name.isdigit():
            continue
        try:
            maps = Path(entry.path, "maps").read_bytes()
        except OSError:  # ended meanwhile, or not ours to read
            continue
        if prefix not in maps:
            continue
        for line in maps.splitlines():
            if not line.endswith(b" (deleted)"):
                continue
            fields = line.split(None, 5)  # range perms offset device inode path
            if len(fields) < 6 or not fields[5].startswith(prefix):
                continue
            start, _, end = fields[0].partition(b"-")
            length = int(fields[2], 16) + int(end, 16) - int(start, 16)
            lengths[fields[4]] = max(lengths.get(fields[4], 0), length)
    return sum(lengths.values())
