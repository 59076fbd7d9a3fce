"""Where this agent itself lives: in a container or not, and what of its folders the engine can see."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

from tessera.domain.errors import FailedPrecondition
from tessera.node_agent.adapters.engine import Engine
from tessera.node_agent.core.containers import Mount, mount_of, own_container_id
from tessera.telemetry import get_logger

_log = get_logger(__name__)


async def own_mounts(
    engine: Engine, folders: Iterable[Path], mountinfo: str | None = None, cgroup: str | None = None
) -> tuple[Mount, ...] | None:
    """Mounts of the container in which this process runs; None outside of one. `mountinfo` and `cgroup` stand for the contents of
    /proc/self/mountinfo and /proc/self/cgroup.

    Raises:
        Unavailable: no engine answers.
        FailedPrecondition: one of `folders` lies on a mount that this process made in its container, which the engine cannot see.
    """
    container_id = own_container_id(
        Path("/proc/self/mountinfo").read_text(errors="surrogateescape") if mountinfo is None else mountinfo,
        Path("/proc/self/cgroup").read_text() if cgroup is None else cgroup,
    )
    if container_id is None:
        return None
    mounts = await engine.mounts_of(container_id)
    if mounts is None:
        _log.info("this agent runs in a container of another engine", container_id=container_id[:12])
        return None
    for folder in folders:
        below = mount_of(str(folder), mounts)
        if below is not None and folder.stat().st_dev != os.stat(below.destination).st_dev:
            raise FailedPrecondition(
                f"{folder} is a mount of the agent's own below {below.destination}, which the container engine cannot see: mount a volume "
                "there and name it as the folder in stores, or set may_mount: false"
            )
    return mounts


def store_identity(root: Path) -> str:
    """Tells this store from one that was there before: a tmpfs that somebody still has mounted keeps its device number to itself."""
    found = root.stat()
    return f"{found.st_dev:x}:{found.st_ino:x}"


def admit(store_root: Path, group: int) -> None:
    """Lets a container's group read a store that is this process's; nobody else gains by it."""
    if store_root.stat().st_gid != group:
        os.chown(store_root, -1, group)
        store_root.chmod(0o750)
    (store_root / "blobs").chmod(0o755)  # whatever this process's umask made of it
