"""Processes that outlive the agent: started in sessions of their own, watched by pidfd, never by parenthood."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import stat
import struct
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path

import psutil

from tessera.domain.errors import FailedPrecondition

LOG_TAIL_BYTES = 2000


class Watched:
    """A live process, ours or adopted. `pid` is only good for showing: signals go through the pidfd, which cannot name another."""

    def __init__(self, pid: int, ended: Callable[[], None] | None = None) -> None:
        """`ended` is called once, on the event loop.

        Raises:
            ProcessLookupError: there is no such process (any more).
        """
        self.pid = pid
        self._fd = os.pidfd_open(pid)
        self._ended = ended
        self._over = asyncio.Event()
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(self._fd, self._on_end)

    @property
    def alive(self) -> bool:
        return not self._over.is_set()

    def send(self, number: signal.Signals) -> None:
        """A signal; nothing when it has ended."""
        if self._fd >= 0:
            try:
                signal.pidfd_send_signal(self._fd, number)
            except ProcessLookupError:
                pass

    async def wait(self, timeout_s: float) -> bool:
        """True when it has ended within the time."""
        try:
            async with asyncio.timeout(timeout_s):
                await self._over.wait()
        except TimeoutError:
            return False
        return True

    async def end(self, timeout_s: float, number: signal.Signals = signal.SIGTERM) -> None:
        """Sends `number`, and SIGKILL when that was not enough."""
        self.send(number)
        if not await self.wait(timeout_s):
            self.send(signal.SIGKILL)
            await self.wait(timeout_s)

    def release(self) -> None:
        """Stops watching; the process lives on."""
        if self._fd >= 0:
            self._loop.remove_reader(self._fd)
            os.close(self._fd)
            self._fd = -1

    def _on_end(self) -> None:
        self.release()
        try:
            os.waitpid(self.pid, os.WNOHANG)  # ours is reaped; an adopted one is not our child
        except ChildProcessError:
            pass
        self._over.set()
        if self._ended is not None:
            self._ended()


def watch_listener(pid: int, user: int, ended: Callable[[], None] | None = None) -> Watched:
    """Watches the process that the kernel names for a socket's listener. It names who began to listen; where that one has ended and left
    the socket to another, its number may be a stranger's by now, whom nobody may signal for it: hence `user`, whose it must be wholly.

    Raises:
        ProcessLookupError: it has ended.
        PermissionError: the process of that number is not this user's.
    """
    watched = Watched(pid, ended)
    try:
        users = _users_of(pid)  # after the pidfd was taken: if this is another one's already, what is watched has ended
        if users != {user}:
            raise PermissionError(f"process {pid} belongs to user {', '.join(map(str, sorted(users)))}, not to {user}")
    except BaseException:
        watched.release()
        raise
    return watched


def _users_of(pid: int) -> set[int]:
    """Real, effective, saved and file system user of a process. Raises: ProcessLookupError."""
    try:
        with open(f"/proc/{pid}/status", "rb") as file:
            (line,) = (line for line in file if line.startswith(b"Uid:"))
    except FileNotFoundError as error:
        raise ProcessLookupError(f"there is no process {pid}") from error
    return set(map(int, line.split()[1:]))


async def kill_listener(path: Path, user: int, timeout_s: float) -> int | None:
    """Kills who listens at a Unix socket of `user`'s, though it may answer nothing, and waits for its end. Returns its process id; None
    when nobody listens there, or nobody who may be a runtime of that user. The folder may be the user's to write: a link to another
    service's socket kills nobody, nor does one of this process itself or of the first."""
    with ExitStack() as opened:
        probe = opened.enter_context(socket.socket(socket.AF_UNIX))
        probe.setblocking(False)
        try:
            place = os.open(path, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC)
            opened.callback(os.close, place)
            found = os.fstat(place)
            if not stat.S_ISSOCK(found.st_mode) or found.st_uid != user:
                return None
            probe.connect(f"/proc/self/fd/{place}")  # what was looked at, whatever lies at `path` by now
            pid, listener, _ = struct.unpack("iII", probe.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
            if listener != user or pid in (1, os.getpid()):
                return None
            watched = watch_listener(pid, user)
        except (OSError, OverflowError):
            return None
    await watched.end(timeout_s, signal.SIGKILL)
    return int(pid)


def spawn_detached(command: Sequence[str], log: Path, environment: Mapping[str, str]) -> int:
    """Starts a process in a session of its own, its output appended to `log`; returns its pid.

    Raises:
        FailedPrecondition: the log's folder cannot be written, or the program cannot be started.
    """
    flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND
    try:
        log.parent.mkdir(parents=True, exist_ok=True)
        return os.posix_spawn(
            command[0],
            list(command),
            dict(environment),
            file_actions=[
                (os.POSIX_SPAWN_OPEN, 0, "/dev/null", os.O_RDONLY, 0),
                (os.POSIX_SPAWN_OPEN, 1, str(log), flags, 0o600),
                (os.POSIX_SPAWN_DUP2, 1, 2),
            ],
            setsid=True,
        )
    except OSError as error:
        raise FailedPrecondition(f"{' '.join(command[:4])} cannot be started with log {log}: {error.strerror}") from error


def log_tail(log: Path) -> str:
    """The end of a log, for an error message."""
    try:
        with log.open("rb") as file:
            file.seek(0, os.SEEK_END)
            file.seek(max(0, file.tell() - LOG_TAIL_BYTES))
            return file.read().decode(errors="replace").strip()
    except OSError:
        return ""


def lower_priority(pid: int) -> None:
    """Nice 10 for every thread of the process group that `pid` leads; nothing when it is gone or not allowed."""
    try:
        os.setpriority(os.PRIO_PGRP, pid, 10)
    except OSError:
        pass


def own_pids() -> frozenset[int]:
    """This process and its children. Runtimes are not among them: they are children of their zygote."""
    return frozenset({os.getpid(), *(child.pid for child in psutil.Process().children())})


def mapping_count(pid: int) -> int:
    """Memory mappings of a process, 0 when it is gone."""
    try:
        with open(f"/proc/{pid}/maps", "rb") as file:
            return file.read().count(b"\n")
    except OSError:
        return 0


def max_map_count() -> int:
    """The kernel's limit of mappings per process."""
    try:
        return int(Path("/proc/sys/vm/max_map_count").read_text())
    except (OSError, ValueError):
        return 65530
