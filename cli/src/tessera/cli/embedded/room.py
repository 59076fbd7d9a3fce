"""Do the tensor stores of all nodes of one machine fit into its memory together? Each node agent checks its own alone."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from tessera.cli.embedded.layout import Layout
from tessera.domain.errors import FailedPrecondition
from tessera.tensorstore.mount import bytes_in, memory_bytes, shm_folder_for

_CAP_SYS_ADMIN = 21
_OFF = ("0", "false", "f", "no", "n", "off")


def may_mount() -> bool:
    """Whether the stores will be mounts of their own: this process may mount, and no setting forbids it."""
    status = Path("/proc/self/status").read_text().splitlines()
    capabilities = next((int(line.split()[1], 16) for line in status if line.startswith("CapEff:")), 0)
    return bool(capabilities >> _CAP_SYS_ADMIN & 1) and os.environ.get("TESSERA_MAY_MOUNT", "").lower() not in _OFF


def check_stores_fit(layout: Layout) -> None:
    """Memory, and /dev/shm where the stores lie there.

    Raises:
        FailedPrecondition: the budgets of all nodes are more than there is; with both figures.
    """
    needed, total = layout.nodes * len(layout.domains) * layout.store_bytes, memory_bytes()
    domains = f" for each of {len(layout.domains)} trust domains" if len(layout.domains) > 1 else ""
    asked = f"--nodes {layout.nodes} with --store {layout.store_bytes} bytes{domains} need {needed} bytes"
    if needed > total:
        raise FailedPrecondition(f"{asked} of memory, {needed - total} more than this machine's {total}: lower one of them")
    if may_mount():
        return
    own = sum(bytes_in(folder) for folder in map(shm_folder_for, layout.stores()) if folder.is_dir())
    there = shutil.disk_usage("/dev/shm").free + own
    if needed > there:
        raise FailedPrecondition(
            f"{asked} in /dev/shm (mounting is not allowed), {needed - there} more than the {there} there: lower one of them"
        )
