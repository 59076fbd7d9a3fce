from __future__ import annotations

import subprocess
import sys

import pytest

from tessera.frames import heap

SCRIPT = """
import resource
from tessera.frames.heap import keep_freed_memory

def faults(size, times):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(times):
        body = bytearray(size)
        body[::4096] = b"x" * len(body[::4096])
        del body
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

size = 20 << 20
plain = faults(size, 10)
assert keep_freed_memory()
faults(size, 2)
print(plain, faults(size, 10))
"""


def test_freed_bodies_are_not_faulted_in_again():
    """Counts page faults, in a process of its own because the setting stays."""
    found = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, timeout=60, check=True)
    plain, kept = map(int, found.stdout.split())
    assert kept < plain / 10


@pytest.mark.parametrize("size", [0, 1, 700_000])
def test_unwritten_memory_has_its_size_and_can_be_written(size):
    made = heap.unwritten(size)
    made[:] = b"x" * size
    assert type(made) is bytearray
    assert bytes(made) == b"x" * size


def test_bytes_that_were_unwritten_are_like_any_others():
    made, view = heap.unwritten_bytes(700_000)
    view[:] = b"x" * 700_000
    assert type(made) is bytes
    assert made == b"x" * 700_000
    assert hash(made) == hash(b"x" * 700_000)


@pytest.mark.parametrize("size", [0, 1])
def test_bytes_that_everybody_shares_are_not_given_out_for_writing(size):
    with pytest.raises(ValueError, match="shared"):
        heap.unwritten_bytes(size)
