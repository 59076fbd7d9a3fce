"""Becoming an ordinary user without a network: what runs models of a trust domain is no other domain's, and not root."""

from __future__ import annotations

import ctypes
import logging
import os

CLONE_NEWNET = 0x40000000

_log = logging.getLogger(__name__)


def become(user_id: int) -> None:
    """Gives up this process's network, user, groups and capabilities for good; its group has the user's number. The first thing that a
    program does: what it made before stays the former user's.

    Raises:
        PermissionError: this process may not (it is neither root nor that user).
    """
    if user_id in (os.getuid(), 0):  # root is nobody to become
        return
    _leave_network()
    os.setgroups([])
    os.setresgid(user_id, user_id, user_id)
    os.setresuid(user_id, user_id, user_id)
    os.umask(0o077)


def _leave_network() -> None:
    """Into a network namespace with nothing in it: Unix sockets are found by their path all the same, and the platform's internal ports,
    which ask nobody for a token, are not found. Where root may not (a container without that capability) the network stays."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(ctypes.c_int(CLONE_NEWNET)) != 0:
        _log.warning("the network stays within reach: %s", os.strerror(ctypes.get_errno()))
