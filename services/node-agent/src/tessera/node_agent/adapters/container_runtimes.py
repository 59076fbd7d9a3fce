"""Runtimes as containers: one each, made by the container engine, reached by a socket in a folder of its own, watched by pidfd.

The engine is needed to make and to remove them, never while they serve. Whatever carries our labels and is none of ours any more is
removed when it is seen.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from tessera.clock import Clock
from tessera.domain.errors import AlreadyExists, FailedPrecondition, TesseraError, Unavailable
from tessera.domain.ids import RuntimeId, TrustDomain
from tessera.domain.instance import StartPath
from tessera.node_agent.adapters.control import ControlClient
from tessera.node_agent.adapters.controlled import (
    ADOPT_S,
    CONNECT_S,
    END_MARGIN_S,
    ENVIRONMENTS,
    ControlledRuntime,
    UnseenProcess,
    connect,
    introduce,
    remove_stray,
)
from tessera.node_agent.adapters.engine import Engine
from tessera.node_agent.adapters.processes import Watched, kill_listener
from tessera.node_agent.adapters.surroundings import admit, own_mounts, store_identity
from tessera.node_agent.core.containers import (
    ContainerSpec,
    ContainerState,
    Limits,
    Mount,
    Owner,
    adoptable,
    engine_path,
    strays,
    words_of_end,
)
from tessera.node_agent.core.runtimes import adoption_patience_s
from tessera.node_agent.ports import Hello, Runtime
from tessera.program import Tasks, to_the_end
from tessera.telemetry import get_logger

RUN_TARGET = "/run/tessera"
STORE_TARGET = "/store"
POLL_S = 0.01
LOOK_S = 0.25
CAUSE_S = 0.9
BURIAL_S = 10.0

_log = get_logger(__name__)


@dataclass(frozen=True, slots=True)
class ContainerSettings:
    """Of every container of one trust domain. `images`: flavour to image; `user`: UID and GID; `_s`: seconds."""

    images: Mapping[str, str]
    user: tuple[int, int]
    limits: Limits
    gpus: bool
    workers: int
    batch_delay_us: int
    load_timeout_s: float
    sharing: bool
    orphan_s: float
    start_s: float
    idle_after_s: float


@dataclass(frozen=True, slots=True)
class _Place:
    """Whose containers they are, and the mounts of the agent's own container (None: it runs in none)."""

    owner: Owner
    mounts: tuple[Mount, ...] | None


class ContainerRuntime(ControlledRuntime):
    """`hello.pid` is its process as the host sees it: the one that holds, inside the container that the engine knows."""

    def __init__(
        self, folder: Path, hello: Hello, client: ControlClient, watched: Watched, batch_delay_us: int, load_timeout_s: float,
        container_id: str, kill_by_engine: Callable[[str], None],
    ) -> None:  # fmt: skip
        super().__init__(folder, hello, client, watched, batch_delay_us, load_timeout_s)
        self.container_id = container_id
        self._kill_by_engine = kill_by_engine
        self._cause: asyncio.Future[str] = asyncio.get_running_loop().create_future()

    def kill(self) -> None:
        try:
            self._watched.send(signal.SIGKILL)
        except PermissionError:  # an agent that may not signal another user's process
            self._kill_by_engine(self.container_id)

    def ended_by(self, cause: str) -> None:
        if not self._cause.done():
            self._cause.set_result(cause)

    async def cause(self) -> str:
        try:
            async with asyncio.timeout(CAUSE_S):
                return await asyncio.shield(self._cause)
        except TimeoutError:
            return ""


