"""Takes away what an import does not need, before anything heavy is imported and before an untrusted byte is read.

Guarantee: no network (own empty network namespace; where the kernel refuses one, every socket connect, bind and name lookup is
refused by an audit hook), no writing outside the work folder, no new programs, no pickle classes, bounded memory, CPU, file size
and descriptors; the process dies with the registry that started it. The audit hook guards against files that steer our own
libraries; it is no wall against native code, which is why no format that carries any is accepted.
"""

from __future__ import annotations

import ctypes
import os
import resource
import signal
import sys
from pathlib import Path
from typing import Any

from tessera.registry.importer.task import Limits

_PR_SET_PDEATHSIG = 1
_PR_SET_NO_NEW_PRIVS = 38
_CLONE_NEWUSER = 0x10000000
_CLONE_NEWNET = 0x40000000

_REFUSED_EVENTS = frozenset(
    {
        "socket.connect", "socket.bind", "socket.getaddrinfo", "socket.gethostbyname", "socket.gethostbyaddr", "socket.sendto",
        "subprocess.Popen", "os.system", "os.exec", "os.posix_spawn", "os.fork", "os.forkpty", "pty.spawn", "pickle.find_class",
    }
)  # fmt: skip
_WRITING_EVENTS = frozenset(
    {"os.remove", "os.rename", "os.rmdir", "os.link", "os.symlink", "os.chmod", "os.chown", "os.truncate", "os.mkdir"}
)
_WRITE_FLAGS = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND


def confine(limits: Limits, parent_pid: int) -> str:
    """Applies everything but the audit hook; must run while the process has one thread.

    Returns how the network was cut: "namespace" or "hook" (then only the audit hook keeps it away).
    """
    libc = ctypes.CDLL(None, use_errno=True)
    libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent_pid:  # it died between our start and the line above
        os._exit(125)
    network = _cut_network(libc)
    libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    for what, limit in (
        (resource.RLIMIT_DATA, limits.memory_bytes),  # not RLIMIT_AS: torch reserves far more than it uses
        (resource.RLIMIT_CPU, limits.cpu_s),
        (resource.RLIMIT_FSIZE, limits.file_bytes),
        (resource.RLIMIT_NOFILE, limits.open_files),
        (resource.RLIMIT_NPROC, limits.threads),
    ):
        _lower(what, limit)
    _lower(resource.RLIMIT_CORE, 0, zero_means_none=True)
    os.nice(limits.nice)
    return network


def _lower(what: int, limit: int, *, zero_means_none: bool = False) -> None:
    if limit == 0 and not zero_means_none:
        return
    _, hard = resource.getrlimit(what)
    if hard != resource.RLIM_INFINITY:
        limit = min(limit, hard)
    resource.setrlimit(what, (limit, limit))


def _cut_network(libc: ctypes.CDLL) -> str:
    user, group = os.getuid(), os.getgid()
    if libc.unshare(_CLONE_NEWNET) == 0:
        return "namespace"
    if libc.unshare(_CLONE_NEWUSER | _CLONE_NEWNET) == 0:
        try:
            Path("/proc/self/setgroups").write_text("deny")
            Path("/proc/self/uid_map").write_text(f"{user} {user} 1")
            Path("/proc/self/gid_map").write_text(f"{group} {group} 1")
        except OSError:
            pass  # without the map we are nobody inside, and files are still opened with the rights we had
        return "namespace"
    return "hook"


def install_audit_hook(writable: Path) -> None:
    """From now on writing outside `writable`, sockets, programs and pickled classes raise PermissionError. Cannot be undone."""
    root = os.path.realpath(writable) + os.sep

    def inside(path: Any) -> bool:
        if isinstance(path, int):
            return True
        text = os.fsdecode(path)
        return text == os.devnull or os.path.realpath(text).startswith(root)

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        if event in _REFUSED_EVENTS:
            raise PermissionError(f"the import sandbox allows no {event} ({str(arguments[-1:])[:120]})")
        if event == "open":
            path, mode, flags = arguments
            writes = bool(flags & _WRITE_FLAGS) if isinstance(flags, int) else bool(mode) and any(c in str(mode) for c in "wax+")
            if writes and path is not None and not inside(path):
                raise PermissionError(f"the import sandbox writes only below its work folder, not {os.fsdecode(path)!r}")
        elif event in _WRITING_EVENTS and arguments and not inside(arguments[0]):
            raise PermissionError(f"the import sandbox allows no {event} outside its work folder")

    sys.addaudithook(hook)
