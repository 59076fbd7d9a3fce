"""One trace against one system, live: every call sent when it is due, whatever became of those before."""

from __future__ import annotations

import asyncio
import json
import os
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np

from benchmarks.arrivals import Arrival
from benchmarks.embedded import platform
from benchmarks.published import Known, Node, Plans, System
from benchmarks.startmodels import BY_MODEL, FOLDER, MODELS
from benchmarks.traces import Trace, azure, thinned
from tessera.domain.errors import TesseraError
from tessera.sdk import AsyncClient

STATE = FOLDER / "platform"
VARIANT = "aten-fp32"
COMPRESSED = 10.0
"""A second of the benchmark is as many of a trace and of every timer."""
KEEP_ALIVE_S, IDLE_S = 600.0 / COMPRESSED, 60.0 / COMPRESSED
MOST_PER_S = 5
POISSON = {"poisson, rare": 0.5, "poisson, middle": 1.5, "poisson, frequent": 5.0}
"""Calls a second, of all models alike."""
SEED = 17
LOOK_S = 5.0
PATIENCE_S = 30.0
GAVE_UP = "gave up"
MIB = float(1 << 20)
Answerer = Callable[[str], Awaitable[tuple[str, bool, str]]]
"""Asks a model: start path, whether the answer was right, the request's id."""


@dataclass
class Call:
    """`options`: of a start that the scheduler decided, each with path, expected ms and whether it was chosen; `start_ms`: what it took."""

    model: str
    at_s: float
    ms: float = 0.0
    path: str = ""
    right: bool = False
    error: str = ""
    request_id: str = ""
    options: list[tuple[str, float, bool]] = field(default_factory=list)
    start_ms: float = 0.0


