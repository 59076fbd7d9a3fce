"""Published ways to start a model, each with what it may use: containers (`container`) on one node under a memory budget.

Whoever has the model answers, one request at a time. Else room is made (the model that has been idle for the longest goes) and a start is
made by the system's own rule. What is kept, and when something counts as idle, is the same for all. A system that reuses runtimes reuses
those of models that go to make room, too, as ours does.
"""

from __future__ import annotations

import asyncio
import base64
import json
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.startmodels import StartModel
from tessera.domain.artifact import Blob
from tessera.domain.ids import Digest
from tessera.policy.transform.costs import CostLine, MetaCosts
from tessera.policy.transform.delta import planned
from tessera.policy.transform.group import GroupPlanner
from tessera.policy.transform.structure import Structure, structure_of

COPY_MS_PER_MIB = 0.25
FIRST_SCRATCH_MS = 500.0
"""What loading a model from scratch is taken to cost until the system did it once."""


@dataclass(frozen=True)
class System:
    """`reuses`: an idle runtime, with its libraries. `maps`: weights, which siblings share; models live together in few runtimes.
    `transforms`: an idle model, where that is cheaper than loading from scratch."""

    name: str
    may_use: str
    reuses: bool = False
    maps: bool = False
    transforms: bool = False


SYSTEMS = (
    System("always-fresh", "a new process, its imports, the build, the weights"),
    System("pagurus", "an idle runtime of another model with its libraries; the build, the weights", reuses=True),
    System("tetris", "two runtimes with their libraries, weights mapped and shared, kept for a minute; the build anew", maps=True),
    System("optimus", "an idle model by the group planner's plan, weights copied; else as pagurus", reuses=True, transforms=True),
)
RUNTIMES = 2
"""Of the one that maps: as many as cores."""


@dataclass(frozen=True)
class Known:
    """What a node knows of a model."""

    model: StartModel
    graph: Digest
    blobs: tuple[Blob, ...]
    structure: Structure
    files: frozenset[str] = frozenset()
    """Of its state in a store of tensors."""

    @property
    def size_bytes(self) -> int:
        return sum(blob.size_bytes for blob in self.blobs)

    @classmethod
    def of(cls, model: StartModel, artifact: Any, graph: bytes) -> Known:
        tensors = tuple({ref.digest: Blob(ref.digest, ref.size_bytes) for ref in artifact.large_tensors()}.values())
        files = frozenset(digest for digest, _, _ in json.loads(model.index.read_text()).values())
        return cls(model, artifact.graph.digest, (*tensors, *((artifact.pack,) if artifact.pack else ())), structure_of(graph), files)


class Plans:
    """Of all pairs, by the published planner with a line for copied bytes; made before anybody asks."""

    def __init__(self, known: Mapping[str, Known]) -> None:
        costs = MetaCosts({}, base_ms=1.0)
        graphs = {each.graph: each.structure for each in known.values()}
        self._found: dict[tuple[Digest, Digest], tuple[float, bytes]] = {}
        for source, there in graphs.items():
            for target, wanted in graphs.items():
                plan, delta = planned(there, wanted, GroupPlanner(), costs, (source, target))
                self._found[source, target] = (costs.base_ms + plan.expected_ms, delta)

    def ms(self, source: Known, target: Known) -> float:
        return self._found[source.graph, target.graph][0] + CostLine(0.0, COPY_MS_PER_MIB).ms(target.size_bytes)

    def delta(self, source: Known, target: Known) -> bytes:
        return self._found[source.graph, target.graph][1]


