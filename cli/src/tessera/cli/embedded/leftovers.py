"""What a platform that was taken down might have left behind: processes, sockets, mounts, tmpfs folders, keys under leases."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import psutil

from tessera.cli.embedded.layout import MAX_NODES, Layout
from tessera.clock import Clock
from tessera.coord import keys
from tessera.coord.etcd import EtcdCoordinator
from tessera.domain.errors import TesseraError
from tessera.tensorstore.mount import remove_store_folder, shm_folder_for
from tessera.tensorstore.mountinfo import mounts_below


async def leases_left(etcd_address: str) -> list[str] | None:
    """Keys that still hang on a lease; None when etcd does not answer. Every service revokes its own when it stops."""
    coordinator = EtcdCoordinator([etcd_address])
    try:
        listing = await coordinator.list(keys.ROOT)
        return [item.key for item in listing.items if item.lease_id]
    except TesseraError:
        return None
    finally:
        await coordinator.close()


def processes_of(layout: Layout) -> list[psutil.Process]:
    """The platform's processes below the supervisor: one of our modules, or etcd, on the state or run folder, and the same user's; root's
    platform has runtimes of other users."""
    owner, found = owner_of(layout), []
    for process in psutil.process_iter(["cmdline", "uids"]):
        words, users = process.info["cmdline"] or [], process.info["uids"]
        if process.pid != os.getpid() and users is not None and owner in (users.effective, 0) and belongs(words, layout):
            found.append(process)
    return found


def belongs(command: Sequence[str], layout: Layout) -> bool:
    """Whether a command line is one of the platform's. That it mentions a folder of ours is not enough: editors and `tail` do that too."""
    if _module_of(command).startswith("tessera."):
        own = not _module_of(command).startswith("tessera.cli")  # whoever calls a platform is no part of it
        return own and any(_is_below(word, folder) for word in command for folder in (layout.state, layout.run))
    return bool(command) and Path(command[0]).name == "etcd" and f"--data-dir={layout.etcd_data}" in command


def _module_of(command: Sequence[str]) -> str:
    """What `python -m` runs, after options of Python's own."""
    for index, word in enumerate(command[1:-1], start=1):
        if word == "-m":
            return command[index + 1]
        if not word.startswith("-"):
            break
    return ""


def _is_below(word: str, folder: Path) -> bool:
    return Path(word) == folder or folder in Path(word).parents


async def end_added(layout: Layout, clock: Clock, timeout_s: float) -> None:
    """Ends the agents of nodes that were added, by force after `timeout_s`; each takes down what is its node's."""
    agents = [process for process in processes_of(layout) if any(_is_below(word, layout.added) for word in process.info["cmdline"])]
    for number in (signal.SIGTERM, signal.SIGKILL):
        for process in agents:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.send_signal(number)
        until_s = clock.monotonic_s() + timeout_s
        while (agents := [process for process in agents if _lives(process)]) and clock.monotonic_s() < until_s:
            await clock.sleep(0.05)
    shutil.rmtree(layout.added, ignore_errors=True)


def _lives(process: psutil.Process) -> bool:
    try:
        return bool(process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def owner_of(layout: Layout) -> int:
    """The user whose platform it is; root may take down another's."""
    try:
        return layout.state.stat().st_uid
    except OSError:
        return os.geteuid()


def store_folders(layout: Layout) -> list[tuple[Path, Path]]:
    """Per node the mount point of its store, and the folder of /dev/shm that stands in for it; as many as an earlier `up` may have had."""
    points = replace(layout, nodes=MAX_NODES).stores()
    return [(point, shm_folder_for(point, owner_of(layout))) for point in points]


def leftovers(layout: Layout) -> list[str]:
    """In words, everything that should not be there any more; empty when the platform went cleanly."""
    found = [f"process {process.pid}: {' '.join(process.info['cmdline'])[:120]}" for process in processes_of(layout)]
    if layout.run.exists():
        found += [f"file {path}" for path in sorted(layout.run.rglob("*")) if not path.is_dir()] or [f"folder {layout.run}"]
    found += [f"mount {mount.point}" for mount in mounts_below(layout.run)]
    return found + [f"tmpfs folder {folder}" for _, folder in store_folders(layout) if folder.is_dir()]


def clear_files(layout: Layout) -> None:
    """Removes stores and run folder once no process uses them. What cannot be removed stays, for `leftovers` to name."""
    for point, folder in store_folders(layout):
        try:
            remove_store_folder(point, folder)
        except (TesseraError, OSError):
            continue
    if not mounts_below(layout.run):  # never the content of a mount that is not a store
        shutil.rmtree(layout.run, ignore_errors=True)
