"""How much memory this process has for itself, read from /proc."""

from __future__ import annotations

import ctypes
import os
from dataclasses import dataclass
from pathlib import Path

_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")


@dataclass(frozen=True, slots=True)
class MemoryUse:
    """`private_bytes`: pages that only this process has, the store's files left out. `proportional_bytes`: PSS, the store included."""

    private_bytes: int
    proportional_bytes: int


def anonymous_bytes() -> int:
    """Resident anonymous bytes; 20 us, for what happens on the start path. Growth of it is private growth."""
    file = os.open("/proc/self/statm", os.O_RDONLY | os.O_CLOEXEC)
    try:
        fields = os.read(file, 256).split()
    finally:
        os.close(file)
    return (int(fields[1]) - int(fields[2])) * _PAGE_BYTES


def memory_use(store: Path) -> MemoryUse:
    """Exact figures from smaps; some milliseconds.

    Pages of the store's files that nobody else happens to map count as private to the kernel; they are shared by nature and left out.
    """
    prefix = f"{store}/"
    private_kib = proportional_kib = 0
    in_store = False
    with open("/proc/self/smaps", encoding="utf-8", errors="replace") as file:
        for line in file:
            name, _, value = line.partition(":")
            if name in ("Private_Clean", "Private_Dirty"):
                if not in_store:
                    private_kib += int(value.split()[0])
            elif name == "Pss":
                proportional_kib += int(value.split()[0])
            elif "-" in name.split(" ", 1)[0]:
                path = line.split(maxsplit=5)
                in_store = len(path) == 6 and path[5].startswith(prefix)
    return MemoryUse(private_kib * 1024, proportional_kib * 1024)


def trim() -> None:
    """Gives free heap back to the system where the C library can (glibc's malloc_trim)."""
    try:
        ctypes.CDLL(None).malloc_trim(0)
    except AttributeError:  # another C library, or another allocator preloaded
        pass
