"""What the whole machine uses, read from /proc: CPU time, memory, and pressure where the kernel tells it (PSI)."""

from __future__ import annotations

import os
from pathlib import Path

from tessera.node_agent.adapters.pressure import meminfo, stall_share
from tessera.node_agent.ports import MachineUse

_TICKS_PER_S = os.sysconf("SC_CLK_TCK")
_IDLE, _IOWAIT, _STEAL, _GUEST = 3, 4, 7, 8


class ProcMachine:
    """Implements `Machine`."""

    def __init__(self, proc: Path = Path("/proc")) -> None:
        self._proc = proc

    def use(self) -> MachineUse:
        memory, pressure = meminfo(self._proc / "meminfo"), stall_share(self._proc / "pressure" / "memory")
        return MachineUse(self._cpu_s(), memory.get("MemTotal", 0), memory.get("MemAvailable", 0), pressure)

    def _cpu_s(self) -> float:
        """Everything but idling, waiting for disks and what other guests of the host took; a guest's own time is in `user` already."""
        ticks = [int(value) for value in (self._proc / "stat").read_bytes().partition(b"\n")[0].split()[1:]]
        busy = [value for place, value in enumerate(ticks) if place not in (_IDLE, _IOWAIT, _STEAL) and place < _GUEST]
        return sum(busy) / _TICKS_PER_S
