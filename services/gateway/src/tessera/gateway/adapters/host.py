"""Which machine this is, in the same words as the node agent says it (tests compare the two)."""

from __future__ import annotations

import os
from pathlib import Path


def host_id() -> str:
    """Processes that see the same id share the machine's Unix sockets. The boot id follows where containers carry a copy of one
    image's machine id."""
    words = []
    for source in ("/etc/machine-id", "/proc/sys/kernel/random/boot_id"):
        try:
            words.append(Path(source).read_text().strip())
        except OSError:
            continue
    return "-".join(word for word in words if word) or os.uname().nodename