@dataclass
class Cell:
    calls: list[Call]
    memory_mib: float

    def kept(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.with_suffix(".partial").write_text(json.dumps(asdict(self)))
        os.replace(path.with_suffix(".partial"), path)

    @classmethod
    def of(cls, path: Path) -> Cell:
        found = json.loads(path.read_text())
        return cls([Call(**{**call, "options": [tuple(one) for one in call["options"]]}) for call in found["calls"]], found["memory_mib"])


def schedules(duration_s: float, poisson_s: float) -> dict[str, list[Arrival]]:
    """By trace; the same whoever is asked. Of the Azure ones those that are there, for `duration_s`; Poisson ones for `poisson_s`."""
    found = {}
    for trace in azure():
        if trace.name != "azure-2019-500":
            found[trace.name] = _compressed(thinned(trace, len(MODELS)), duration_s)
    draw = np.random.default_rng(SEED)
    for name, per_s in POISSON.items():
        times = np.sort(draw.uniform(0.0, poisson_s, draw.poisson(per_s * poisson_s)))
        found[name] = [Arrival(float(at_s), int(draw.integers(len(MODELS)))) for at_s in times]
    return found


def _compressed(trace: Trace, duration_s: float) -> list[Arrival]:
    """The busiest stretch of the trace that lasts so long once compressed, at most `MOST_PER_S` calls a second; a function a model."""
    draw = np.random.default_rng(SEED)
    calls = sorted((at_s / COMPRESSED, function) for function, times in enumerate(trace.calls) for at_s in times)
    starts = np.array([at_s for at_s, _ in calls])
    begin = int(np.argmax(np.searchsorted(starts, starts + duration_s) - np.arange(len(starts))))
    by_second: dict[int, list[tuple[float, int]]] = {}
    for at_s, function in calls[begin:]:
        since_s = at_s - float(starts[begin])
        if since_s < duration_s:
            by_second.setdefault(int(since_s), []).append((since_s, function))
    kept = []
    for some in by_second.values():
        chosen = draw.choice(len(some), size=min(MOST_PER_S, len(some)), replace=False)
        kept += [Arrival(*some[at]) for at in chosen]
    return sorted(kept, key=lambda arrival: arrival.at_s)


async def sent(schedule: Sequence[Arrival], ask: Answerer) -> list[Call]:
    """Latencies count from when a call was due. Who has no answer `PATIENCE_S` after the last call gives up: it waited so long, and so did
    who was refused, whenever that was: no system may be quick by refusing."""
    began_s = time.perf_counter()

    async def one(call: Call) -> None:
        try:
            call.path, call.right, call.request_id = await ask(call.model)
        except TesseraError as error:
            call.error = f"{error.kind}: {error.message}"
        except asyncio.CancelledError:
            call.error = GAVE_UP
        call.ms = (time.perf_counter() - began_s - call.at_s) * 1e3

    calls = [Call(MODELS[arrival.form].name, arrival.at_s) for arrival in schedule]
    async with asyncio.TaskGroup() as group:
        asked = []
        for call in calls:
            await asyncio.sleep(max(0.0, began_s + call.at_s - time.perf_counter()))
            asked.append(group.create_task(one(call)))
        _, late = await asyncio.wait(asked, timeout=PATIENCE_S)
        for task in late:
            task.cancel()
    ended_s = max(time.perf_counter() - began_s, max((call.at_s for call in calls), default=0.0) + PATIENCE_S)
    for call in calls:
        if call.error:
            call.ms = (ended_s - call.at_s) * 1e3
    return calls


@asynccontextmanager
async def sampled(look: Callable[[], Awaitable[float]]) -> AsyncIterator[list[float]]:
    found: list[float] = []

    async def run() -> None:
        while True:
            await asyncio.sleep(LOOK_S)
            found.append(await look())

    task = asyncio.create_task(run())
    try:
        yield found
    finally:
        task.cancel()


async def published(system: System, known: Mapping[str, Known], plans: Plans, budget_bytes: int, schedule: Sequence[Arrival]) -> Cell:
    node = Node(system, known, plans, budget_bytes, KEEP_ALIVE_S, IDLE_S)
    await node.open()

    async def ask(name: str) -> tuple[str, bool, str]:
        return (*await node.call(name), "")

    async def look() -> float:
        return sum(_memory(pid) for pid in node.pids)

    try:
        async with sampled(look) as memory:
            calls = await sent(schedule, ask)
    finally:
        await node.close()
    return Cell(calls, float(np.mean(memory)) / MIB)


def settings(transforms: bool) -> dict[str, str]:
    """Every timer compressed alike; as many threads a runtime as PyTorch takes in the published systems' processes."""
    return {
        "TESSERA_RUNTIME_THREADS": str(os.cpu_count()),
        "TESSERA_INSTANCE_KEEP_ALIVE_S": str(KEEP_ALIVE_S),
        "TESSERA_IDLE_AFTER_S": str(IDLE_S),
        "TESSERA_TENSOR_KEEP_ALIVE_S": str(IDLE_S),
        "TESSERA_RUNTIME_KEEP_ALIVE_S": str(IDLE_S),
        "TESSERA_EVICT_IDLE_S": str(1.0 / COMPRESSED),
        "TESSERA_TRANSFORM_IDLE_S": str(IDLE_S if transforms else 0.0),
    }


def ours(transforms: bool, budget_bytes: int, schedule: Sequence[Arrival]) -> Cell:
    """Through a platform of real processes, gateway included."""
    with platform(env=settings(transforms), store=str(budget_bytes), state=STATE):
        return asyncio.run(_ours(schedule))


async def asker(client: AsyncClient, by_node: Counter[str]) -> Answerer:
    """Asks a platform; `by_node` counts who answered."""
    given = {}
    for model in MODELS:
        names = [each.name for each in (await client.metadata(model.name)).inputs]
        given[model.name] = dict(zip(names, model.arrays(), strict=True))

    async def ask(name: str) -> tuple[str, bool, str]:
        answer = await client.infer(f"{name}@1/{VARIANT}", given[name], timeout_s=60.0)
        by_node[answer.node] += 1
        return answer.start_path, BY_MODEL[name].right(next(iter(answer.outputs.values()))), answer.request_id

    return ask


async def _ours(schedule: Sequence[Arrival]) -> Cell:
    async with AsyncClient(state=STATE) as client:
        ask = await asker(client, Counter())
        pids = _node_processes()

        async def look() -> float:
            stores = [store.used_bytes for node in await client.nodes() for store in node.stores]
            return sum(stores) + sum(_memory(pid, of_store=False) for pid in _descendants(pids))

        async with sampled(look) as memory:
            calls = await sent(schedule, ask)
        for call in calls:
            if call.request_id and call.path not in ("", "warm"):
                explained = (await client.explain(call.request_id)).start
                call.options = [(one.start_path, one.expected_ms, one.chosen) for one in explained.options if one.expected_ms]
                call.start_ms = explained.actual_ms
    return Cell(calls, float(np.mean(memory)) / MIB)


def _memory(pid: int, of_store: bool = True) -> float:
    """Proportional set size in bytes; 0 of who has ended. `of_store` False: without shared memory, which a store's files are."""
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except OSError:
        return 0.0
    found = {name: int(value.split()[0]) for name, _, value in (line.partition(":") for line in lines[1:])}
    return 1024.0 * (found["Pss"] - (0 if of_store else found["Pss_Shmem"]))


def _node_processes() -> list[int]:
    """Node agents of the platform."""
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        try:
            words = (path / "cmdline").read_bytes().split(b"\0")
        except OSError:
            continue
        if any(b"node_agent" in word for word in words) and any(str(STATE).encode() in word for word in words):
            found.append(int(path.name))
    if not found:
        raise SystemExit("no node agent of the platform found")
    return found


def _descendants(roots: Sequence[int]) -> list[int]:
    children: dict[int, list[int]] = {}
    for path in Path("/proc").glob("[0-9]*"):
        try:
            parent = int((path / "stat").read_text().rpartition(")")[2].split()[1])
        except OSError:
            continue
        children.setdefault(parent, []).append(int(path.name))
    found = list(roots)
    for pid in found:
        found += children.get(pid, [])
    return found
