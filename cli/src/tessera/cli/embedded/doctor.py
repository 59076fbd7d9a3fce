"""`tessera doctor`: what this machine offers, each finding with what to do about it. Loads nothing heavy."""

from __future__ import annotations

import importlib.metadata
import os
import platform as machine
import resource
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from tessera.cli.embedded import state as platform
from tessera.cli.embedded.control import INSTALL_HINT, missing_services, ports_in_use
from tessera.cli.embedded.layout import Layout
from tessera.cli.embedded.room import may_mount
from tessera.coord.binary import find_etcd
from tessera.domain.errors import TesseraError

MIN_SHM_BYTES = 1 << 30
MIN_FILES = 4096


@dataclass(frozen=True)
class Finding:
    check: str
    status: Literal["ok", "warn", "fail"]
    detail: str


def _python() -> Finding:
    good = sys.version_info >= (3, 11)
    return Finding("python", "ok" if good else "fail", f"{machine.python_version()}{'' if good else '; 3.11 or newer is needed'}")


def _library(name: str, what: str) -> Finding:
    try:
        return Finding(name, "ok", importlib.metadata.version(name))
    except importlib.metadata.PackageNotFoundError:
        return Finding(name, "warn", f"not installed: {what} does not run on this machine")


def _services(layout: Layout) -> Finding:
    missing = missing_services(layout)
    if missing:
        return Finding("services", "warn", f"not installed: {', '.join(missing)}; {INSTALL_HINT}")
    return Finding("services", "ok", "all installed: 'tessera up' works here")


def _etcd() -> Finding:
    try:
        binary = find_etcd()
    except TesseraError as error:
        return Finding("etcd", "fail", str(error))
    shown = f"{binary.version} ({binary.path})"
    return Finding("etcd", "warn", f"{shown}: {binary.warning}") if binary.warning else Finding("etcd", "ok", shown)


def _shared_memory() -> Finding:
    try:
        free = shutil.disk_usage("/dev/shm").free
    except OSError as error:
        return Finding("/dev/shm", "fail", f"not there: {error}")
    shown = f"{free / 2**30:.1f} GiB free"
    return Finding("/dev/shm", "ok", shown) if free >= MIN_SHM_BYTES else Finding("/dev/shm", "warn", f"{shown}; 1 GiB or more is better")


def _mounting() -> Finding:
    if may_mount():
        return Finding("mounting", "ok", "allowed: the tensor store is a tmpfs of its own with huge pages")
    return Finding(
        "mounting", "warn", "not allowed: the store is a folder of /dev/shm, with 4 KiB pages (first touch costs about 75 ms per GiB)"
    )


def _huge_pages() -> Finding:
    path = Path("/sys/kernel/mm/transparent_hugepage/shmem_enabled")
    if not path.exists():
        return Finding("huge pages", "warn", "this kernel has no transparent huge pages for tmpfs")
    chosen = path.read_text().split("[")[1].split("]")[0]
    if chosen == "deny":
        return Finding("huge pages", "warn", f"denied by {path}")
    return Finding("huge pages", "ok", "available to a tmpfs that is mounted with huge=within_size")


def _cores() -> Finding:
    count = len(os.sched_getaffinity(0))
    return Finding("cores", "ok" if count >= 2 else "warn", f"{count}{'' if count >= 2 else '; two or more are better'}")


def _files() -> Finding:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    return Finding("open files", "ok" if hard >= MIN_FILES else "warn", f"{soft} (at most {hard})")


def _state(layout: Layout) -> Finding:
    running = platform.running(layout.state) if layout.state.is_dir() else None
    if running is not None:
        return Finding("state", "ok", f"{layout.state}: a platform is {running.status} (pid {running.supervisor.pid})")
    parent = next(folder for folder in (layout.state, *layout.state.parents) if folder.exists())
    if not os.access(parent, os.W_OK):
        return Finding("state", "fail", f"{layout.state} cannot be written")
    return Finding("state", "ok", f"{layout.state}: nothing runs there")


def _ports(layout: Layout) -> Finding:
    if layout.state.is_dir() and platform.running(layout.state) is not None:
        return Finding("ports", "ok", f"{layout.port_base} and up, used by this platform")
    taken = ports_in_use(layout)
    if taken:
        return Finding("ports", "fail", f"in use: {', '.join(taken)}; choose others with --port-base")
    return Finding("ports", "ok", f"{len(layout.ports())} from {layout.port_base} on are free")


def examine(layout: Layout) -> list[Finding]:
    """All findings, the most basic first."""
    backends = [_library("torch", "flavour aten"), _library("onnxruntime", "flavour ort")]
    memory = [_shared_memory(), _mounting(), _huge_pages()]
    return [_python(), _cores(), _services(layout), _etcd(), *backends, *memory, _files(), _state(layout), _ports(layout)]
