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

from tessera.cli.embedded.layout import RUN_PREFIX, Layout
from tessera.domain.errors import AlreadyExists, FailedPrecondition
from tessera.tensorstore.mount import check_owner

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
    """`leases`: the keys that still hung on a lease when etcd was stopped; None when nobody looked."""

    status: str
    endpoint: str
    admin_endpoint: str
    metrics_address: str
    token_file: str
    run_folder: str
    port_base: int
    nodes: int
    store_bytes: int
    sharing: bool
    otlp_endpoint: str
    domains: dict[str, dict[str, str]]
    """Trust domain -> `endpoint` and `admin_endpoint` of its gateway; the first one's stand above, too."""
    supervisor: ProcessState
    processes: list[ProcessState] = field(default_factory=list)
    more_nodes: int = 0
    detail: str = ""
    leases: list[str] | None = None

    @classmethod
    def of(cls, layout: Layout, status: str, supervisor: ProcessState) -> PlatformState:
        return cls(
            status=status,
            endpoint=layout.endpoint,
            admin_endpoint=layout.admin_endpoint,
            metrics_address=layout.metrics_address,
            token_file=str(layout.token_file),
            run_folder=str(layout.run),
            port_base=layout.port_base,
            nodes=layout.nodes,
            store_bytes=layout.store_bytes,
            sharing=layout.sharing,
            otlp_endpoint=layout.otlp_endpoint,
            domains={name: {"endpoint": door[0], "admin_endpoint": door[2]} for name, door in layout.gateways().items()},
            supervisor=supervisor,
            more_nodes=layout.more_nodes,
        )

    def layout(self, state: Path) -> Layout:
        """The layout that it was started with, wherever this process's environment would put it."""
        run, domains = Path(self.run_folder), tuple(self.domains)
        return Layout(state, self.port_base, self.nodes, self.store_bytes, self.sharing, self.otlp_endpoint, run, domains, self.more_nodes)

    def save(self, state: Path) -> None:
        temporary = state / f".{FILE}.{os.getpid()}"
        temporary.write_text(json.dumps(asdict(self), indent=1))
        os.replace(temporary, state / FILE)


def load(state: Path) -> PlatformState | None:
    """The recorded platform of a state folder, or None.

    Raises:
        FailedPrecondition: the record cannot be read, or names a run folder that no platform makes.
    """
    file = state / FILE
    try:
        data = json.loads(file.read_text())
        data["supervisor"] = ProcessState(**data["supervisor"])
        data["processes"] = [ProcessState(**process) for process in data["processes"]]
        found = PlatformState(**data)
    except FileNotFoundError:
        return None
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise FailedPrecondition(f"{file} is not readable ({error}); when no platform runs there, remove it") from error
    if not Path(found.run_folder).name.startswith(RUN_PREFIX):  # 'tessera down' removes that folder
        raise FailedPrecondition(f"{file}: run_folder {found.run_folder!r} is not a folder {RUN_PREFIX}*")
    return found


def known_layout(state: Path) -> Layout:
    """The layout of the platform that is recorded in a state folder, else that of one with all defaults."""
    recorded = load(state) if state.is_dir() else None
    return recorded.layout(state) if recorded is not None else Layout(state)


def running(state: Path) -> PlatformState | None:
    """The platform of a state folder when its supervisor lives."""
    found = load(state)
    return found if found is not None and found.supervisor.alive() else None


def prepare(layout: Layout) -> None:
    """Makes the folders (0700) and the admin token (0600).

    Raises:
        FailedPrecondition: when the state folder cannot be written, or the run folder is a link or another user's.
    """
    try:
        for folder in (layout.state, layout.logs, layout.config, layout.etcd_data):
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
    _make_run_folder(layout.run)  # last: a refusal leaves nothing outside the state folder


def _make_run_folder(run: Path) -> None:
    """Its name can be guessed and its place is open to everyone: whoever made it first would own our sockets."""
    try:
        run.mkdir(parents=True, exist_ok=True, mode=0o700)
    except FileExistsError:
        pass  # a link or a file: the check says so
    except OSError as error:
        raise FailedPrecondition(f"run folder {run} cannot be made: {error.strerror} ({error.filename})") from error
    check_owner(run, "the run folder")
    if not run.is_dir():
        raise FailedPrecondition(f"run folder {run} is not a folder")
    # Only root's runtimes are other users', who pass through to what is theirs.
    run.chmod(0o700 if os.geteuid() else 0o711)


@contextmanager
def locked(layout: Layout) -> Iterator[None]:
    """Holds the state folder; and the run folder, which keeps systemd-tmpfiles from clearing what is old in it.

    Raises:
        AlreadyExists: when another supervisor holds it.
    """
    with (layout.state / LOCK).open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise AlreadyExists(f"another platform runs on {layout.state}; see 'tessera status', stop it with 'tessera down'") from None
        run = os.open(layout.run, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            fcntl.flock(run, fcntl.LOCK_SH)
            yield
        finally:
            os.close(run)
