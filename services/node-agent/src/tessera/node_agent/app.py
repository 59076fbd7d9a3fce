"""The node agent, put together. The only place that builds concrete things.

Order of the start: folders, store (its lock says that we are the only one), relay, adoption, zygotes, server, records. Of the end: the
other way round. When it ends by failing, or is to leave, runtimes and relay live on for the next agent.
"""

from __future__ import annotations

import asyncio
import gc
import os
import shutil
from collections.abc import Awaitable, Callable, Coroutine
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import grpc.aio
from prometheus_client import CollectorRegistry, ProcessCollector

from tessera import telemetry
from tessera.api.node.v1 import node_pb2, node_pb2_grpc
from tessera.clock import Clock, SystemClock
from tessera.coord.etcd import EtcdCoordinator
from tessera.coord.interface import Coordinator
from tessera.domain.ids import NodeId, TrustDomain
from tessera.node_agent.adapters.baking import ProcessBaker
from tessera.node_agent.adapters.etcd import EtcdRecords
from tessera.node_agent.adapters.files import RuntimeNotes, TermFile, writable_folder
from tessera.node_agent.adapters.meter import PrometheusMeter
from tessera.node_agent.adapters.processes import max_map_count
from tessera.node_agent.adapters.relays import RelayProcess
from tessera.node_agent.adapters.runtimes import ProcessRuntimes
from tessera.node_agent.adapters.scheduler import SchedulerLeader
from tessera.node_agent.config import NodeAgentConfig
from tessera.node_agent.core.poison import BackOff, PoisonLedger
from tessera.node_agent.core.runtimes import RuntimeLimits
from tessera.node_agent.core.status import NodeIdentity
from tessera.node_agent.core.table import InstanceTable
from tessera.node_agent.loops.agent import Agent
from tessera.node_agent.loops.fleet import Fleet
from tessera.node_agent.loops.jobs import Jobs
from tessera.node_agent.loops.larder import Larder
from tessera.node_agent.loops.pulse import Pulse
from tessera.node_agent.loops.reporter import Reporter
from tessera.node_agent.loops.starter import Starter, StarterSettings
from tessera.node_agent.server import NodeAgentServer, status_message
from tessera.program import Stop, Tasks, host_id
from tessera.repository import Repository
from tessera.repository.fetch import Fetcher
from tessera.rpc import FramedServer, RpcServer
from tessera.runtime.classes import build_class, profile_class
from tessera.telemetry import MetricsServer, get_logger
from tessera.tensorstore.local import LocalTensorStore
from tessera.tensorstore.mount import prepare_store_folder, remove_store_folder

SERVICE = "tessera.api.node.v1.NodeAgent"
START = f"/{SERVICE}/StartInstance"
STORE_FOLDER = "store"
BEHIND_S = 0.005
"""An answer is at its client by then: no record, note or report shall compete with it."""
RPC_GRACE_S = 2.0
TRIM_S = 5.0

_log = get_logger(__name__)


async def serve(config: NodeAgentConfig, stop: Stop) -> None:
    """Runs until `stop`.

    Raises:
        FailedPrecondition: a folder cannot be written, the tmpfs is too small, another agent owns the store, an address is in use, or a
            zygote does not start; says which and why.
    """
    telemetry.configure(
        "node_agent", config.otlp_endpoint, config.trace_ring_size, sample_ratio=config.trace_sample_ratio, log_level=config.log_level
    )
    coordinator = EtcdCoordinator(config.etcd_endpoints)
    try:
        await serve_with(config, stop, coordinator, SystemClock())
    finally:
        await coordinator.close()


