"""Builders of the node agent's values, as one fixture (`make`)."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import CollectorRegistry

sys.path.insert(0, str(Path(__file__).parent))

from node_fakes import FakeMachine, FakeMemory, FakeRecords, FakeRuntimes, FakeVariants

from tessera.domain.artifact import Artifact, Blob, TensorRef
from tessera.domain.ids import (
    BuildClass,
    Digest,
    Generation,
    InstanceId,
    ModelName,
    NodeId,
    ProfileClass,
    RuntimeId,
    Term,
    TrustDomain,
    VariantKey,
    VariantName,
    VersionNumber,
)
from tessera.domain.instance import InstanceState, StartPath
from tessera.domain.records import AssignmentRecord
from tessera.domain.signature import Signature, TensorSpec
from tessera.node_agent.adapters.baking import ProcessBaker
from tessera.node_agent.adapters.files import RuntimeNotes, TermFile
from tessera.node_agent.adapters.meter import PrometheusMeter
from tessera.node_agent.core.poison import BackOff, PoisonLedger
from tessera.node_agent.core.pressure import PressureLimits
from tessera.node_agent.core.runtimes import RuntimeLimits, RuntimeView, Wanted
from tessera.node_agent.core.status import NodeIdentity
from tessera.node_agent.core.table import Instance, InstanceTable
from tessera.node_agent.loops.adoption import Adoption
from tessera.node_agent.loops.agent import Agent
from tessera.node_agent.loops.appraiser import Appraiser
from tessera.node_agent.loops.domain import Domain, Domains
from tessera.node_agent.loops.eviction import Evictor
from tessera.node_agent.loops.fleet import Fleet
from tessera.node_agent.loops.flight import StarterSettings
from tessera.node_agent.loops.inspector import Inspector
from tessera.node_agent.loops.jobs import Jobs
from tessera.node_agent.loops.keeper import Keeper
from tessera.node_agent.loops.larder import Larder
from tessera.node_agent.loops.measuring import Measurer
from tessera.node_agent.loops.observing import Observer
from tessera.node_agent.loops.place import MeasuringPlace
from tessera.node_agent.loops.pulse import Pulse
from tessera.node_agent.loops.starter import Starter
from tessera.node_agent.loops.traffic import Traffic
from tessera.node_agent.loops.transforming import Transformer
from tessera.node_agent.ports import (
    StartOrder,
)
from tessera.program import Stop, Tasks
from tessera.repository import Repository
from tessera.repository.fetch import Fetcher
from tessera.tensorstore.artifact import encode
from tessera.tensorstore.local import LocalTensorStore
from tessera.testing import VirtualClock
from tessera.testing.blobs import StepClock

SIGNATURE = Signature((TensorSpec("x", "FP32", (-1, 4)),), (TensorSpec("y", "FP32", (-1, 4)),))

DOMAIN = TrustDomain("default")
EVICT_IDLE_S = 1.0


class Make:
    """Values with sensible fields; keyword arguments replace them."""

    @staticmethod
    def digest(number: int) -> Digest:
        return Digest(f"{number:064x}")

    @staticmethod
    def variant(name: str = "m", build: str = "ort-fp32") -> VariantKey:
        return VariantKey(DOMAIN, ModelName(name), VersionNumber(1), VariantName(build))

    @staticmethod
    def generation(name: str) -> Generation:
        return Generation(int.from_bytes(name.encode()[-8:], "little"))

    def instance(self, name: str = "i1", **changes: Any) -> Instance:
        fields: dict[str, Any] = {
            "instance_id": InstanceId(name),
            "variant": self.variant(),
            "artifact": self.digest(1),
            "generation": self.generation(name),
            "state": InstanceState.ACCEPTED,
            "since_s": 0.0,
            "expires_at_s": 30.0,
            "start_path": StartPath.BIND,
        }
        return Instance(**(fields | changes))

    def assignment(self, name: str = "i1", **changes: Any) -> AssignmentRecord:
        fields: dict[str, Any] = {
            "instance_id": InstanceId(name),
            "node_id": NodeId("n1"),
            "variant": self.variant(),
            "artifact": self.digest(1),
            "generation": self.generation(name),
            "start_path": StartPath.BIND,
            "term": Term(1, 1),
        }
        return AssignmentRecord(**(fields | changes))

    @staticmethod
    def runtime(name: str = "rt-1", **changes: Any) -> RuntimeView:
        fields: dict[str, Any] = {
            "runtime_id": RuntimeId(name),
            "flavour": "ort",
            "trust_domain": DOMAIN,
            "threads": 1,
            "instances": 0,
            "mappings": 500,
        }
        return RuntimeView(**(fields | changes))

    @staticmethod
    def wanted(**changes: Any) -> Wanted:
        fields: dict[str, Any] = {"flavour": "ort", "trust_domain": DOMAIN, "threads": 1, "blobs": {}, "start_path": StartPath.BIND}
        return Wanted(**(fields | changes))


@pytest.fixture(scope="session")
def make() -> Make:
    return Make()


@pytest.fixture(scope="session")
def limits() -> RuntimeLimits:
    return RuntimeLimits(max_instances=4, max_mappings=1000, warm=1, surplus_idle_s=60.0)


# A node whose runtimes are objects: real store, real repository, fake coordination.


class Node:
    """A node agent over fakes, with the trust domain `default` and `others`. `make_artifact` puts a model into the repository; `start` is
    what the scheduler's leader would ask."""

    def __init__(
        self,
        folder: Path,
        tasks: Tasks,
        store: LocalTensorStore,
        runtimes: FakeRuntimes,
        clock: VirtualClock,
        others: Mapping[TrustDomain, tuple[LocalTensorStore, FakeRuntimes]] | None = None,
        verify: bool = True,
    ) -> None:
        self.folder, self.store, self.runtimes, self.clock = folder, store, runtimes, clock
        self.repository = Repository(f"file://{folder / 'repository'}")
        self.records = FakeRecords()
        self.identity = NodeIdentity(
            NodeId("n1"),
            "host",
            "127.0.0.1:1",
            "127.0.0.1:3",
            "127.0.0.1:2",
            BuildClass("b"),
            ProfileClass("p"),
            ("ort",),
            2,
            str(folder),
        )
        self.limits = RuntimeLimits(max_instances=4, max_mappings=10_000, warm=1, surplus_idle_s=60.0)
        self.table = InstanceTable()
        self.terms = TermFile(folder)
        self.metrics = CollectorRegistry()
        meter, notes = PrometheusMeter(self.metrics), RuntimeNotes(folder)
        self.job_turn = asyncio.Lock()
        self.traffic = Traffic(lambda: [domain.fleet for domain in self.domains], self.table)
        self.poison = PoisonLedger(BackOff(1.0, 8.0, 600.0))

        def domain(name: TrustDomain, store: LocalTensorStore, runtimes: FakeRuntimes, warm: tuple[str, ...]) -> Domain:
            fleet = Fleet(runtimes, store, self.table, name, 1, clock, os.urandom, tasks)
            larder = Larder(store, Fetcher(self.repository, store), self.identity.build_class)
            evictor = Evictor(self.table, fleet, store, EVICT_IDLE_S)
            transformer = Transformer(
                self.table, fleet, larder, self.limits, self.records, notes, lambda digest: store.path(digest).read_bytes(), clock
            )
            starter = Starter(
                self.identity, self.table, fleet, larder, evictor, self.poison, self.limits, self.records, notes, meter, transformer,
                StarterSettings(5.0, 100, verify), clock, tasks, lambda: None,
            )  # fmt: skip
            baker = ProcessBaker(folder / "bake" / name, store.root)
            jobs = Jobs(larder, baker, self.repository.has, baker.scratch, baker.remove, store.path, os.urandom, self.job_turn)
            place = MeasuringPlace(fleet, larder, self.traffic, 5.0, os.urandom, clock, self.job_turn)
            holders = lambda: starter.holders | jobs.holders | place.holders  # noqa: E731
            inspector = Inspector(store, fleet, self.table, holders, lambda: {os.getpid()}, StepClock())
            keeper = Keeper(store, fleet.trim, FakeMemory(), PressureLimits(0.0, 0, 1, 0.0), clock)
            appraiser = Appraiser(store, FakeVariants(), self.repository.read)
            return Domain(
                store,
                runtimes,
                fleet,
                larder,
                evictor,
                starter,
                jobs,
                Measurer(place),
                Observer(place),
                inspector,
                keeper,
                appraiser,
                meter,
                clock,
                warm,
            )

        first = domain(DOMAIN, store, runtimes, ("ort",))
        self.fleet, self.larder, self.starter, self.jobs = first.fleet, first.larder, first.starter, first.jobs
        self.measurer = first.measurer
        self.observer = first.observer
        self.inspector, self.fake_variants = first.inspector, FakeVariants
        self.others = {name: domain(name, *made, ()) for name, made in (others or {}).items()}
        self.domains = Domains([first, *self.others.values()])
        self.agent = Agent(
            self.identity, self.table, self.domains, self.records, self.terms, meter, self.limits, 60.0, 1.0, clock, tasks, Pulse(),
            FakeMachine(clock),
        )  # fmt: skip
        self.adoption = Adoption(self.identity, self.table, self.domains, self.records, notes, 60.0, clock)

    def make_artifact(self, seed: int = 1, tensors: int = 2) -> Digest:
        refs = []
        for number in range(tensors):
            data = bytes([seed, number]) * 4096
            refs.append(TensorRef(f"t{number}", "UINT8", (8192,), self.repository.put_bytes(data), 8192))
        graph = Blob(self.repository.put_bytes(b"graph" + bytes([seed])), 6)
        return self.repository.put_bytes(encode(Artifact("ort", "fp32", "onnx", graph, None, tuple(refs), SIGNATURE, None, 8)))

    def order(self, name: str, artifact: Digest | None = None, **changes: Any) -> StartOrder:
        fields: dict[str, Any] = {
            "term": Term(1, 5),
            "instance_id": InstanceId(name),
            "generation": Make.generation(name),
            "variant": Make.variant(),
            "artifact": artifact,
            "start_path": StartPath.BIND,
            "expires_after_s": 30.0,
            "budget_s": 5.0,
        }
        return StartOrder(**(fields | changes))

    async def start(self, name: str, artifact: Digest | None = None, **changes: Any) -> Instance:
        return await self.agent.start_instance(self.order(name, artifact, **changes))

    async def behind(self) -> None:
        """Waits for what is done behind the answers."""
        async with asyncio.timeout(5):
            while len(self.agent._tasks):  # noqa: ASYNC110 - tasks that end by themselves
                await asyncio.sleep(0.001)

    def corrupt(self, digest: Digest) -> None:
        path = self.store.path(digest)
        path.chmod(0o644)
        path.write_bytes(b"\xff" * path.stat().st_size)
        path.chmod(0o444)


@pytest.fixture
async def node(tmp_path: Path, request: pytest.FixtureRequest) -> AsyncIterator[Node]:
    """Checks at the end what must hold at any end: no task failed, and nothing is pinned but for live runtimes. Its parameter: whether
    bytes are verified on every bind (they are)."""
    stop, clock = Stop(), VirtualClock()
    async with Tasks(stop) as tasks:
        with LocalTensorStore(tmp_path / "store", 1 << 20, clock) as store:
            found = Node(tmp_path, tasks, store, FakeRuntimes(store), clock, verify=getattr(request, "param", True))
            yield found
            async with asyncio.timeout(5):
                while len(tasks):  # noqa: ASYNC110 - tasks that end by themselves; there is no event to wait for
                    await asyncio.sleep(0.005)
            live = {runtime.hello.runtime_id: runtime for runtime in found.runtimes.live}
            for holder, held in store.holders().items():
                assert holder in live or not held, f"{holder} still holds {len(held)} blobs"
    assert stop.error is None