class Runtime:
    """One process."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.process = process
        self.lock = asyncio.Lock()

    @classmethod
    async def spawned(cls, libraries: str, made: list[Runtime]) -> Runtime:
        """`made` gets it at once: who made it ends it, whatever becomes of the start."""
        command = ["-W", "ignore", "-m", "benchmarks.container", libraries]
        pipe = asyncio.subprocess.PIPE
        runtime = cls(await asyncio.create_subprocess_exec(sys.executable, *command, stdin=pipe, stdout=pipe, limit=1 << 26))
        made.append(runtime)
        await runtime._answer()
        return runtime

    async def do(self, what: str, **given: str) -> bool | None:
        async with self.lock:
            assert self.process.stdin is not None
            self.process.stdin.write(json.dumps({"do": what, **given}).encode() + b"\n")
            return await self._answer()

    async def _answer(self) -> bool | None:
        assert self.process.stdout is not None
        line = await self.process.stdout.readline()
        if not line:
            raise SystemExit(f"a container ended with {await self.process.wait()}")
        found: bool | None = json.loads(line)["right"] if b"right" in line else None
        return found

    async def end(self) -> None:
        if self.process.returncode is None:
            self.process.kill()
        await self.process.wait()


@dataclass
class Held:
    """A model in a runtime; `busy` counts who waits for it or is answered. `ready`: it may be a donor."""

    known: Known
    runtime: Runtime
    busy: int = 0
    last_s: float = 0.0
    ready: bool = True


@dataclass
class Node:
    system: System
    known: Mapping[str, Known]
    plans: Plans
    budget_bytes: int
    keep_alive_s: float
    idle_s: float
    scratch_ms: dict[str, float] = field(default_factory=dict)
    now_s: Callable[[], float] = time.monotonic
    store: Path = Path()
    _held: dict[str, Held] = field(default_factory=dict)
    _starting: dict[str, asyncio.Future[Held]] = field(default_factory=dict)
    _reserved: set[str] = field(default_factory=set)
    """Being started, with room."""
    _made: list[Runtime] = field(default_factory=list)
    _shared: list[Runtime] = field(default_factory=list)
    _changed: asyncio.Condition = field(default_factory=asyncio.Condition)
    _behind: set[asyncio.Task[None]] = field(default_factory=set)

    async def open(self) -> None:
        if self.system.maps:
            self.store = Path(tempfile.mkdtemp(prefix="startpaths-", dir="/dev/shm"))
            self._shared = [await Runtime.spawned(ALL_LIBRARIES, self._made) for _ in range(RUNTIMES)]

    async def close(self) -> None:
        for task in self._behind:
            task.cancel()
        await asyncio.gather(*self._behind, return_exceptions=True)
        for runtime in self._made:
            await runtime.end()
        if self.system.maps:
            shutil.rmtree(self.store)

    @property
    def pids(self) -> list[int]:
        return [runtime.process.pid for runtime in self._made]

    async def call(self, name: str) -> tuple[str, bool]:
        """How it was answered, and whether right."""
        path = "warm"
        while name not in self._held:
            there = self._starting.get(name)
            if there is not None:
                await asyncio.shield(there)
                path = "waited"
                continue
            self._starting[name] = asyncio.get_running_loop().create_future()
            try:
                path = await self._start(name)
            finally:
                self._starting.pop(name).set_result(self._held.get(name))  # type: ignore[arg-type]
        held = self._held[name]
        held.busy += 1
        try:
            right = await held.runtime.do("run", name=name)
        finally:
            held.busy -= 1
            held.last_s = self.now_s()
        if not held.ready and not held.busy:
            held.busy += 1
            self._behind.add(asyncio.create_task(self._flatten(held)))
        async with self._changed:
            self._changed.notify_all()
        return path, bool(right)

    async def _flatten(self, held: Held) -> None:
        await held.runtime.do("flatten", name=held.known.model.name)
        held.ready = True
        held.busy -= 1
        async with self._changed:
            self._changed.notify_all()

    async def _start(self, name: str) -> str:
        await self._expire()
        wanted = self.known[name]
        donor = self._donor(wanted)
        runtime, path = None, "fresh"
        if donor is not None:
            del self._held[donor.known.model.name]
        gone = await self._reserve(name, spare=donor is None and self.system.reuses)
        before = donor or gone
        if before is not None:
            runtime, path = before.runtime, "reused"
        try:
            if self.system.maps:
                runtime, path = min(self._shared, key=lambda one: sum(held.runtime is one for held in self._held.values())), "mapped"
            if runtime is None:
                runtime = await Runtime.spawned(libraries_of(wanted.model), self._made)
            transformed = donor is not None and self._cheaper(donor.known, wanted)
            if transformed:
                assert donor is not None
                delta = base64.b64encode(self.plans.delta(donor.known, wanted)).decode()
                await runtime.do("transform", name=name, donor=donor.known.model.name, delta=delta)
                path = "transformed"
            else:
                if before is not None:
                    await runtime.do("drop", name=before.known.model.name)
                begun = time.perf_counter()
                if self.system.maps:
                    await runtime.do("map", name=name, store=str(self.store))
                else:
                    await runtime.do("load", name=name)
                self.scratch_ms[name] = (time.perf_counter() - begun) * 1e3
        finally:
            self._reserved.discard(name)
        self._held[name] = Held(wanted, runtime, last_s=self.now_s(), ready=transformed or not self.system.transforms)
        return path

    def _donor(self, wanted: Known) -> Held | None:
        now_s = self.now_s()
        idle = [held for held in self._held.values() if not held.busy and held.ready and now_s - held.last_s >= self.idle_s]
        if not self.system.reuses or not idle:
            return None
        if self.system.transforms:
            return min(idle, key=lambda held: self.plans.ms(held.known, wanted))
        return min(idle, key=lambda held: held.last_s)

    def _cheaper(self, donor: Known, wanted: Known) -> bool:
        """The published safeguard."""
        return self.system.transforms and self.plans.ms(donor, wanted) < self.scratch_ms.get(wanted.model.name, FIRST_SCRATCH_MS)

    async def _reserve(self, name: str, spare: bool) -> Held | None:
        """Makes room. `spare`: the first that goes is returned with its runtime, which lives on."""
        gone: Held | None = None
        async with self._changed:
            while self._bytes(name) > self.budget_bytes:
                idle = [held for held in self._held.values() if not held.busy]
                if idle and spare and gone is None:
                    gone = min(idle, key=lambda held: held.last_s)
                    del self._held[gone.known.model.name]
                elif idle:
                    await self._evict(min(idle, key=lambda held: held.last_s))
                else:
                    await self._changed.wait()
            self._reserved.add(name)
        return gone

    async def _expire(self) -> None:
        for held in list(self._held.values()):
            if not held.busy and self.now_s() - held.last_s > self.keep_alive_s:  # looked at after the one before it has ended
                await self._evict(held)

    async def _evict(self, held: Held) -> None:
        if self._held.pop(held.known.model.name, None) is None:
            return
        if self.system.maps:
            await held.runtime.do("drop", name=held.known.model.name)
            asyncio.get_running_loop().call_later(self.idle_s, self._reclaim, held.known.files)
        else:
            self._made.remove(held.runtime)
            await held.runtime.end()

    def _reclaim(self, files: frozenset[str]) -> None:
        """Tensors that nobody needs any more, a (compressed) minute after."""
        for file in files.difference(*(self.known[name].files for name in {*self._held, *self._reserved})):
            (self.store / file).unlink(missing_ok=True)

    def _bytes(self, more: str) -> int:
        """Weights of what lives or is about to, and of one more; of the system that maps, each blob once."""
        names = {more, *self._held, *self._reserved}
        if self.system.maps:
            return sum({blob.digest: blob.size_bytes for name in names for blob in self.known[name].blobs}.values())
        return sum(self.known[name].size_bytes for name in names)


ZOO, TRANSFORMERS = "torch,pytorchcv.model_provider", "torch,tessera.registry.builders,transformers.models.bert.modeling_bert"
ALL_LIBRARIES = ",".join(dict.fromkeys(f"{ZOO},{TRANSFORMERS},tessera.runtime.backends.aten.backend".split(",")))


def libraries_of(model: StartModel) -> str:
    return TRANSFORMERS if model.transformer else ZOO
