"""What /proc/self/mountinfo says about the place a path lies on."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

_HUGE = re.compile(r"(?:^|,)huge=(within_size|always)(?:,|$)")


@dataclass(frozen=True, slots=True)
class Mount:
    point: Path
    kind: str
    source: str
    options: str


def mount_of(path: Path, mounts: str | None = None) -> Mount:
    """The mount that `path` lies on. `mounts` stands for the content of /proc/self/mountinfo."""
    wanted = os.path.realpath(path)
    found = Mount(Path("/"), "", "", "")
    for mount in _all(mounts):
        point = str(mount.point)
        inside = wanted == point or wanted.startswith(point.rstrip("/") + "/")
        if inside and len(point) >= len(str(found.point)):  # of two on one point the later one is on top
            found = mount
    return found


def mounts_below(folder: Path, mounts: str | None = None) -> list[Mount]:
    """The mounts on `folder` and below it."""
    top = Path(os.path.realpath(folder))
    return [mount for mount in _all(mounts) if mount.point == top or top in mount.point.parents]


def _all(mounts: str | None) -> list[Mount]:
    text = Path("/proc/self/mountinfo").read_text(errors="surrogateescape") if mounts is None else mounts
    found = []
    for line in text.splitlines():
        before, _, after = line.partition(" - ")
        point = re.sub(r"\\(\d{3})", lambda code: chr(int(code[1], 8)), before.split(" ")[4])
        kind, source, options = after.split(" ", 2)
        found.append(Mount(Path(point), kind, source, options))
    return found


def has_huge_pages(path: Path) -> bool:
    """Whether files at `path` are on a tmpfs that gives them huge pages by itself."""
    mount = mount_of(path)
    return mount.kind == "tmpfs" and _HUGE.search(mount.options) is not None
