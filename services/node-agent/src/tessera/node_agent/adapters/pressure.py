"""What the kernel says about memory: pressure stall information, what is left of the machine, what is left of our control groups.

Both hierarchies are understood (v1: `memory.limit_in_bytes` and `memory.usage_in_bytes`; v2: `memory.max`, `memory.current` and a
`memory.pressure` of its own). Inactive file cache does not count as used: the kernel takes it back before anybody waits. A store's own
pages do (they are shared memory), which is why unlinking them helps.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from tessera.node_agent.core.pressure import MemoryReading

_UNLIMITED = 1 << 60
"""v1 says "no limit" with a number near 2^63; no machine has this much."""


class KernelMemory:
    """Implements `Memory`. `root` stands for `/`."""

    def __init__(self, root: Path = Path("/")) -> None:
        self._root = root

    def read(self) -> MemoryReading:
        machine = meminfo(self._root / "proc/meminfo").get("MemAvailable", _UNLIMITED)
        stalls, available = [stall_share(self._root / "proc/pressure/memory")], [machine]
        for group in self._groups():
            stalls.append(stall_share(group / "memory.pressure"))
            available.append(_group_available(group))
        return MemoryReading(max(stalls), min(available))

    def _groups(self) -> Iterator[Path]:
        """Our control group and those above it: any of them may be the tightest. In a container the path may be the host's; what it is
        called from inside is then the root of the mount."""
        for line in _text(self._root / "proc/self/cgroup").splitlines():
            number, controllers, path = line.split(":", 2)
            if "memory" in controllers.split(","):
                top = self._root / "sys/fs/cgroup/memory"
            elif number == "0":
                top = self._root / "sys/fs/cgroup"
            else:
                continue
            group = top / path.lstrip("/")
            if not group.is_dir():
                group = top
            while True:
                yield group
                if group == top:
                    break
                group = group.parent


def _text(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""


def _number(path: Path) -> int | None:
    words = _text(path).split()
    return int(words[0]) if words and words[0].isdigit() else None


def stall_share(path: Path) -> float:
    """`some avg10=1.23 ...` as 0.0123; 0 where there is no such file: a kernel without PSI, or one that is told not to keep it."""
    for line in _text(path).splitlines():
        if line.startswith("some "):
            return float(line.partition("avg10=")[2].split()[0]) / 100
    return 0.0


def meminfo(path: Path) -> dict[str, int]:
    """Bytes by name, of what the file gives in kB."""
    lines = (line.split() for line in _text(path).splitlines())
    return {fields[0].removesuffix(":"): int(fields[1]) * 1024 for fields in lines if len(fields) == 3}


def _group_available(group: Path) -> int:
    for limit_file, usage_file, inactive in (
        ("memory.max", "memory.current", "inactive_file"),
        ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
    ):
        limit, usage = _number(group / limit_file), _number(group / usage_file)
        if limit is None or usage is None or limit >= _UNLIMITED:
            continue
        words = (line.split() for line in _text(group / "memory.stat").splitlines())
        cached = next((int(pair[1]) for pair in words if pair[:1] == [inactive]), 0)
        return max(0, limit - usage + cached)
    return _UNLIMITED
