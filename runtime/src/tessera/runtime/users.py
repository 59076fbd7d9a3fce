"""Becoming an ordinary user: what runs models of a trust domain is no other domain's, and not root."""

from __future__ import annotations

import os


def become(user_id: int) -> None:
    """Gives up this process's user, groups and capabilities for good; its group has the user's number. The first thing that a program
    does: what it made before stays the former user's.

    Raises:
        PermissionError: this process may not (it is neither root nor that user).
    """
    if user_id in (os.getuid(), 0):  # root is nobody to become
        return
    os.setgroups([])
    os.setresgid(user_id, user_id, user_id)
    os.setresuid(user_id, user_id, user_id)
    os.umask(0o077)
