"""What this process uses: memory by kind, read from /proc, and CPU time."""

from __future__ import annotations

import ctypes
import os
import re
from dataclasses import dataclass
from pathlib import Path

_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")
_READ_BYTES = 1 << 16
_LINES = re.compile(rb"^(?:[0-9a-f]+-[0-9a-f]+ \S+ \S+ \S+ \d+ *(.*)|(Rss|Pss|Private_Clean|Private_Dirty): +(\d+) kB)$", re.MULTILINE)
"""The head of a mapping with its path, or one of the figures that count."""


@dataclass(frozen=True, slots=True)
class MemoryUse:
    """`private_bytes`: pages that only this process has, the store's files left out. `shared_bytes`: resident pages of the store's files.
    `proportional_bytes`: PSS, the store included."""

    private_bytes: int
    shared_bytes: int
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
    """Exact figures from smaps. Takes 4 us per mapping, mostly in the kernel, and belongs on a thread of its own: between two reads of
    4 KiB (the kernel gives no more at a time) neither the interpreter nor the address space is locked, so that nobody waits longer than
    0.2 ms for it.

    Pages of the store's files that nobody else happens to map count as private to the kernel; they are shared by nature and left out.
    """
    sums = _Sums(os.fsencode(f"{store}/"))
    file = os.open("/proc/self/smaps", os.O_RDONLY | os.O_CLOEXEC)
    try:
        rest = b""
        while data := os.read(file, _READ_BYTES):
            whole, newline, rest = (rest + data).rpartition(b"\n")
            sums.take(whole + newline)
    finally:
        os.close(file)
    return MemoryUse(sums.private_kib * 1024, sums.shared_kib * 1024, sums.proportional_kib * 1024)


class _Sums:
    """Adds up the mappings of a smaps text that comes in pieces of whole lines."""

    def __init__(self, prefix: bytes) -> None:
        self._prefix = prefix
        self._in_store = False
        self.private_kib = self.shared_kib = self.proportional_kib = 0

    def take(self, lines: bytes) -> None:
        for path, name, kib in _LINES.findall(lines):
            if not name:
                self._in_store = path.startswith(self._prefix)
            elif name == b"Pss":
                self.proportional_kib += int(kib)
            elif name == b"Rss":
                self.shared_kib += int(kib) if self._in_store else 0
            elif not self._in_store:
                self.private_kib += int(kib)


def cpu_s() -> float:
    """Seconds of CPU that all threads of this process have used since it began."""
    times = os.times()
    return times.user + times.system


def trim() -> None:
    """Gives free heap back to the system where the C library can (glibc's malloc_trim)."""
    try:
        ctypes.CDLL(None).malloc_trim(0)
    except AttributeError:  # another C library, or another allocator preloaded
        pass
