"""Runtimes as processes: zygotes that fork them, and adoption of what lives from before."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import sys
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from pathlib import Path

from tessera.clock import Clock
from tessera.domain.errors import FailedPrecondition, TesseraError, Unavailable
from tessera.domain.ids import RuntimeId, TrustDomain
from tessera.domain.instance import StartPath
from tessera.node_agent.adapters.control import ControlClient
from tessera.node_agent.adapters.controlled import (
    ADOPT_S,
    CALL_S,
    CONNECT_S,
    END_MARGIN_S,
    ENVIRONMENTS,
    ControlledRuntime,
    UnseenProcess,
    check_user,
    connect,
    introduce,
    remove_stray,
    user_id,
    watch_peer,
)
from tessera.node_agent.adapters.processes import Watched, kill_listener, log_tail, spawn_detached
from tessera.node_agent.core.runtimes import adoption_patience_s
from tessera.node_agent.ports import Hello, Runtime
from tessera.program import to_the_end
from tessera.runtime.control import Message
from tessera.telemetry import get_logger

CAUSE_S = 0.3
"""A zygote tells an exit code within milliseconds; after that it is gone itself."""

_log = get_logger(__name__)


class ProcessRuntime(ControlledRuntime):
    """A child of a zygote, which alone learns how it ended."""

    def __init__(
        self, folder: Path, hello: Hello, client: ControlClient, watched: Watched, batch_delay_us: int, load_timeout_s: float
    ) -> None:
        super().__init__(folder, hello, client, watched, batch_delay_us, load_timeout_s)
        self._exit_code: asyncio.Future[int] = asyncio.get_running_loop().create_future()

    def kill(self) -> None:
        self._watched.send(signal.SIGKILL)

    def exited(self, code: int) -> None:
        """As its zygote tells: negative for a signal."""
        if not self._exit_code.done():
            self._exit_code.set_result(code)

    async def cause(self) -> str:
        try:
            async with asyncio.timeout(CAUSE_S):
                code = await asyncio.shield(self._exit_code)
        except TimeoutError:
            return ""
        if code >= 0:
            return f"exit code {code}"
        return f"killed by signal {-code}{' (out of memory, unless somebody sent it)' if code == -signal.SIGKILL else ''}"


class _Zygote:
    def __init__(self, client: ControlClient, watched: Watched) -> None:
        self.client = client
        self.watched = watched


class ProcessRuntimes:
    """Implements `Runtimes` for one trust domain: a zygote per flavour, its socket and its children's folders in `folder`, which is the
    domain's alone."""

    def __init__(
        self,
        folder: Path,
        store_root: Path,
        logs: Path,
        flavours: Iterable[str],
        trust_domain: TrustDomain,
        user: int | None,
        workers: int,
        batch_delay_us: int,
        load_timeout_s: float,
        sharing: bool,
        orphan_s: float,
        zygote_start_s: float,
        idle_after_s: float,
        clock: Clock,
    ) -> None:
        self._folder = folder
        self._store = store_root
        self._logs = logs
        self._flavours = tuple(flavours)
        self._trust_domain = trust_domain
        self._user = user
        self._workers = workers
        self._batch_delay_us = batch_delay_us
        self._load_timeout_s = load_timeout_s
        self._sharing = sharing
        self._orphan_s = orphan_s
        self._zygote_start_s = zygote_start_s
        self._idle_after_s = idle_after_s
        self._clock = clock
        self._zygotes: dict[str, _Zygote] = {}
        self._locks = {flavour: asyncio.Lock() for flavour in self._flavours}
        self._live: dict[RuntimeId, ProcessRuntime] = {}
        self._known: dict[RuntimeId, ProcessRuntime] = {}  # until its zygote has told its exit code
        self._lost: Callable[[RuntimeId], None] = lambda runtime_id: None

    @property
    def start_path(self) -> StartPath:
        return StartPath.FORK

    def on_lost(self, callback: Callable[[RuntimeId], None]) -> None:
        self._lost = callback

    async def adopt(self) -> tuple[Runtime, ...]:
        folders = [each for each in sorted(self._folder.iterdir()) if (each / "info.json").exists() or (each / "control.sock").exists()]
        found = await to_the_end(map(self._adopt_runtime, folders))  # each may take as long as a load does
        for flavour in self._flavours:
            zygote = await self._adopt_zygote(flavour)
            if zygote is not None:
                self._zygotes[flavour] = zygote
        return tuple(each for each in found if each is not None)

    async def _adopt_runtime(self, folder: Path) -> ProcessRuntime | None:
        """Raises: UnseenProcess."""
        try:
            return await self._reach(folder)
        except UnseenProcess:
            raise
        except TesseraError as error:
            # What it holds is not known, and nothing may be reclaimed before it is: one that lives and does not say so ends here.
            killed = await kill_listener(folder / "control.sock", user_id(self._user), END_MARGIN_S)
            _log.info("removing what a dead runtime left", folder=folder.name, reason=str(error), killed=killed)
            remove_stray(folder)
            return None

    async def prepare(self, flavours: Iterable[str]) -> None:
        async with asyncio.TaskGroup() as group:
            for flavour in set(flavours):
                group.create_task(self._zygote(flavour))

    async def create(self, flavour: str, runtime_id: RuntimeId, threads: int) -> Runtime:
        for last in (False, True):
            zygote = await self._zygote(flavour)
            try:
                await self._fork(zygote, runtime_id, threads)
                break
            except Unavailable:
                # Died under our hands: once more with a new one. Where it only lost the connection, its child may have come up.
                if last or (self._folder / runtime_id).exists():
                    raise
        name = f"runtime {runtime_id}"
        client = await connect(self._folder / runtime_id / "control.sock", name, CALL_S, self._clock)
        try:
            watched = watch_peer(client, name, self._user, lambda: self._ended(runtime_id))
        except BaseException:
            client.close()
            raise
        # What it would say to `hello` is known, and the way there and back is a twentieth of such a start.
        hello = Hello(runtime_id, watched.pid, flavour, threads, frozenset(), ())
        return self._take_in(hello, client, watched)

    async def _fork(self, zygote: _Zygote, runtime_id: RuntimeId, threads: int) -> None:
        """What the zygote answers is not looked at: it may have been taken over, and the kernel says who the new runtime is."""
        await zygote.client.call(
            "fork",
            CALL_S,
            runtime_id=runtime_id,
            trust_domain=self._trust_domain,
            threads=threads,
            workers=self._workers,
            private=not self._sharing,
            seconds_orphan=self._orphan_s,
            idle_after_s=self._idle_after_s,
        )

    async def end(self) -> None:
        async with asyncio.TaskGroup() as group:
            for flavour, zygote in tuple(self._zygotes.items()):
                group.create_task(self._end_zygote(flavour, zygote))

    async def leave(self) -> None:
        for runtime in self._live.values():
            runtime.leave()
        for zygote in self._zygotes.values():
            zygote.watched.release()
            zygote.client.close()

    def _socket(self, flavour: str) -> Path:
        return self._folder / f"zygote-{flavour}.sock"

    async def _reach(self, folder: Path) -> ProcessRuntime:
        """The runtime of a folder; waits while its socket is not there yet.

        Raises:
            Unavailable: nobody answers in time.
            UnseenProcess: its process cannot be seen from here.
            TesseraError: it answers as no runtime of this trust domain does.
        """
        name = f"runtime {folder.name}"
        client = await connect(folder / "control.sock", name, ADOPT_S, self._clock)
        try:
            hello, watched = await introduce(
                client,
                folder.name,
                self._trust_domain,
                self._user,
                ADOPT_S,
                adoption_patience_s(RuntimeId(folder.name), self._load_timeout_s),
                lambda: self._ended(RuntimeId(folder.name)),
            )
        except BaseException:
            client.close()
            raise
        return self._take_in(hello, client, watched)

    def _take_in(self, hello: Hello, client: ControlClient, watched: Watched) -> ProcessRuntime:
        folder = self._folder / hello.runtime_id
        runtime = ProcessRuntime(folder, hello, client, watched, self._batch_delay_us, self._load_timeout_s)
        self._live[hello.runtime_id] = self._known[hello.runtime_id] = runtime
        return runtime

    def _hear(self, event: Message) -> None:
        runtime = self._known.pop(RuntimeId(str(event.get("runtime_id", ""))), None)
        if event.get("event") == "exit" and runtime is not None:
            runtime.exited(int(event["code"]))

    def _ended(self, runtime_id: RuntimeId) -> None:
        runtime = self._live.pop(runtime_id, None)
        if runtime is not None:
            runtime.leave()
        shutil.rmtree(self._folder / runtime_id, ignore_errors=True)
        self._lost(runtime_id)

    async def _zygote(self, flavour: str) -> _Zygote:
        """The live zygote of a flavour: known, adopted, or started now.

        Raises:
            FailedPrecondition: this node has no such flavour, or its zygote does not start.
        """
        lock = self._locks.get(flavour)
        if lock is None:
            raise FailedPrecondition(f"this node has no runtimes of flavour {flavour!r}; it has {', '.join(self._flavours)}")
        async with lock:
            known = self._zygotes.get(flavour)
            if known is not None and known.watched.alive and not known.client.closed:
                return known
            if known is not None:
                known.watched.release()
                known.client.close()
            zygote = await self._adopt_zygote(flavour) or await self._start_zygote(flavour)
            self._zygotes[flavour] = zygote
            return zygote

    async def _adopt_zygote(self, flavour: str) -> _Zygote | None:
        socket = self._socket(flavour)
        if not socket.exists():
            return None
        name = f"zygote {flavour}"
        with ExitStack() as undo:
            try:
                client = await ControlClient.connect(socket, name, CONNECT_S)
                undo.callback(client.close)  # a connection would keep it from ending as an orphan
                watched = watch_peer(client, name, self._user)
                undo.callback(watched.release)
                await client.call("hello", CALL_S)
            except (TesseraError, OSError) as error:
                _log.info("removing a dead zygote's socket", flavour=flavour, reason=str(error))
                socket.unlink(missing_ok=True)
                return None
            undo.pop_all()
        return self._heard(_Zygote(client, watched))

    async def _start_zygote(self, flavour: str) -> _Zygote:
        socket, log = self._socket(flavour), self._logs / f"zygote-{flavour}.log"
        command = [sys.executable, "-m", "tessera.runtime.zygote", "--flavour", flavour, "--socket", str(socket)]
        command += ["--run-folder", str(self._folder), "--store", str(self._store)]
        command += ["--orphan-s", str(self._orphan_s)]
        environment = {**os.environ, "OPENBLAS_NUM_THREADS": "1", **ENVIRONMENTS.get(flavour, {})}
        if self._user is not None:
            command += ["--user", str(self._user)]
            environment["HOME"] = str(self._folder)
        watched = Watched(spawn_detached(command, log, environment))
        try:
            client = await connect(socket, f"zygote {flavour}", self._zygote_start_s, self._clock, watched)
            check_user(client, f"zygote {flavour}", self._user)  # its place may hold a link to the zygote of another trust domain
            await client.call("hello", CALL_S)
        except TesseraError as error:
            watched.send(signal.SIGKILL)
            await watched.wait(END_MARGIN_S)
            tail = log_tail(log)
            raise FailedPrecondition(f"zygote {flavour} did not start: {error}{': ' + tail if tail else ''}") from error
        except BaseException:
            watched.send(signal.SIGKILL)
            raise
        _log.info("zygote started", flavour=flavour, pid=watched.pid)
        return self._heard(_Zygote(client, watched))

    def _heard(self, zygote: _Zygote) -> _Zygote:
        zygote.client.on_event = self._hear
        return zygote

    async def _end_zygote(self, flavour: str, zygote: _Zygote) -> None:
        try:
            await zygote.client.call("shutdown", CALL_S, drain_ms=0)
        except TesseraError:
            zygote.watched.send(signal.SIGTERM)
        if not await zygote.watched.wait(END_MARGIN_S):
            await zygote.watched.end(END_MARGIN_S, signal.SIGKILL)
        zygote.client.close()
        self._socket(flavour).unlink(missing_ok=True)
        del self._zygotes[flavour]
