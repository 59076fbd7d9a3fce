"""One user for each trust domain: may this agent have them, and can they read what they run?"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable
from pathlib import Path

import tessera.runtime
from tessera.domain.errors import FailedPrecondition
from tessera.node_agent.config import NodeAgentConfig
from tessera.telemetry import get_logger

_log = get_logger(__name__)


def runs_as_users(config: NodeAgentConfig, run: Path) -> bool:
    """Whether each trust domain's processes run as a user of its own; False: all as this agent's.

    Raises:
        FailedPrecondition: the settings, or several stores, want it, and it cannot be; says why.
    """
    if config.runtime_user == "own":
        if len(config.stores) > 1:
            _log.warning("runtime_user is 'own': what runs for one trust domain can read the stores and sockets of the others")
        return False
    reason = _why_not([run, *(store.folder for store in config.stores if store.folder is not None)])
    if reason is None:
        return True
    if config.runtime_user == "domain" or len(config.stores) > 1:
        wants = "runtime_user 'domain'" if config.runtime_user == "domain" else f"{len(config.stores)} stores (trust domains)"
        raise FailedPrecondition(f"{wants} need a user for each trust domain: {reason}")
    _log.info("runtimes run as this agent's user", reason=reason)
    return False


def _why_not(folders: Iterable[Path]) -> str | None:
    if os.geteuid() != 0:
        return f"this agent is user {os.geteuid()}, and only root may start processes of other users"
    # The interpreter itself is loaded before its user changes; what it imports is not.
    for path in (Path(os.__file__), Path(str(tessera.runtime.__file__)), *(Path(entry) for entry in sys.path if entry)):
        if path.exists() and (closed := _closed(path)) is not None:
            return f"other users cannot read {closed}, and what runtimes import lies there"
    for folder in folders:
        for parent in folder.absolute().parents:  # the folder itself is this agent's to open
            if not parent.stat().st_mode & 0o001:
                return f"other users cannot pass through {parent}"
    return None


def _closed(path: Path) -> Path | None:
    """The first folder on the way to `path`, or `path`, that is not open to all."""
    absolute = Path(os.path.abspath(path))
    for parent in reversed(absolute.parents):
        if not parent.stat().st_mode & 0o001:
            return parent
    wanted = 0o005 if absolute.is_dir() else 0o004
    return absolute if absolute.stat().st_mode & wanted != wanted else None
