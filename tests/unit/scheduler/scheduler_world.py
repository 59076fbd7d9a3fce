"""A world in virtual time: one fake etcd, schedulers over it, nodes that obey terms and misbehave on demand.

Nodes are checked as the agents' contract says: an older term is refused, a generation is never used twice, and what was provisional
and never recorded is reaped at its expiry.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable, Iterable
from contextlib import AsyncExitStack
from dataclasses import replace
from typing import Any, Self

from scheduler_builders import key, node_record, report, variant

from tessera.coord import keys
from tessera.coord.interface import Delete, ModRevisionIs, Put
from tessera.coord.records import decode, encode
from tessera.domain.errors import Internal, InvalidInput, NotFound, StaleTerm, Unavailable
from tessera.domain.ids import Generation, InstanceId, NodeId, RequestId, RuntimeId, Term, TrustDomain, VariantKey
from tessera.domain.instance import InstanceState, Stage, StageTime, StartPath
from tessera.domain.records import AssignmentRecord, VariantRecord
from tessera.policy.view import RuntimeView
from tessera.program import Stop, Tasks
from tessera.scheduler.adapters.metrics import PrometheusMeter
from tessera.scheduler.app import Scheduler
from tessera.scheduler.config import SchedulerConfig
from tessera.scheduler.core.observed import ObservedInstance
from tessera.scheduler.loops.starting import StartAnswer, StartRequest
from tessera.scheduler.ports import StartOrder
from tessera.testing import LoopClock
from tessera.testing.coord import FakeCoordinator, FakeEtcd

DOMAIN = TrustDomain("default")
LOAD_TIMEOUT_S = 60.0


class FakeNode:
    """An agent. `behave` is awaited before an instance becomes ready: it may wait, raise, or die in the middle."""

    def __init__(self, world: World, name: str, **facts: Any) -> None:
        self.world = world
        self.node_id = NodeId(name)
        self.facts = facts
        self.instances: dict[InstanceId, ObservedInstance] = {}
        self.behave: Callable[[StartOrder], Awaitable[None]] = self.load
        self.newest: Term | None = None
        self.orders: list[StartOrder] = []
        self.stopped: list[InstanceId] = []
        self.confirmed: set[InstanceId] = set()
        self.expires_s: dict[InstanceId, float] = {}
        self.reachable = True
        self.reporting = True
        self.transform_ms = self.bind_ms = 3.0
        self.binds = StartPath.BIND
        """What comes of an order to bind."""

    async def load(self, order: StartOrder) -> None:
        """Three milliseconds, as a bind takes."""
        await asyncio.sleep(0.003)

    async def start(self, order: StartOrder) -> ObservedInstance:
        """As agents do: the start goes on when the caller goes away."""
        self._reach()
        self._fence(order.term)
        if (order.start_path is StartPath.TRANSFORM) != (order.donor is not None):
            raise InvalidInput("donor_instance_id", order.donor, f"start path {order.start_path}")
        self.orders.append(order)
        self.expires_s[order.instance_id] = self.world.clock.monotonic_s() + order.expires_after_s
        known = self.instances.get(order.instance_id)
        if known is not None and known.state is InstanceState.READY:
            return known
        if known is None:
            generations = {item.generation for node in self.world.nodes.values() for item in node.instances.values()}
            assert order.generation not in generations, "a generation was used twice"
            self.instances[order.instance_id] = self._instance(order, InstanceState.LOADING)
            self.push()
        self.world.background.start(f"load {order.instance_id}", self._load(order, over := asyncio.get_running_loop().create_future()))
        error = await asyncio.shield(over)
        if error is not None:
            raise error
        self._reach()
        return self.instances[order.instance_id]

    async def _load(self, order: StartOrder, over: asyncio.Future[Exception | None]) -> None:
        error: Exception | None = None
        try:
            async with asyncio.timeout(LOAD_TIMEOUT_S):
                await self.behave(order)
        except TimeoutError:
            error = Internal(f"not loaded within {LOAD_TIMEOUT_S:.0f} s")
        except Exception as raised:
            error = raised
        if order.instance_id in self.instances:
            self.instances[order.instance_id] = self._instance(order, InstanceState.READY if error is None else InstanceState.FAILED)
            if order.donor is not None and error is None:
                del self.instances[order.donor]
        elif error is None:
            error = Internal("it was stopped while it was loading")
        if error is not None:
            self.push()
        over.set_result(error)

    def reconcile(self) -> None:
        """What had a record and has none ends; what never had one ends when its provisional time is over."""
        if not self.reachable or not self.world.etcd.running:
            return
        recorded = {item.instance_id for item in self.world.recorded() if item.node_id == self.node_id}
        now_s = self.world.clock.monotonic_s()
        for name in list(self.instances):
            if name in recorded:
                self.confirmed.add(name)
            elif name in self.confirmed or now_s > self.expires_s.get(name, float("inf")):
                del self.instances[name]
                self.stopped.append(name)

    async def stop(self, term: Term, instance_id: InstanceId) -> None:
        self._reach()
        self._fence(term)
        if instance_id not in self.instances:
            raise NotFound(f"instance {instance_id} is not on this node")
        del self.instances[instance_id]
        self.stopped.append(instance_id)
        self.push()

    def idle(self, instance_id: InstanceId, idle_s: float) -> None:
        self.instances[instance_id] = replace(self.instances[instance_id], idle_s=idle_s)

    def live(self, of: VariantKey | None = None) -> list[ObservedInstance]:
        ended = (InstanceState.GONE, InstanceState.FAILED)
        return [item for item in self.instances.values() if item.state not in ended and (of is None or item.variant == of)]

    def push(self) -> None:
        """Reports to whoever leads, as a status stream would."""
        if self.reporting and self.reachable:
            for scheduler in self.world.schedulers:
                if scheduler.leading.leadership is not None:
                    stream = 1 + self.world.schedulers.index(scheduler)
                    scheduler.cluster.report(self.report(), stream, self.world.clock.monotonic_s())
                    scheduler.servicer.woken()

    def report(self) -> Any:
        return report(str(self.node_id), self.instances.values(), **self.facts)

    def silence(self) -> None:
        """Its stream ends."""
        self.reporting = False
        for index, scheduler in enumerate(self.world.schedulers):
            scheduler.servicer.stream_ended(self.node_id, 1 + index)

    def _reach(self) -> None:
        if not self.reachable:
            raise Unavailable(f"{self.node_id} does not answer")

    def _fence(self, term: Term) -> None:
        if self.newest is not None and term.is_older_than(self.newest):
            raise StaleTerm(f"term {term.revision} is older than {self.newest.revision}")
        self.newest = term

    def _instance(self, order: StartOrder, state: InstanceState) -> ObservedInstance:
        took_ms = self.bind_ms if order.start_path is StartPath.BIND else 3.0
        return ObservedInstance(
            instance_id=order.instance_id,
            node_id=self.node_id,
            variant=order.variant,
            generation=Generation(order.generation),
            runtime_id=RuntimeId("r-1"),
            state=state,
            start_path=self.binds if order.start_path is StartPath.BIND else order.start_path,
            fetched=False,
            stages=(StageTime(Stage.LOAD, took_ms) if order.donor is None else StageTime(Stage.TRANSFORM, self.transform_ms),),
            host_id="h",
            unix_path="/run/r-1",
            relay_address="127.0.0.1:1",
            idle_s=0.5,
            artifact=order.artifact,
        )


class FakeAgents:
    """The port: finds a node by its address. As with agents, starts are taken at one port of it (3) and the rest at another (1)."""

    def __init__(self, world: World) -> None:
        self._world = world

    def expect(self, address: str) -> None: ...

    async def start(self, address: str, order: StartOrder) -> ObservedInstance:
        return await self._node(address, "3").start(order)

    async def stop(self, address: str, term: Term, instance_id: InstanceId, budget_s: float) -> None:
        await self._node(address, "1").stop(term, instance_id)

    async def close(self) -> None: ...

    def _node(self, address: str, port: str) -> FakeNode:
        name, _, asked = address.partition(":")
        assert asked == port, f"{address} was asked for what port {port} does"
        return self._world.nodes[name]


class World:
    """`async with World() as world:` - a variant, a node `n1`, and no scheduler yet."""

    def __init__(self) -> None:
        self.clock = LoopClock()
        self.etcd = FakeEtcd(self.clock)
        self.own = FakeCoordinator(self.etcd)
        self.nodes: dict[str, FakeNode] = {}
        self.schedulers: list[Scheduler] = []
        self.coordinators: list[FakeCoordinator] = []
        self.tasks: list[Tasks] = []
        self.stop = Stop()
        self._random = random.Random(7)
        self._requests = 0
        self._stack = AsyncExitStack()

    async def __aenter__(self) -> Self:
        await self._stack.__aenter__()
        self._stack.push_async_callback(self.own.close)
        self.background = await self._stack.enter_async_context(Tasks(self.stop))
        self.background.start("reports", self._report())
        await self.put(keys.variant(key()), variant())
        await self.add_node("n1")
        return self

    async def __aexit__(self, *error: Any) -> None:
        await self._stack.__aexit__(*error)
        assert self.stop.error is None, f"a task of the scheduler failed: {self.stop.error!r}"

    async def _report(self) -> None:
        while True:
            for node in self.nodes.values():
                node.reconcile()
                node.push()
            await asyncio.sleep(0.5)

    async def put(self, where: str, record: object) -> None:
        found = await self.own.get(where)
        await self.own.transact([ModRevisionIs(where, found.mod_revision if found else 0)], [Put(where, encode(record))])

    async def add_node(self, name: str, **facts: Any) -> FakeNode:
        self.nodes[name] = FakeNode(self, name, **facts)
        shown = {item: value for item, value in facts.items() if item in ("build_class", "profile_class", "flavours")}
        await self.put(keys.node(DOMAIN, NodeId(name)), node_record(name, **shown))
        return self.nodes[name]

    async def lose_lease(self, name: str) -> None:
        """A node's record goes."""
        where = keys.node(DOMAIN, NodeId(name))
        found = await self.own.get(where)
        assert found is not None
        await self.own.transact([ModRevisionIs(where, found.mod_revision)], [Delete(where)])

    async def add_variant(self, record: VariantRecord) -> None:
        await self.put(keys.variant(record.key), record)

    async def add_scheduler(self, **settings: Any) -> Scheduler:
        """Starts one; returns when it leads, or when it is a standby that knows the leader."""
        coordinator = FakeCoordinator(self.etcd)
        self._stack.push_async_callback(coordinator.close)
        tasks = await self._stack.enter_async_context(Tasks(self.stop))
        address = f"scheduler-{len(self.schedulers)}:1"
        scheduler = Scheduler(
            SchedulerConfig(address=address, **settings),
            coordinator,
            agents=FakeAgents(self),
            clock=self.clock,
            tasks=tasks,
            random_bytes=self._random.randbytes,
            meter=PrometheusMeter(),
        )
        self.schedulers.append(scheduler)
        self.coordinators.append(coordinator)
        self.tasks.append(tasks)
        scheduler.start()
        await until(lambda: scheduler.leading.known is not None)
        return scheduler

    async def kill(self, scheduler: Scheduler) -> None:
        """As kill -9 does: no word to etcd, its lease runs out."""
        index = self.schedulers.index(scheduler)
        self.coordinators[index].go_away()
        scheduler.leading.leadership = None
        await self.tasks[index].aclose()

    async def start(self, scheduler: Scheduler, *candidates: str, budget_s: float = 5.0, request_id: str = "") -> StartAnswer:
        self._requests += 1
        name = RequestId(request_id or f"{self._requests:032x}")
        wanted = tuple(key(item) for item in candidates or ("ort-fp32",))
        return await scheduler.starter.start(StartRequest(name, wanted, budget_s))

    def recorded(self) -> list[AssignmentRecord]:
        return [decode(AssignmentRecord, item.value) for item in self.etcd.items(keys.assignments(DOMAIN))]

    def live(self, nodes: Iterable[str] | None = None) -> list[ObservedInstance]:
        return [item for name, node in self.nodes.items() if nodes is None or name in nodes for item in node.live()]


async def until(condition: Callable[[], bool], within_s: float = 60.0) -> None:
    """Waits in virtual time. Raises: AssertionError when it does not come true."""
    waited_s = 0.0
    while not condition():
        assert waited_s < within_s, "it did not come true in time"
        await asyncio.sleep(0.02)
        waited_s += 0.02


def failing(*errors: Exception) -> Callable[[StartOrder], Awaitable[None]]:
    """Raises these, one per start, then behaves."""
    left = list(errors)

    async def behave(order: StartOrder) -> None:
        await asyncio.sleep(0.001)
        if left:
            raise left.pop(0)

    return behave


async def hanging(order: StartOrder) -> None:
    """Never answers."""
    await asyncio.sleep(1e6)


def slow(seconds: float) -> Callable[[StartOrder], Awaitable[None]]:
    async def behave(order: StartOrder) -> None:
        await asyncio.sleep(seconds)

    return behave


CRASH = Internal("the runtime crashed while loading")
ORT_RUNTIME = RuntimeView(RuntimeId("r-1"), "ort", "", 0)
