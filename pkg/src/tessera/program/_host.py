"""Which machine this is."""

from __future__ import annotations

import os
from pathlib import Path


def host_id() -> str:
    """A stable id of this machine: processes that see the same one may share its Unix sockets (containers share an id and not their
    folders). The boot id follows where containers carry a copy of one image's machine id."""
    words = []
    for source in ("/etc/machine-id", "/proc/sys/kernel/random/boot_id"):
        try:
            words.append(Path(source).read_text().strip())
        except OSError:
            continue
    return "-".join(word for word in words if word) or os.uname().nodename
