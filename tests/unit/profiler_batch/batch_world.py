"""What tests of batch jobs share: files below a root, a model of pretence, jobs over a fake etcd."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from tessera import failpoint
from tessera.coord import keys
from tessera.coord.interface import Delete, ModRevisionIs, Put
from tessera.coord.records import decode, encode
from tessera.domain.errors import InvalidInput, TesseraError
from tessera.domain.ids import DEFAULT_TRUST_DOMAIN, JobId, ModelName, TrustDomain, VersionNumber
from tessera.domain.objectives import Objectives
from tessera.domain.records import BatchRecord, BatchState
from tessera.profiler.batch.adapters.formats import file_format
from tessera.profiler.batch.adapters.records import EtcdBatches, EtcdModels
from tessera.profiler.batch.adapters.storage import FsspecStorage
from tessera.profiler.batch.core.locations import location
from tessera.profiler.batch.core.states import ENDED
from tessera.profiler.batch.loops.desk import BatchDesk, Submission
from tessera.profiler.batch.loops.limits import BatchLimits
from tessera.profiler.batch.loops.live import Live
from tessera.profiler.batch.loops.runner import BatchRunner, Elected
from tessera.profiler.batch.loops.thread import WorkThread
from tessera.program import Stop, Tasks
from tessera.testing import VirtualClock
from tessera.testing.builders import a_model, a_signature, a_variant, a_variant_key, a_version, a_version_key
from tessera.testing.coord import FakeCoordinator

Array = np.ndarray[Any, Any]
IMAGE = (1, 8, 8)


def images(rows: int) -> Array:
    """Row n is all n."""
    return np.broadcast_to(np.arange(rows, dtype=np.float32).reshape(-1, 1, 1, 1), (rows, *IMAGE)).copy()


@dataclass
class PretendedModel:
    """Answers row n with ten times n. `bad`: rows (by their value) that it refuses; `fail`: what the next requests meet first;
    `hold`: what all but the first `hold_after` wait for."""

    asked: list[list[float]] = field(default_factory=list)
    named: set[str] = field(default_factory=set)
    bad: set[float] = field(default_factory=set)
    fail: list[TesseraError] = field(default_factory=list)
    objectives: Objectives | None = None
    most_at_once: int = 0
    hold: asyncio.Event | None = None
    hold_after: int = 0
    _now: int = 0

    async def infer(
        self, trust_domain: TrustDomain, model: str, inputs: Mapping[str, Array], objectives: Objectives, budget_s: float
    ) -> Mapping[str, Array]:
        values = inputs["image"].reshape(len(inputs["image"]), -1)[:, 0]
        self.asked.append(values.tolist())
        self.named.add(model)
        self.objectives = objectives
        self._now += 1
        self.most_at_once = max(self.most_at_once, self._now)
        try:
            if self.hold is not None and len(self.asked) > self.hold_after:
                await self.hold.wait()
            await asyncio.sleep(0)
            if self.fail:
                raise self.fail.pop(0)
            if self.bad & set(values.tolist()):
                raise InvalidInput("image", None, "is bad")
            return {"logits": np.repeat(values[:, np.newaxis] * 10, 10, axis=1).astype(np.float32)}
        finally:
            self._now -= 1

    async def close(self) -> None: ...


class World:
    def __init__(self, root: Path) -> None:
        self.root = root
        self.clock = VirtualClock()
        self.etcd = FakeCoordinator(clock=self.clock)
        self.model = PretendedModel()
        self.limits = BatchLimits(part_rows=4, patience_s=60.0)
        self.storage = FsspecStorage([location("root", str(root))], {})
        self.live, self.elected, self.thread = Live(), Elected(), WorkThread()
        self.models = EtcdModels(self.etcd)
        self._numbers = iter(range(1, 1000))

    def desk(self, **limits: Any) -> BatchDesk:
        return BatchDesk(
            clock=self.clock,
            batches=EtcdBatches(self.etcd),
            models=self.models,
            storages={DEFAULT_TRUST_DOMAIN: self.storage},
            formats=file_format,
            live=self.live,
            limits=BatchLimits(**limits),
            draw=lambda: JobId(f"b{next(self._numbers)}"),
        )

    def runner(self, coordinator: FakeCoordinator | None = None) -> BatchRunner:
        etcd = coordinator or self.etcd
        return BatchRunner(
            clock=self.clock,
            coordinator=etcd,
            elected=self.elected,
            batches=EtcdBatches(etcd, self.elected.guard),
            models=self.models,
            storages={DEFAULT_TRUST_DOMAIN: self.storage},
            formats=file_format,
            inferences=self.model,
            live=self.live,
            thread=self.thread,
            limits=self.limits,
            name="test",
            lease_ttl_s=10.0,
        )

    async def put(self, key: str, record: Any) -> None:
        found = await self.etcd.get(key)
        await self.etcd.transact([ModRevisionIs(key, found.mod_revision if found else 0)], [Put(key, encode(record))])

    async def remove(self, key: str) -> None:
        found = await self.etcd.get(key)
        assert found is not None
        await self.etcd.transact([ModRevisionIs(key, found.mod_revision)], [Delete(key)])

    def wanted(self, output: str = "out.npz", source: str = "in.npz", **fields: Any) -> Submission:
        asked = {"model": "digits", "batch_size": 2, **fields}
        return Submission(DEFAULT_TRUST_DOMAIN, input_url=str(self.root / source), output_url=str(self.root / output), **asked)

    async def put_version(self, number: int, **variant: Any) -> None:
        """The model's latest from now on; without more, what answers for its name."""
        await self.put(keys.model(DEFAULT_TRUST_DOMAIN, ModelName("digits")), a_model(latest=VersionNumber(number)))
        await self.put(keys.version(a_version_key(version=number)), a_version(version=VersionNumber(number)))
        await self.put(keys.variant(key := a_variant_key("digits", number)), a_variant(key=key, **variant))

    def save(self, rows: int, name: str = "in.npz") -> None:
        np.savez(self.root / name, image=images(rows), label=np.arange(rows))

    async def job(self, job_id: str = "b1") -> BatchRecord:
        found = await self.etcd.get(keys.batch(DEFAULT_TRUST_DOMAIN, JobId(job_id)))
        assert found is not None
        return decode(BatchRecord, found.value)

    async def until(self, condition: Callable[[BatchRecord], bool], job_id: str = "b1", step_s: float = 0.0) -> BatchRecord:
        """Lets real threads work, and `step_s` of virtual time pass at each look."""
        async with asyncio.timeout(20):
            while not condition(job := await self.job(job_id)):
                await asyncio.sleep(0.002)
                await self.clock.advance(step_s)
        return job

    async def ended(self, job_id: str = "b1", step_s: float = 0.25) -> BatchRecord:
        return await self.until(lambda job: job.state in ENDED, job_id, step_s)

    async def done(self, job_id: str = "b1") -> BatchRecord:
        job = await self.ended(job_id)
        assert (job.state, job.reason) == (BatchState.DONE, "")
        return job

    @asynccontextmanager
    async def running(self) -> AsyncIterator[asyncio.Task[None]]:
        """A profiler at work; leaving ends it as a stop does."""
        async with Tasks(Stop()) as tasks:
            runner = self.runner()
            for view in runner.views:
                tasks.start("view", view.run())
            yield tasks.start("runner", runner.run())

    async def cut_off(self, point: str, wanted: Submission) -> BatchRecord:
        """Submits a job and works on it up to a failpoint, where it ends without a word to etcd, as a kill does."""
        reached = asyncio.Event()
        real = failpoint.async_hit

        async def cut(name: str) -> None:
            if name == point:
                reached.set()
                await asyncio.Event().wait()
            await real(name)

        failpoint.async_hit = cut
        try:
            async with self.running():
                job = await self.desk().submit(wanted)
                async with asyncio.timeout(10):
                    while not reached.is_set():
                        await asyncio.sleep(0.002)
                        await self.clock.advance(0.1)
        finally:
            failpoint.async_hit = real
        left = await self.job(job.job_id)
        assert left.state is BatchState.RUNNING
        return left


@asynccontextmanager
async def world(root: Path) -> AsyncIterator[World]:
    found = World(root)
    await found.put(keys.model(DEFAULT_TRUST_DOMAIN, ModelName("digits")), a_model())
    await found.put(keys.version(a_version_key()), a_version(signature=a_signature()))
    await found.put(keys.variant(a_variant_key()), a_variant())
    try:
        yield found
    finally:
        found.thread.close()
        await found.etcd.close()


def logits(world: World, name: str = "out.npz") -> list[float]:
    with np.load(world.root / name) as found:
        assert found["logits"].shape[1:] == (10,)
        return [float(value) for value in found["logits"][:, 0]]


def tens(rows: int) -> list[float]:
    return [10.0 * row for row in range(rows)]