class ContainerRuntimes:
    """Implements `Runtimes` for one trust domain. Each runtime's folder lies below `run_folder`, which belongs to this object alone.

    `served` are all trust domains of the node: containers of others, left by an earlier agent, are strays.
    """

    def __init__(
        self, node_id: str, run_folder: Path, store_root: Path, trust_domain: TrustDomain, served: frozenset[TrustDomain],
        settings: ContainerSettings, engine: Engine, clock: Clock, tasks: Tasks,
    ) -> None:  # fmt: skip
        self._node_id = node_id
        self._run = run_folder
        self._store = store_root
        self._trust_domain = trust_domain
        self._served = served
        self._settings = settings
        self._engine = engine
        self._clock = clock
        self._tasks = tasks
        self._place: _Place | None = None
        self._live: dict[RuntimeId, ContainerRuntime] = {}
        self._making: set[RuntimeId] = set()
        self._burying: dict[RuntimeId, asyncio.Task[None]] = {}
        self._lost: Callable[[RuntimeId], None] = lambda runtime_id: None

    @property
    def start_path(self) -> StartPath:
        return StartPath.CONTAINER

    def on_lost(self, callback: Callable[[RuntimeId], None]) -> None:
        self._lost = callback

    async def adopt(self) -> tuple[Runtime, ...]:
        place = await self._find_place()
        containers = adoptable(place.owner, await self._engine.containers_of(self._node_id))
        found = await to_the_end(self._adopt_runtime(each.runtime_id, each.container_id) for each in containers)  # each as long as a load
        await self._sweep(place)
        for folder in self._run.iterdir():
            if folder.name not in self._live and ((folder / "info.json").exists() or (folder / "control.sock").exists()):
                await self._clear(folder)
        return tuple(each for each in found if each is not None)

    async def _adopt_runtime(self, runtime_id: RuntimeId, container_id: str) -> ContainerRuntime | None:
        """None: it does not answer as it should, and goes with the strays. Raises: UnseenProcess."""
        try:
            return await self._reach(runtime_id, container_id, ADOPT_S)
        except UnseenProcess:
            raise
        except TesseraError as error:
            _log.info("a container's runtime does not answer as it should", runtime_id=runtime_id, reason=str(error))
            return None

    async def prepare(self, flavours: Iterable[str]) -> None:
        place = await self._find_place()
        await self._engine.check({self._settings.images[flavour] for flavour in flavours})
        await self._sweep(place)

    async def create(self, flavour: str, runtime_id: RuntimeId, threads: int) -> Runtime:
        image = self._settings.images.get(flavour)
        if image is None:
            raise FailedPrecondition(
                f"this node has no image for flavour {flavour!r}; runtime_images has {', '.join(self._settings.images)}"
            )
        place = await self._find_place()
        self._make_folder(runtime_id)
        self._making.add(runtime_id)
        try:
            container_id = await self._engine.run(self._spec(place, flavour, image, runtime_id, threads))
            try:
                return await self._first_words(runtime_id, container_id)
            except BaseException as error:
                removal = self._tasks.start(f"remove container of {runtime_id}", self._remove(container_id, runtime_id))
                if isinstance(error, TesseraError):
                    await asyncio.wait({removal})
                raise
        except BaseException:
            shutil.rmtree(self._run / runtime_id, ignore_errors=True)
            raise
        finally:
            self._making.discard(runtime_id)

    async def end(self) -> None:
        await self._let_go()

    async def leave(self) -> None:
        for runtime in self._live.values():
            runtime.leave()
        await self._let_go()

    async def _let_go(self) -> None:
        if self._burying:
            await asyncio.wait(set(self._burying.values()), timeout=BURIAL_S)
        await self._engine.close()

    async def _find_place(self) -> _Place:
        """Raises: FailedPrecondition: no engine answers, it lacks an image, or it cannot have this agent's folders."""
        if self._place is None:
            try:
                await self._engine.check(set(self._settings.images.values()))
                mounts = await own_mounts(self._engine, (self._run, self._store))
            except Unavailable as error:
                raise FailedPrecondition(
                    f"runtimes are to be containers, and {error}; start an engine, or set runtimes: process"
                ) from error
            run = engine_path(str(self._run), mounts)
            owner = Owner(self._node_id, f"{run.kind}:{run.source}", self._trust_domain, store_identity(self._store), self._served)
            admit(self._store, self._settings.user[1])
            self._place = _Place(owner, mounts)
        return self._place

    def _make_folder(self, runtime_id: RuntimeId) -> None:
        folder = self._run / runtime_id
        try:
            folder.mkdir(mode=0o700)
        except FileExistsError as error:
            raise AlreadyExists(f"runtime {runtime_id} is there already") from error
        if self._settings.user != (os.geteuid(), os.getegid()):
            os.chown(folder, *self._settings.user)

    def _spec(self, place: _Place, flavour: str, image: str, runtime_id: RuntimeId, threads: int) -> ContainerSpec:
        settings = self._settings
        command = ["python", "-m", "tessera.runtime.container", "--flavour", flavour, "--runtime-id", runtime_id]
        command += ["--trust-domain", self._trust_domain, "--run-folder", RUN_TARGET, "--store", STORE_TARGET]
        command += ["--threads", str(threads), "--workers", str(settings.workers), "--orphan-s", str(settings.orphan_s)]
        command += ["--idle-after-s", str(settings.idle_after_s)]
        return ContainerSpec(
            f"tessera-{runtime_id}-{os.urandom(3).hex()}",  # one of the same id may still be on its way out
            image,
            (*command, *([] if settings.sharing else ["--private"])),
            "{}:{}".format(*settings.user),
            {"OPENBLAS_NUM_THREADS": "1", **ENVIRONMENTS.get(flavour, {})},
            place.owner.labels(flavour, runtime_id),
            engine_path(str(self._store), place.mounts),
            STORE_TARGET,
            engine_path(str(self._run / runtime_id), place.mounts),
            f"{RUN_TARGET}/{runtime_id}",
            settings.limits,
            settings.gpus,
        )

    async def _first_words(self, runtime_id: RuntimeId, container_id: str) -> ContainerRuntime:
        """Waits until it serves. Raises: FailedPrecondition: it ended instead, or took too long; with the end of its log."""
        deadline_s = self._clock.monotonic_s() + self._settings.start_s
        while True:
            try:
                return await self._reach(runtime_id, container_id, LOOK_S)
            except Unavailable:
                state = await self._engine.state(container_id)
                if state is None or not state.running:
                    raise await self._stillbirth(runtime_id, container_id, words_of_end(state, self._settings.limits)) from None
                if self._clock.monotonic_s() >= deadline_s:
                    raise await self._stillbirth(runtime_id, container_id, f"not within {self._settings.start_s:g} s") from None

    async def _stillbirth(self, runtime_id: RuntimeId, container_id: str, why: str) -> FailedPrecondition:
        tail = await self._engine.log_tail(container_id)
        return FailedPrecondition(f"container of runtime {runtime_id} does not serve: {why}{': ' + tail if tail else ''}")

    async def _reach(self, runtime_id: RuntimeId, container_id: str, timeout_s: float) -> ContainerRuntime:
        """Raises: Unavailable: nobody answers. UnseenProcess. TesseraError: it answers as no runtime of this trust domain does."""
        folder, name = self._run / runtime_id, f"runtime {runtime_id}"
        client = await connect(folder / "control.sock", name, timeout_s, self._clock)
        try:
            hello, watched = await introduce(
                client,
                runtime_id,
                self._trust_domain,
                self._settings.user[0],
                max(timeout_s, CONNECT_S),
                adoption_patience_s(runtime_id, self._settings.load_timeout_s),
                lambda: self._ended(runtime_id),
            )
        except BaseException:
            client.close()
            raise
        settings = self._settings
        runtime = ContainerRuntime(
            folder, hello, client, watched, settings.batch_delay_us, settings.load_timeout_s, container_id, self._kill_by_engine
        )
        self._live[runtime_id] = runtime
        return runtime

    def _kill_by_engine(self, container_id: str) -> None:
        self._tasks.start(f"kill container {container_id[:12]}", self._kill(container_id))

    async def _kill(self, container_id: str) -> None:
        try:
            await self._engine.kill(container_id)
        except TesseraError as error:
            _log.error("a container cannot be killed", container_id=container_id[:12], reason=str(error))

    def _ended(self, runtime_id: RuntimeId) -> None:
        runtime = self._live.pop(runtime_id, None)
        if runtime is not None:
            runtime.leave()
            task = self._tasks.start(f"remove container of {runtime_id}", self._bury(runtime_id, runtime))
            self._burying[runtime_id] = task
        shutil.rmtree(self._run / runtime_id, ignore_errors=True)
        self._lost(runtime_id)

    async def _bury(self, runtime_id: RuntimeId, runtime: ContainerRuntime) -> None:
        """Learns why it ended, then removes what is left. Without an engine both wait for the next sweep."""
        try:
            state = await self._last_state(runtime.container_id)
            runtime.ended_by(words_of_end(state, self._settings.limits))
        except TesseraError as error:
            runtime.ended_by(f"why is not known: {error}")
        await self._remove(runtime.container_id, runtime_id)
        self._burying.pop(runtime_id, None)

    async def _last_state(self, container_id: str) -> ContainerState | None:
        """The engine notices an end a little after the kernel."""
        deadline_s = self._clock.monotonic_s() + END_MARGIN_S
        while True:
            state = await self._engine.state(container_id)
            if state is None or not state.running or self._clock.monotonic_s() >= deadline_s:
                return state
            await self._clock.sleep(POLL_S)

    async def _remove(self, container_id: str, runtime_id: RuntimeId) -> None:
        try:
            await self._engine.remove(container_id)
        except TesseraError as error:
            _log.warning("a container is left for the next sweep", runtime_id=runtime_id, reason=str(error))

    async def _sweep(self, place: _Place) -> None:
        """Removes strays. Raises: Unavailable."""
        containers = await self._engine.containers_of(self._node_id)
        known = {*self._live, *self._making, *self._burying}  # after the look: what was begun meanwhile is known, too
        for found, reason in strays(place.owner, containers, known):
            _log.warning("removing a stray container", container_id=found.container_id[:12], runtime_id=found.runtime_id, reason=reason)
            await self._engine.remove(found.container_id)

    async def _clear(self, folder: Path) -> None:
        """A folder without a container: its runtime is dead, or a process from before containers were made, whose holds are nobody's."""
        killed = await kill_listener(folder / "control.sock", self._settings.user[0], END_MARGIN_S)
        _log.info("removing what a dead runtime left", folder=folder.name, killed=killed)
        remove_stray(folder)
