"""What a platform that was taken down might have left behind: processes, sockets, mounts, tmpfs folders, keys under leases."""

from __future__ import annotations

import os
from pathlib import Path

import psutil

from tessera.cli.embedded.layout import Layout
from tessera.coord import keys
from tessera.coord.etcd import EtcdCoordinator
from tessera.domain.errors import TesseraError


async def leases_left(etcd_address: str) -> list[str]:
    """Keys that still hang on a lease. Every service revokes its own when it stops, so there should be none."""
    coordinator = EtcdCoordinator([etcd_address])
    try:
        listing = await coordinator.list(keys.ROOT)
        return [item.key for item in listing.items if item.lease_id]
    except TesseraError:
        return []
    finally:
        await coordinator.close()


def processes_of(layout: Layout) -> list[psutil.Process]:
    """Processes whose command line names the state or run folder, this one and its ancestors aside."""
    mine = {os.getpid(), *(process.pid for process in psutil.Process().parents())}
    marks = (str(layout.state / "config"), str(layout.state / "etcd"), str(layout.run))
    found = []
    for process in psutil.process_iter(["cmdline"]):
        words = process.info["cmdline"] or []
        if process.pid not in mine and any(mark in word for word in words for mark in marks):
            found.append(process)
    return found


def leftovers(layout: Layout) -> list[str]:
    """In words, everything that should not be there any more; empty when the platform went cleanly."""
    found = [f"process {process.pid}: {' '.join(process.info['cmdline'])[:120]}" for process in processes_of(layout)]
    if layout.run.exists():
        found += [f"file {path}" for path in sorted(layout.run.rglob("*")) if not path.is_dir()] or [f"folder {layout.run}"]
    for line in Path("/proc/self/mounts").read_text().splitlines():
        mounted = line.split()[1]
        if mounted.startswith(str(layout.run)):
            found.append(f"mount {mounted}")
    found += [f"tmpfs folder {path}" for path in Path("/dev/shm").glob(f"tessera-*{layout.run.name.removeprefix('tessera-')}*")]
    return found
