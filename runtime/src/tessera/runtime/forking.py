"""What a zygote does: one selector loop that forks runtimes and reaps them.

Plain selectors, no event loop and no second thread: what a fork copies must be at rest. Runtimes outlive their zygote, and a zygote that
nobody is connected to ends.
"""

from __future__ import annotations

import contextlib
import logging
import os
import selectors
import signal
import socket
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import NoReturn

from tessera.clock import Clock
from tessera.domain.errors import AlreadyExists, Internal, InvalidInput, TesseraError, Unsupported
from tessera.runtime import backends, control, process
from tessera.runtime.control import ControlDecoder, Message
from tessera.runtime.manager import RuntimeConfig

_log = logging.getLogger(__name__)

MAX_SOCKET_PATH_BYTES = 107
_LONGEST_SOCKET = "control.sock"
_READ_BYTES = 64 * 1024
_LONGEST_WAIT_S = 86400.0
"""The kernel counts milliseconds in 31 bits."""


@dataclass(frozen=True, slots=True)
class ZygoteConfig:
    """`threads`: intra-op threads of a runtime whose `fork` does not say; `workers`: batches of different instances at a time; `orphan_s`:
    how long the zygote lives without an agent."""

    flavour: str
    socket: Path
    run_folder: Path
    store: Path
    threads: int = 1
    workers: int = 1
    orphan_s: float = 600.0


@dataclass(eq=False)
class _Client:
    connection: socket.socket
    decoder: ControlDecoder = field(default_factory=ControlDecoder)


@dataclass(eq=False)
class _Child:
    """A forked runtime. `client`: who waits for it to say that it is ready, until it has."""

    name: str
    pid: int
    pipe: int
    client: _Client | None
    request_id: object
    started_s: float