async def serve_with(config: NodeAgentConfig, stop: Stop, coordinator: Coordinator, clock: Clock) -> None:
    """As `serve`, over a coordinator and a clock that the caller owns."""
    state = writable_folder("state_folder", config.state_folder)
    run = writable_folder("run_folder", config.run_folder).resolve()
    async with AsyncExitStack() as stack:
        ending = _Ending(config.on_stop == "leave", stop)
        store = _open_store(config, run, clock, stack, ending)
        relay = RelayProcess(config.relay_address, run, state / "logs", config.orphan_s, clock)
        stack.push_async_callback(ending.choose, relay.end, relay.leave)
        await relay.ensure()
        identity = _identity(config, run, relay.address)
        tasks = await stack.enter_async_context(Tasks(stop))
        parts = _Parts(config, stop, coordinator, clock, identity, store, run, state, tasks, relay)
        stack.push_async_callback(ending.choose, lambda: parts.agent.end(config.drain_ms), parts.agent.leave)
        await parts.agent.adopt()
        await parts.agent.look_back()
        ending.adopted = bool(parts.fleet.members)
        await parts.runtimes.prepare()
        if config.metrics_address:
            metrics = MetricsServer(config.metrics_address, parts.metrics)
            metrics.start()
            stack.callback(metrics.stop)
        stack.push_async_callback(parts.close_records, ending)
        server = RpcServer(config.address, handlers=[parts.add_servicer], service_names=[SERVICE])
        await server.start()
        stack.push_async_callback(server.stop, RPC_GRACE_S)
        starts = FramedServer(config.start_address, {START: (node_pb2.StartInstanceRequest, parts.servicer.StartInstance)})
        await starts.start()
        stack.push_async_callback(starts.stop, RPC_GRACE_S)
        parts.start_loops()
        ending.started = True
        # What was imported and made so far stays: without this a full collection takes tens of milliseconds in the midst of starts.
        gc.collect()
        gc.freeze()
        _log.info(
            "node agent ready", node_id=identity.node_id, address=identity.address, relay=identity.relay_address, store=str(store.root)
        )
        await stop.wait()


class _Ending:
    """Take everything down, or leave it to the next agent? What a failing agent has adopted or started is left."""

    def __init__(self, leave: bool, stop: Stop) -> None:
        self._leave = leave
        self._stop = stop
        self.adopted = False
        self.started = False

    @property
    def leaves(self) -> bool:
        if not self.started:
            return self.adopted
        return self._leave or self._stop.error is not None

    async def choose(self, end: Callable[[], Awaitable[None]], leave: Callable[[], Awaitable[None]]) -> None:
        await (leave() if self.leaves else end())


def _open_store(config: NodeAgentConfig, run: Path, clock: Clock, stack: AsyncExitStack, ending: _Ending) -> LocalTensorStore:
    mount_point = run / STORE_FOLDER
    if config.store_folder is not None:
        root, huge = writable_folder("store_folder", config.store_folder), False
    else:
        prepared = prepare_store_folder(mount_point, config.store_budget_bytes, may_mount=config.may_mount)
        root, huge = prepared.path, prepared.huge_pages
    store = LocalTensorStore(root, config.store_budget_bytes, clock, config.sharing)

    def close() -> None:
        store.close()
        if not ending.leaves and config.store_folder is None:
            remove_store_folder(mount_point)
        if not ending.leaves:
            _remove_run_folder(run)

    stack.callback(close)
    _log.info("tensor store open", root=str(root), budget_bytes=config.store_budget_bytes, huge_pages=huge, blobs=len(store.digests()))
    return store


def _remove_run_folder(run: Path) -> None:
    """Only what is ours; the folder itself goes when nothing else is in it."""
    for path in run.iterdir():
        if path.is_dir() and (path / "info.json").exists():
            shutil.rmtree(path, ignore_errors=True)
    try:
        run.rmdir()
    except OSError:
        pass


def _from_thread(trim: Callable[[], Coroutine[Any, Any, None]]) -> Callable[[], None]:
    """`trim` on this loop, waited for in the worker thread that calls."""
    loop = asyncio.get_running_loop()

    def call() -> None:
        future = asyncio.run_coroutine_threadsafe(trim(), loop)
        try:
            future.result(TRIM_S)
        except TimeoutError:
            future.cancel()

    return call


