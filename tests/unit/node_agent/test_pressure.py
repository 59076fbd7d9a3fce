"""When memory is short: the decision, and what the kernel's files say."""

from __future__ import annotations

from pathlib import Path

import pytest

from tessera.node_agent.adapters.pressure import KernelMemory
from tessera.node_agent.core.pressure import MemoryReading, PressureLimits, relief_bytes

GIB = 1 << 30
LIMITS = PressureLimits(stall_share=0.1, reserve_bytes=GIB, step_bytes=100, pause_s=5.0)


@pytest.mark.parametrize(
    ("stall", "available", "since_s", "wanted"),
    [
        (0.0, GIB, 100.0, 0),
        (0.09, 2 * GIB, 100.0, 0),
        (0.0, GIB - 7, 0.0, 7),  # what is missing goes at once, every time
        (0.1, 2 * GIB, 5.0, 100),
        (0.9, 2 * GIB, 4.9, 0),  # the last step has not shown yet
        (0.9, GIB - 7, 100.0, 100),
        (0.9, GIB - 700, 100.0, 700),
        (1.0, 0, 0.0, GIB),
    ],
)
def test_how_much_is_given_up(stall: float, available: int, since_s: float, wanted: int) -> None:
    assert relief_bytes(MemoryReading(stall, available), LIMITS, since_s) == wanted


def test_both_signs_can_be_switched_off() -> None:
    off = PressureLimits(stall_share=0.0, reserve_bytes=0, step_bytes=100, pause_s=0.0)
    assert relief_bytes(MemoryReading(1.0, 0), off, 100.0) == 0


class Tree:
    """Files as the kernel has them."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.put("proc/pressure/memory", "some avg10=12.50 avg60=1.00 avg300=0.00 total=5\nfull avg10=1.00 avg60=0 avg300=0 total=1\n")
        self.put("proc/meminfo", "MemTotal:  8000 kB\nMemFree: 10 kB\nMemAvailable:    4000 kB\n")

    def put(self, path: str, text: str) -> None:
        file = self.root / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)

    def read(self) -> MemoryReading:
        return KernelMemory(self.root).read()


@pytest.fixture
def tree(tmp_path: Path) -> Tree:
    return Tree(tmp_path)


def test_a_machine_without_control_groups(tree: Tree) -> None:
    assert tree.read() == MemoryReading(0.125, 4000 * 1024)


def test_a_kernel_that_tells_nothing_is_never_short(tmp_path: Path) -> None:
    reading = KernelMemory(tmp_path).read()
    assert reading.stall_share == 0
    assert reading.available_bytes > 1 << 50


def test_version_2_the_tightest_group_counts_and_its_own_stalls_too(tree: Tree) -> None:
    tree.put("proc/self/cgroup", "0::/a/b\n")
    tree.put("sys/fs/cgroup/a/memory.max", "3000000\n")
    tree.put("sys/fs/cgroup/a/memory.current", "2500000\n")
    tree.put("sys/fs/cgroup/a/memory.stat", "anon 5\ninactive_file 100000\nshmem 7\n")
    tree.put("sys/fs/cgroup/a/b/memory.max", "max\n")
    tree.put("sys/fs/cgroup/a/b/memory.current", "2400000\n")
    tree.put("sys/fs/cgroup/a/b/memory.pressure", "some avg10=40.00 avg60=0.00 avg300=0.00 total=0\n")
    assert tree.read() == MemoryReading(0.4, 3000000 - 2500000 + 100000)


def test_version_1_with_a_path_that_only_the_host_knows(tree: Tree) -> None:
    tree.put("proc/self/cgroup", "8:pids:/\n4:cpu,memory:/docker/abc\n0::/\n")
    tree.put("sys/fs/cgroup/memory/memory.limit_in_bytes", "1000000\n")
    tree.put("sys/fs/cgroup/memory/memory.usage_in_bytes", "1200000\n")
    tree.put("sys/fs/cgroup/memory/memory.stat", "cache 1\ninactive_file 3\ntotal_inactive_file 300000\n")
    assert tree.read().available_bytes == 100000


def test_version_1_without_a_limit(tree: Tree) -> None:
    tree.put("proc/self/cgroup", "4:memory:/\n")
    tree.put("sys/fs/cgroup/memory/memory.limit_in_bytes", "9223372036854771712\n")
    tree.put("sys/fs/cgroup/memory/memory.usage_in_bytes", "1200000\n")
    assert tree.read().available_bytes == 4000 * 1024


def test_this_machine_can_be_read() -> None:
    reading = KernelMemory().read()
    assert 0 <= reading.stall_share <= 1
    assert 0 < reading.available_bytes < 1 << 50
