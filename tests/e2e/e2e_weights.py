"""A platform's processes as the machine shows them, and what they weigh from one look to the next."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import psutil
from e2e_platform import Platform

MIB = 1 << 20
GROWTH_SHARE, GROWTH_MIB = 0.10, 12.0
"""What a process may weigh more at the end than after the first round: caches fill, allocators round up."""
ETCD_GROWTH_MIB = 64.0
"""etcd keeps what was overwritten until its next compaction, minutes later."""

Weights = dict[str, tuple[int, float]]
"""(pid, private MiB) by name."""


def children(platform: Platform) -> dict[int, str]:
    """Zygotes, runtimes and the relay: processes whose command or folder names this platform's run folder."""
    run = str(platform.recorded()["run_folder"])
    found = {}
    for process in psutil.process_iter(["cmdline"]):
        words = process.info["cmdline"] or []
        if run not in " ".join(words):
            continue
        if "tessera.runtime.zygote" in words:
            # A runtime is a fork of its zygote and keeps its command line; its parent is the zygote, or nobody who knows it.
            parent = _cmdline(process.ppid())
            found[process.pid] = "runtime" if _is_runtime(process) or "tessera.runtime.zygote" in parent else "zygote"
        elif any("relay" in word for word in words):
            found[process.pid] = "relay"
    return found


def weigh(platform: Platform, kinds: Collection[str] = ("zygote", "relay")) -> Weights:
    """Every service, and those of these kinds of children."""
    pids = {process["name"]: process["pid"] for process in platform.recorded()["processes"]}
    pids |= {f"{name} {pid}": pid for pid, name in children(platform).items() if name in kinds}
    found = {}
    for name, pid in pids.items():
        try:
            found[name] = (pid, psutil.Process(pid).memory_full_info().uss / MIB)
        except psutil.NoSuchProcess:
            continue
    return found


def shown(weights: Weights) -> str:
    return ", ".join(f"{name.partition(' ')[0]} {mib:.0f}" for name, (_, mib) in sorted(weights.items()))


def growth(weights: Sequence[Weights]) -> list[str]:
    """Processes that lived from the end of one round to the end of the last and weigh more than they may. The first round warms up."""
    findings = []
    for name, (pid, end_mib) in weights[-1].items():
        since = next(((at, seen[name]) for at, seen in enumerate(weights[:-1]) if name in seen and seen[name][0] == pid), None)
        if since is None:
            continue
        at, (_, begin_mib) = since
        slack_mib = ETCD_GROWTH_MIB if name == "etcd" else GROWTH_MIB
        if end_mib > begin_mib + max(slack_mib, GROWTH_SHARE * begin_mib):
            findings.append(f"{name} (pid {pid}) grew from {begin_mib:.1f} MiB after round {at + 1} to {end_mib:.1f} MiB")
    return findings


def _cmdline(pid: int) -> list[str]:
    try:
        return psutil.Process(pid).cmdline()
    except psutil.Error:
        return []


def _is_runtime(process: psutil.Process) -> bool:
    """A runtime has a control socket in a folder of its own; a zygote has one beside them."""
    try:
        return any(str(found.laddr).endswith("/data.sock") for found in process.net_connections("unix"))
    except psutil.Error:
        return False