def _identity(config: NodeAgentConfig, run: Path, relay_address: str) -> NodeIdentity:
    built = build_class()
    return NodeIdentity(
        NodeId(config.node_id),
        TrustDomain(config.trust_domain),
        host_id(),
        config.address,
        config.start_address,
        relay_address,
        built,
        profile_class(build=built),
        tuple(config.flavours),
        len(os.sched_getaffinity(0)),
        str(run),
    )


class _Parts:
    """The objects of one agent, built in the order in which they need each other."""

    def __init__(
        self,
        config: NodeAgentConfig,
        stop: Stop,
        coordinator: Coordinator,
        clock: Clock,
        identity: NodeIdentity,
        store: LocalTensorStore,
        run: Path,
        state: Path,
        tasks: Tasks,
        relay: RelayProcess,
    ) -> None:
        self._config = config
        self._stop = stop
        self._tasks = tasks
        self._relay = relay
        self.metrics = CollectorRegistry()
        ProcessCollector(registry=self.metrics)
        wake, report = Pulse(), Pulse()

        def changed() -> None:
            wake.fire()
            report.fire()

        table = InstanceTable()
        meter = PrometheusMeter(self.metrics)
        notes = RuntimeNotes(run)
        limits = RuntimeLimits(config.max_instances_per_runtime, max_map_count() // 2, config.warm_runtimes, config.surplus_runtime_idle_s)
        self.records = EtcdRecords(coordinator, identity, config.lease_ttl_s, clock, wake.fire)
        self.records.announce(config.store_budget_bytes, config.runtime_threads)
        self.runtimes = ProcessRuntimes(
            run,
            store.root,
            state / "logs",
            config.flavours,
            identity.trust_domain,
            config.runtime_workers,
            config.batch_delay_us,
            config.sharing,
            config.orphan_s,
            config.zygote_start_s,
            clock,
        )
        self.fleet = Fleet(self.runtimes, store, table, identity.trust_domain, config.runtime_threads, clock, os.urandom, tasks)
        repository = Repository(config.repository_url)
        larder = Larder(store, Fetcher(repository, store, config.fetch_concurrency, _from_thread(self.fleet.trim)), identity.build_class)
        poison = PoisonLedger(BackOff(config.poison_first_back_off_s, config.poison_longest_back_off_s, config.poison_forgive_s))
        settings = StarterSettings(config.load_timeout_s, config.drain_ms, config.verify_on_bind, BEHIND_S)
        starter = Starter(identity, table, self.fleet, larder, poison, limits, self.records, notes, meter, settings, clock, tasks, changed)
        self.agent = Agent(
            identity,
            table,
            self.fleet,
            starter,
            larder,
            store,
            self.runtimes,
            self.records,
            notes,
            TermFile(state),
            meter,
            limits,
            config.adoption_grace_s,
            config.tombstone_s,
            config.reconcile_s,
            clock,
            tasks,
            wake,
        )
        baker = ProcessBaker(state / "bake", store.root)
        baker.sweep()
        jobs = Jobs(
            self.fleet, larder, baker, repository.has, baker.scratch, baker.remove, store.path, config.load_timeout_s, os.urandom, clock
        )
        self.servicer = NodeAgentServer(self.agent, jobs)
        leader = SchedulerLeader(self.records, status_message)
        self._reporter = Reporter(self.agent, leader, config.report_s, clock, report)

    def add_servicer(self, server: grpc.aio.Server) -> None:
        node_pb2_grpc.add_NodeAgentServicer_to_server(self.servicer, server)

    def start_loops(self) -> None:
        self._tasks.start("watch assignments", self.records.watch(self._stop))
        self._tasks.start("keep records", self.records.keep(self._stop))
        self._tasks.start("reconcile", self.agent.run(self._stop))
        self._tasks.start("report", self._reporter.run(self._stop))
        self._tasks.start("keep the relay", self._keep_relay())

    async def _keep_relay(self) -> None:
        while not await self._stop.wait_for(1.0):
            if not self._relay.alive:
                await self._relay.ensure()

    async def close_records(self, ending: _Ending) -> None:
        await self.records.close(leave=ending.leaves)
