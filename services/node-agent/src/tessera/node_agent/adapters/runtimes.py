"""Runtimes as processes: zygotes that fork them, their control sockets, and adoption of what lives from before."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import sys
from collections.abc import Callable, Collection, Iterable
from pathlib import Path
from typing import Any

from tessera.clock import Clock
from tessera.domain.errors import FailedPrecondition, TesseraError, Unavailable
from tessera.domain.ids import Digest, Generation, InstanceId, RuntimeId, TrustDomain, VariantKey
from tessera.domain.instance import Stage, StageTime
from tessera.domain.records import LatencyRow
from tessera.node_agent.adapters.control import ControlClient
from tessera.node_agent.adapters.processes import Watched, kill_listener, log_tail, lower_priority, mapping_count, spawn_detached
from tessera.node_agent.core.fsck import Declaration
from tessera.node_agent.ports import HeldInstance, Hello, InstanceActivity, LoadReport, Runtime, RuntimeActivity
from tessera.runtime.control import Message, generation_text
from tessera.telemetry import get_logger

CONNECT_S = 2.0
ADOPT_S = 5.0
CALL_S = 10.0
SOCKET_POLL_S = 0.002
END_MARGIN_S = 5.0

_log = get_logger(__name__)

ENVIRONMENTS = {"ort": {"GLIBC_TUNABLES": "glibc.malloc.tcache_count=2000"}}
"""By flavour. A session is ten thousands of small pieces of heap, freed by the thread that will open the next one: with a cache of its own
that holds as many the thread opens it a sixth faster (the C library's default is 7 of each size). Read when a process starts, not later.
Not under torch, whose threads would keep tens of MiB that way."""


def hello_of(answer: Message) -> Hello:
    """A `hello` answer as a value. A zygote has no runtime id, holds and instances."""
    instances = tuple(
        HeldInstance(
            InstanceId(item["instance_id"]),
            Generation(int(item["generation"], 16)),
            Digest(item["artifact"]) if item.get("artifact") else None,
            item["variant"],
        )
        for item in answer.get("instances", ())
    )
    holds = frozenset(Digest(digest) for digest in answer.get("holds", ()))
    return Hello(
        RuntimeId(answer.get("runtime_id") or ""), int(answer["pid"]), answer["flavour"], int(answer.get("threads", 0)), holds, instances
    )


def activity_of(answer: Message) -> RuntimeActivity:
    """A `status` answer as a value."""
    instances = tuple(
        InstanceActivity(
            InstanceId(item["instance_id"]),
            int(item["queue"]),
            int(item["executing"]),
            int(item["served"]),
            float(item["idle_s"]),
            float(item["run_p50_ms"]),
            float(item["run_p99_ms"]),
            bool(item["parked"]),
        )
        for item in answer["instances"]
    )
    private, shared, proportional = (int(answer[name]) for name in ("private_bytes", "shared_bytes", "proportional_bytes"))
    return RuntimeActivity(instances, private, shared, proportional, float(answer["cpu_s"]))


class ProcessRuntime:
    """Implements `Runtime` over a control socket. The process is watched by pidfd; a lost connection alone is made anew."""

    def __init__(
        self, folder: Path, hello: Hello, client: ControlClient, batch_delay_us: int, clock: Clock, ended: Callable[[], None]
    ) -> None:
        self._folder = folder
        self._hello = hello
        self._client = client
        self._batch_delay_us = batch_delay_us
        self._clock = clock
        self._watched = Watched(hello.pid, ended)

    @property
    def hello(self) -> Hello:
        return self._hello

    @property
    def alive(self) -> bool:
        return self._watched.alive

    async def _call(self, op: str, timeout_s: float = CALL_S, **fields: Any) -> Message:
        if not self.alive:
            raise Unavailable(f"runtime {self._hello.runtime_id}: its process {self._hello.pid} has ended")
        if self._client.closed:
            self._client = await ControlClient.connect(self._folder / "control.sock", f"runtime {self._hello.runtime_id}", CONNECT_S)
        return await self._client.call(op, timeout_s, **fields)

    async def load(
        self, instance_id: InstanceId, generation: Generation, variant: VariantKey, artifact: Digest | None, verify: bool, timeout_s: float
    ) -> LoadReport:
        answer = await self._call(
            "load",
            timeout_s,
            instance_id=instance_id,
            generation=generation_text(generation),
            variant=str(variant),
            artifact=artifact or "",
            max_delay_us=self._batch_delay_us,
            verify=verify,
        )
        stages = tuple(StageTime(stage, float(answer["stages"].get(stage.value, 0.0))) for stage in (Stage.MAP, Stage.LOAD))
        return LoadReport(stages, int(answer["mapped_bytes"]), int(answer["private_bytes"]))

    async def unload(self, instance_id: InstanceId, drain_ms: int) -> frozenset[Digest]:
        answer = await self._call("unload", CALL_S + drain_ms / 1e3, instance_id=instance_id, drain_ms=drain_ms)
        return frozenset(Digest(digest) for digest in answer.get("released", ()))

    async def declare(self) -> Declaration:
        answer = await self._call("hello")
        return Declaration(frozenset(map(Digest, answer["holds"])), frozenset(map(Digest, answer["mapped"])))

    async def trim(self, digests: Collection[Digest] | None = None) -> None:
        await self._call("trim", digests=None if digests is None else sorted(digests))

    async def measure(self, instance_id: InstanceId, batch: int, seconds: float, min_repeats: int) -> LatencyRow:
        answer = await self._call(
            "measure", 60.0 + 10 * seconds, instance_id=instance_id, batch=batch, seconds=seconds, min_repeats=min_repeats
        )
        return LatencyRow(
            batch,
            self._hello.threads,
            int(answer["repeats"]),
            float(answer["p50_ms"]),
            float(answer["p99_ms"]),
            float(answer["mean_ms"]),
            int(answer["peak_private_bytes"]),
        )

    async def activity(self, window_s: float, memory_age_s: float) -> RuntimeActivity:
        return activity_of(await self._call("status", window_s=window_s, memory_age_s=memory_age_s))

    def mappings(self) -> int:
        return mapping_count(self._hello.pid) if self.alive else 0

    def slow_down(self) -> None:
        lower_priority(self._hello.pid)

    async def end(self, drain_ms: int) -> None:
        try:
            await self._call("shutdown", CALL_S + drain_ms / 1e3, drain_ms=drain_ms)
        except TesseraError:
            self.kill()
        if not await self._watched.wait(drain_ms / 1e3 + END_MARGIN_S):
            self.kill()
            await self._watched.wait(END_MARGIN_S)
        self._client.close()
        shutil.rmtree(self._folder, ignore_errors=True)

    def kill(self) -> None:
        self._watched.send(signal.SIGKILL)

    def leave(self) -> None:
        self._watched.release()
        self._client.close()


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
        self._sharing = sharing
        self._orphan_s = orphan_s
        self._zygote_start_s = zygote_start_s
        self._idle_after_s = idle_after_s
        self._clock = clock
        self._zygotes: dict[str, _Zygote] = {}
        self._locks = {flavour: asyncio.Lock() for flavour in self._flavours}
        self._live: dict[RuntimeId, ProcessRuntime] = {}
        self._lost: Callable[[RuntimeId], None] = lambda runtime_id: None

    def on_lost(self, callback: Callable[[RuntimeId], None]) -> None:
        self._lost = callback

    async def adopt(self) -> tuple[Runtime, ...]:
        adopted: list[Runtime] = []
        for folder in sorted(self._folder.iterdir()):
            if not folder.is_dir() or (not (folder / "info.json").exists() and not (folder / "control.sock").exists()):
                continue
            try:
                runtime = await self._reach(folder, ADOPT_S)
            except FailedPrecondition:
                raise
            except (TesseraError, KeyError, ValueError) as error:
                # What it holds is not known, and nothing may be reclaimed before it is: one that lives and does not say so ends here.
                killed = await kill_listener(folder / "control.sock", END_MARGIN_S)
                _log.info("removing what a dead runtime left", folder=folder.name, reason=str(error), killed=killed)
                shutil.rmtree(folder, ignore_errors=True)
                continue
            adopted.append(runtime)
        for flavour in self._flavours:
            zygote = await self._adopt_zygote(flavour)
            if zygote is not None:
                self._zygotes[flavour] = zygote
        return tuple(adopted)

    async def prepare(self, flavours: Iterable[str]) -> None:
        async with asyncio.TaskGroup() as group:
            for flavour in set(flavours):
                group.create_task(self._zygote(flavour))

    async def fork(self, flavour: str, runtime_id: RuntimeId, threads: int) -> Runtime:
        for last in (False, True):
            zygote = await self._zygote(flavour)
            try:
                pid = await self._fork(zygote, runtime_id, threads)
                break
            except Unavailable:
                # Died under our hands: once more with a new one. Where it only lost the connection, its child may have come up.
                if last or (self._folder / runtime_id).exists():
                    raise
        # What it would say to `hello` is known, and the way there and back is a twentieth of such a start.
        hello = Hello(runtime_id, pid, flavour, threads, frozenset(), ())
        client = await self._connect(self._folder / runtime_id / "control.sock", f"runtime {runtime_id}", CALL_S)
        return self._take_in(hello, client)

    async def _fork(self, zygote: _Zygote, runtime_id: RuntimeId, threads: int) -> int:
        answer = await zygote.client.call(
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
        return int(answer["pid"])

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

    def _check_user(self, client: ControlClient, name: str) -> None:
        """Who it is the kernel says: a socket's folder is its domain's to write, and what lies there may be anything.

        Raises:
            Unavailable: whoever answers is not of the user that it should be.
        """
        wanted = os.geteuid() if self._user is None else self._user
        if client.peer_user != wanted:
            client.close()
            raise Unavailable(f"{name} belongs to user {client.peer_user}, not to {wanted}")

    def _socket(self, flavour: str) -> Path:
        return self._folder / f"zygote-{flavour}.sock"

    async def _reach(self, folder: Path, timeout_s: float) -> ProcessRuntime:
        """Connects to the runtime of a folder; waits while its socket is not there yet.

        Raises:
            Unavailable: nobody answers within `timeout_s`.
            FailedPrecondition: it belongs to another trust domain.
        """
        name = f"runtime {folder.name}"
        client = await self._connect(folder / "control.sock", name, timeout_s)
        try:
            self._check_user(client, name)
            answer = await client.call("hello", timeout_s)
            if answer.get("trust_domain") != self._trust_domain:
                raise FailedPrecondition(
                    f"{name} in {self._folder} is of trust domain {answer.get('trust_domain')!r}, the folder of {self._trust_domain!r}"
                )
            hello = hello_of(answer)
            if hello.runtime_id != folder.name:
                raise Unavailable(f"{name} says that it is {hello.runtime_id!r}")
            return self._take_in(hello, client)
        except BaseException:
            client.close()
            raise

    def _take_in(self, hello: Hello, client: ControlClient) -> ProcessRuntime:
        """Raises: Unavailable: its process has ended."""
        runtime_id = hello.runtime_id
        try:
            runtime = ProcessRuntime(
                self._folder / runtime_id, hello, client, self._batch_delay_us, self._clock, lambda: self._ended(runtime_id)
            )
        except ProcessLookupError as error:
            client.close()
            raise Unavailable(f"runtime {runtime_id}: its process has ended") from error
        self._live[runtime_id] = runtime
        return runtime

    async def _connect(self, socket: Path, name: str, timeout_s: float, watched: Watched | None = None) -> ControlClient:
        deadline_s = self._clock.monotonic_s() + timeout_s
        while True:
            try:
                return await ControlClient.connect(socket, name, timeout_s)
            except Unavailable as error:
                waits = isinstance(error.__cause__, FileNotFoundError) or watched is not None
                if not waits or self._clock.monotonic_s() >= deadline_s or (watched is not None and not watched.alive):
                    raise
            await self._clock.sleep(SOCKET_POLL_S if watched is None else 10 * SOCKET_POLL_S)

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
        try:
            client = await ControlClient.connect(socket, f"zygote {flavour}", CONNECT_S)
            self._check_user(client, f"zygote {flavour}")
            hello = hello_of(await client.call("hello", CALL_S))
            return _Zygote(client, Watched(hello.pid))
        except (TesseraError, ProcessLookupError) as error:
            _log.info("removing a dead zygote's socket", flavour=flavour, reason=str(error))
            socket.unlink(missing_ok=True)
            return None

    async def _start_zygote(self, flavour: str) -> _Zygote:
        socket, log = self._socket(flavour), self._logs / f"zygote-{flavour}.log"
        command = [sys.executable, "-m", "tessera.runtime.zygote", "--flavour", flavour, "--socket", str(socket)]
        command += ["--run-folder", str(self._folder), "--store", str(self._store)]
        environment = {**os.environ, "OPENBLAS_NUM_THREADS": "1", **ENVIRONMENTS.get(flavour, {})}
        if self._user is not None:
            command += ["--user", str(self._user)]
            environment["HOME"] = str(self._folder)
        watched = Watched(spawn_detached(command, log, environment))
        try:
            client = await self._connect(socket, f"zygote {flavour}", self._zygote_start_s, watched)
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
        return _Zygote(client, watched)

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
