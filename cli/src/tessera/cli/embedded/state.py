"""What runs: `platform.json` in the state folder, written by the supervisor alone, and the lock that makes it the only one."""

from __future__ import annotations

import fcntl
import json
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path

import psutil

from tessera.cli.embedded.layout import Layout
from tessera.domain.errors import AlreadyExists, FailedPrecondition

FILE = "platform.json"
LOCK = "lock"


@dataclass
class ProcessState:
    """A process that was started: with its start time, so that a reused pid is never taken for it."""

    name: str
    pid: int
    started_unix_s: float
    restarts: int = 0

    def alive(self) -> psutil.Process | None:
        try:
            process = psutil.Process(self.pid)
            same = abs(process.create_time() - self.started_unix_s) < 2.0
            return process if same and process.status() != psutil.STATUS_ZOMBIE else None
        except psutil.NoSuchProcess:
            return None


@dataclass
class PlatformState:
    status: str
    endpoint: str
    admin_endpoint: str
    metrics_address: str
    token_file: str
    run_folder: str
    port_base: int
    nodes: int
    supervisor: ProcessState
    processes: list[ProcessState] = field(default_factory=list)
    detail: str = ""

    def save(self, state: Path) -> None:
        temporary = state / f".{FILE}.{os.getpid()}"
        temporary.write_text(json.dumps(asdict(self), indent=1))
        os.replace(temporary, state / FILE)


def load(state: Path) -> PlatformState | None:
    """The recorded platform of a state folder, or None."""
    try:
        data = json.loads((state / FILE).read_text())
    except FileNotFoundError:
        return None
    except json.JSONDecodeError as error:
        raise FailedPrecondition(f"{state / FILE} is not readable: {error}") from error
    data["supervisor"] = ProcessState(**data["supervisor"])
    data["processes"] = [ProcessState(**process) for process in data["processes"]]
    return PlatformState(**data)


def running(state: Path) -> PlatformState | None:
    """The platform of a state folder when its supervisor lives."""
    found = load(state)
    return found if found is not None and found.supervisor.alive() else None


def prepare(layout: Layout) -> None:
    """Makes the folders (0700) and the admin token (0600).

    Raises:
        FailedPrecondition: when the state folder cannot be written.
    """
    try:
        for folder in (layout.state, layout.logs, layout.state / "config", layout.state / "etcd", layout.run):
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        probe = layout.state / f".probe.{os.getpid()}"
        probe.touch()
        probe.unlink()
        if not layout.token_file.exists():
            handle = os.open(layout.token_file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            with os.fdopen(handle, "w") as file:
                file.write(secrets.token_urlsafe(32))
    except OSError as error:
        raise FailedPrecondition(f"state folder {layout.state} cannot be written: {error.strerror} ({error.filename})") from error


@contextmanager
def locked(layout: Layout) -> Iterator[None]:
    """Holds the state folder.

    Raises:
        AlreadyExists: when another supervisor holds it.
    """
    with (layout.state / LOCK).open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise AlreadyExists(f"another platform runs on {layout.state}; see 'tessera status', stop it with 'tessera down'") from None
        yield