class Zygote:
    """One selector loop. A request that waits for a child is answered when the child's pipe speaks; others go on meanwhile."""

    def __init__(self, config: ZygoteConfig, clock: Clock) -> None:
        self._config = config
        self._clock = clock
        self._selector = selectors.DefaultSelector()
        self._clients: set[_Client] = set()
        self._runtimes: dict[int, _Child] = {}
        self._stop = False
        self._alone_since_s = clock.monotonic_s()
        self._operations: dict[str, Callable[[Message, _Client], Message | None]] = {
            "hello": self._hello,
            "fork": self._fork,
            "shutdown": self._shutdown,
        }

    def run(self) -> None:
        """Serves until `shutdown`, SIGTERM, SIGINT, or until nobody was connected for `orphan_s`. Children stay."""
        wake_read, wake_write = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        signal.set_wakeup_fd(wake_write, warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: self._end())
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        self._config.socket.unlink(missing_ok=True)
        listener.bind(str(self._config.socket))
        mine = self._config.socket.stat()
        listener.listen(64)
        listener.setblocking(False)
        self._selector.register(listener, selectors.EVENT_READ, self._accept)
        self._selector.register(wake_read, selectors.EVENT_READ, self._woken)
        try:
            while not self._stop:
                patience_s = self._patience_s()
                events = self._selector.select(patience_s)
                for key, _ in events:
                    key.data(key.fileobj)
                if not events and patience_s == 0.0:  # looked once more: whoever came at the last moment is let in
                    _log.warning("nobody was connected for %s s: ending", self._config.orphan_s)
                    self._end()
        finally:
            with contextlib.suppress(OSError):
                if os.path.samestat(mine, self._config.socket.stat()):  # another one may have taken our place
                    self._config.socket.unlink()
            listener.close()  # not before: who is turned away may start another one, whose socket is none of ours
            for client in list(self._clients):
                self._drop(client)
            self._selector.close()

    def _patience_s(self) -> float | None:
        """How long it waits for anything at all; None: for ever, somebody is connected."""
        if self._clients:
            return None
        return min(max(0.0, self._alone_since_s + self._config.orphan_s - self._clock.monotonic_s()), _LONGEST_WAIT_S)

    def _end(self) -> None:
        self._stop = True

    def _accept(self, listener: socket.socket) -> None:
        connection, _ = listener.accept()
        connection.settimeout(5.0)  # for sending; an agent that does not read must not hold the zygote up
        client = _Client(connection)
        self._clients.add(client)
        self._selector.register(connection, selectors.EVENT_READ, lambda _: self._read(client))

    def _read(self, client: _Client) -> None:
        try:
            data = client.connection.recv(_READ_BYTES)
            if not data:
                self._drop(client)
                return
            for message in client.decoder.feed(data):
                self._answer(message, client)
        except TesseraError as error:
            self._send(client, control.refusal(None, error))
            self._drop(client)
        except OSError:
            self._drop(client)

    def _answer(self, message: Message, client: _Client) -> None:
        request_id = message.get("id")
        try:
            operation = self._operations.get(str(message.get("op")))
            if operation is None:
                raise Unsupported(f"op {message.get('op')!r}: a zygote knows {', '.join(self._operations)}")
            answer = operation(message, client)
        except TesseraError as error:
            self._send(client, control.refusal(request_id, error))
            return
        except OSError as error:
            self._send(client, control.refusal(request_id, Internal(f"{type(error).__name__}: {error}")))
            return
        if answer is not None:
            self._send(client, control.reply(request_id, answer))

    def _send(self, client: _Client | None, data: bytes) -> None:
        if client is None or client not in self._clients:
            return
        try:
            client.connection.sendall(data)
        except OSError:
            self._drop(client)

    def _drop(self, client: _Client) -> None:
        if client in self._clients:
            self._clients.discard(client)
            self._alone_since_s = self._clock.monotonic_s()
            self._selector.unregister(client.connection)
            client.connection.close()

    def _hello(self, message: Message, client: _Client) -> Message:
        return {
            "runtime_id": "",
            "pid": os.getpid(),
            "flavour": self._config.flavour,
            "threads": self._config.threads,
            "backends": backends.names(self._config.flavour),
            "holds": [],
            "instances": [],
            "runtimes": sorted(child.name for child in self._runtimes.values()),
        }

    def _shutdown(self, message: Message, client: _Client) -> Message:
        self._end()
        return {}

    def _fork(self, message: Message, client: _Client) -> None:
        runtime = self._runtime_config(message)
        started = self._clock.monotonic_s()
        read_end, write_end = os.pipe2(os.O_CLOEXEC)
        sys.stdout.flush()
        sys.stderr.flush()
        try:
            pid = os.fork()
        except OSError:
            os.close(read_end)
            os.close(write_end)
            raise
        if pid == 0:
            os.close(read_end)
            self._become_runtime(runtime, write_end)
        os.close(write_end)
        with contextlib.suppress(OSError):  # the child tries too and says what is wrong
            # On a disk this takes a millisecond, which the child has other work for.
            (runtime.run_folder / runtime.runtime_id).mkdir(mode=0o700, exist_ok=True)
        child = self._runtimes[pid] = _Child(runtime.runtime_id, pid, read_end, client, message.get("id"), started)
        self._selector.register(read_end, selectors.EVENT_READ, lambda _: self._ready(child))

    def _runtime_config(self, message: Message) -> RuntimeConfig:
        runtime_id = control.text_field(message, "runtime_id")
        if not runtime_id.replace("-", "").replace("_", "").isalnum():
            raise InvalidInput("runtime_id", runtime_id[:80], "must be letters, digits, - and _")
        path = self._config.run_folder / runtime_id / _LONGEST_SOCKET
        if len(os.fsencode(path)) > MAX_SOCKET_PATH_BYTES:
            raise InvalidInput(
                "run folder", str(self._config.run_folder), f"socket paths end at {MAX_SOCKET_PATH_BYTES} bytes: {path} is longer"
            )
        if path.parent.exists() or any(child.name == runtime_id for child in self._runtimes.values()):
            raise AlreadyExists(f"runtime {runtime_id} is there already")
        return RuntimeConfig(
            runtime_id,
            self._config.flavour,
            control.text_field(message, "trust_domain"),
            self._config.store,
            self._config.run_folder,
            control.whole_field(message, "threads", self._config.threads, minimum=1),
            control.whole_field(message, "workers", self._config.workers, minimum=1),
            message.get("private", False) is True,
            control.number_field(message, "seconds_orphan", 600.0),
            control.number_field(message, "idle_after_s", 0.0),
        )

    def _become_runtime(self, runtime: RuntimeConfig, write_end: int) -> NoReturn:
        """In the child: lets go of everything that is the zygote's, then serves."""
        code = 1
        try:
            signal.set_wakeup_fd(-1)
            for number in (signal.SIGCHLD, signal.SIGTERM, signal.SIGINT):
                signal.signal(number, signal.SIG_DFL)
            os.setsid()
            signal.signal(signal.SIGINT, signal.SIG_IGN)
            for key in list(self._selector.get_map().values()):
                os.close(key.fd)
            self._selector.close()

            def ready() -> None:
                os.write(write_end, b"1")
                os.close(write_end)

            process.run(runtime, ready)
            code = 0
        except BaseException:
            _log.exception("runtime %s failed", runtime.runtime_id)
        finally:
            logging.shutdown()
            os._exit(code)  # never the zygote's own way out: its finalizers are not ours

    def _ready(self, child: _Child) -> None:
        """The runtime listens, or its end of the pipe closed because it failed; the reaper says the latter."""
        if child.pipe < 0:
            return  # reaped since its pipe spoke
        said = os.read(child.pipe, 16)
        self._close_pipe(child)
        if said:
            fork_ms = (self._clock.monotonic_s() - child.started_s) * 1e3
            self._send(child.client, control.reply(child.request_id, {"pid": child.pid, "fork_ms": fork_ms}))
            child.client = None

    def _close_pipe(self, child: _Child) -> None:
        if child.pipe >= 0:
            self._selector.unregister(child.pipe)
            os.close(child.pipe)
            child.pipe = -1

    def _woken(self, wake: int) -> None:
        """A signal came: reaps whoever ended."""
        try:
            os.read(wake, 4096)
        except BlockingIOError:
            pass
        for pid in list(self._runtimes):
            try:
                found, status = os.waitpid(pid, os.WNOHANG)
            except ChildProcessError:
                found, status = pid, 0
            if found:
                self._ended(pid, os.waitstatus_to_exitcode(status))

    def _ended(self, pid: int, code: int) -> None:
        child = self._runtimes.pop(pid)
        self._close_pipe(child)
        if child.client is not None:  # still waiting to hear that it serves
            reason = Internal(f"runtime {child.name} ended with {code} before it served")
            self._send(child.client, control.refusal(child.request_id, reason))
        _log.log(logging.INFO if code == 0 else logging.WARNING, "runtime %s (pid %d) ended with %d", child.name, pid, code)
        event = control.encode({"event": "exit", "runtime_id": child.name, "pid": pid, "code": code})
        for client in list(self._clients):
            self._send(client, event)
