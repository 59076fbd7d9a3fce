"""Memory by kind, against a text and against the kernel."""

from __future__ import annotations

import mmap
import os
from pathlib import Path

import pytest

from tessera.runtime import memory
from tessera.runtime.memory import _Sums

SMAPS = b"""55d0-55e0 rw-p 00000000 00:00 0                          [heap]
Size:                132 kB
Rss:                 100 kB
Pss:                  60 kB
Pss_Dirty:            60 kB
Shared_Clean:          0 kB
Private_Clean:         8 kB
Private_Dirty:        12 kB
VmFlags: rd wr
7f00-7f10 r--s 00000000 00:1b 77                          /run/x/store/blobs/ab c (deleted)
Rss:                  64 kB
Pss:                  16 kB
Private_Clean:         4 kB
Private_Dirty:        40 kB
VmFlags: rd sh
7f20-7f30 r--s 00000000 00:1b 78                          /run/x/store2/blobs/ab
Rss:                  32 kB
Pss:                   2 kB
Private_Clean:         1 kB
Private_Dirty:         0 kB
7f40-7f50 rw-p 00000000 00:00 0
Rss:                   4 kB
Pss:                   4 kB
Private_Clean:         0 kB
Private_Dirty:         4 kB
"""


@pytest.mark.parametrize("cut", [0, 1, 7])
def test_store_files_are_shared_and_everything_else_that_one_has_alone_is_private(cut):
    sums = _Sums(b"/run/x/store/")
    lines = SMAPS.splitlines(keepends=True)
    for piece in (lines[:cut], lines[cut:]):
        sums.take(b"".join(piece))
    assert (sums.private_kib, sums.shared_kib, sums.proportional_kib) == (8 + 12 + 1 + 4, 64, 60 + 16 + 2 + 4)


def test_agrees_with_what_was_touched(tmp_path: Path):
    store = tmp_path / "store"
    store.mkdir()
    (store / "blob").write_bytes(os.urandom(3 << 20))
    before = memory.memory_use(store)
    with (store / "blob").open("rb") as file, mmap.mmap(file.fileno(), 0, mmap.MAP_SHARED, mmap.PROT_READ) as mapped:
        for place in range(0, 2 << 20, 4096):
            mapped[place]
        with mmap.mmap(-1, 8 << 20, mmap.MAP_PRIVATE) as own:
            for place in range(0, 8 << 20, 4096):
                own[place] = 1
            now = memory.memory_use(store)
    assert (2 << 20) <= now.shared_bytes - before.shared_bytes <= (3 << 20)  # the kernel may map a few pages around each fault
    assert abs(now.private_bytes - before.private_bytes - (8 << 20)) < (1 << 20)
    assert now.proportional_bytes > before.proportional_bytes
    assert memory.memory_use(store).shared_bytes == 0


def test_cpu_time_grows():
    before = memory.cpu_s()
    while memory.cpu_s() < before + 0.02:
        sum(range(10_000))
