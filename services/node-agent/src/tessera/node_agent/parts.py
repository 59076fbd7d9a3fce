"""The objects of one agent, built in the order in which they need each other: the node's, then each trust domain's."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prometheus_client import CollectorRegistry, ProcessCollector

from tessera.clock import Clock
from tessera.coord.interface import Coordinator
from tessera.domain.ids import NodeId, TrustDomain
from tessera.node_agent.adapters.baking import ProcessBaker
from tessera.node_agent.adapters.etcd import EtcdRecords
from tessera.node_agent.adapters.files import RuntimeNotes, TermFile
from tessera.node_agent.adapters.machine import ProcMachine
from tessera.node_agent.adapters.meter import PrometheusMeter
from tessera.node_agent.adapters.peers import peers
from tessera.node_agent.adapters.pressure import KernelMemory
from tessera.node_agent.adapters.prices import load_prices
from tessera.node_agent.adapters.processes import max_map_count, own_pids
from tessera.node_agent.adapters.runtimes import make_runtimes
from tessera.node_agent.adapters.scheduler import SchedulerLeader
from tessera.node_agent.adapters.stores import BAKE_FOLDER, OpenStore
from tessera.node_agent.adapters.variants import EtcdVariants
from tessera.node_agent.config import NodeAgentConfig
from tessera.node_agent.core.artifacts import FLAVOURS
from tessera.node_agent.core.neighbours import neighbours_of
from tessera.node_agent.core.poison import BackOff, PoisonLedger
from tessera.node_agent.core.pressure import PressureLimits
from tessera.node_agent.core.runtimes import RuntimeLimits
from tessera.node_agent.core.status import NodeIdentity
from tessera.node_agent.core.table import InstanceTable
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
from tessera.node_agent.loops.reporter import Reporter
from tessera.node_agent.loops.starter import Starter
from tessera.node_agent.loops.traffic import Traffic
from tessera.node_agent.loops.transforming import Transformer
from tessera.node_agent.server import NodeAgentServer, status_message
from tessera.policy.pool import registry as pools
from tessera.program import Tasks, host_id
from tessera.repository import Repository
from tessera.repository.fetch import Fetcher
from tessera.runtime import backends
from tessera.runtime.classes import build_class, profile_class

BEHIND_S = 0.005
"""An answer is at its client by then: no record, note or report shall compete with it."""
TRIM_S = 5.0


def identity_of(config: NodeAgentConfig, run: Path, relay_address: str, peer_address: str) -> NodeIdentity:
    """Raises: InvalidInput: the price catalogue cannot be used."""
    built = build_class()
    profiled, cores = profile_class(build=built), len(os.sched_getaffinity(0))
    usd_per_hour = config.usd_per_hour
    if usd_per_hour is None:
        usd_per_hour = load_prices(config.price_catalogue).usd_per_hour(profiled, cores)
    return NodeIdentity(
        NodeId(config.node_id),
        host_id(),
        config.advertised(config.address),
        config.advertised(config.start_address),
        config.advertised(relay_address),
        built,
        profiled,
        tuple(config.flavours),
        cores,
        str(run),
        config.advertised(peer_address),
        config.runtimes,
        usd_per_hour,
    )


@dataclass(frozen=True, slots=True)
class World:
    """What the agent is built over."""

    config: NodeAgentConfig
    coordinator: Coordinator
    clock: Clock
    identity: NodeIdentity
    run: Path
    state: Path
    tasks: Tasks


class Parts:
    """The node's own objects; `domains` are built from them."""

    def __init__(self, world: World, stores: Sequence[OpenStore]) -> None:
        config, clock, identity = world.config, world.clock, world.identity
        self.world = world
        self.metrics = CollectorRegistry()
        ProcessCollector(registry=self.metrics)
        wake, report = Pulse(), Pulse()

        def changed() -> None:
            wake.fire()
            report.fire()

        self.changed = changed
        self.table = InstanceTable()
        self.meter = PrometheusMeter(self.metrics)
        self.notes = RuntimeNotes(world.run)
        pool = pools.make(config.pool_policy, config.pool_memory_bytes)
        most, mappings = config.max_instances_per_runtime, max_map_count() // 2
        self.limits = RuntimeLimits(most, mappings, config.warm_runtimes, config.runtime_keep_alive_s, pool)
        self.poison = PoisonLedger(BackOff(config.poison_first_back_off_s, config.poison_longest_back_off_s, config.poison_forgive_s))
        self.repository = Repository(config.repository_url, config.repository_options)
        self.job_turn = asyncio.Lock()
        self.traffic = Traffic(lambda: [domain.fleet for domain in self.domains], self.table)
        names = [opened.trust_domain for opened in stores]
        self.records = EtcdRecords(world.coordinator, identity, names, config.lease_ttl_s, clock, wake.fire)
        self.records.announce({TrustDomain(store.trust_domain): store.budget_bytes for store in config.stores}, config.runtime_threads)
        # The first domain's runtimes wait warm from the start: most nodes have but one. A zygote has 33 (ort) to 146 MiB (aten) of its own,
        # so others' come when they are needed first.
        warm = [tuple(config.flavours) if index == 0 else () for index in range(len(stores))]
        self.domains = Domains([domain_of(self, opened, flavours) for opened, flavours in zip(stores, warm, strict=True)])
        self.agent = Agent(
            identity,
            self.table,
            self.domains,
            self.records,
            TermFile(world.state),
            self.meter,
            self.limits,
            config.tombstone_s,
            config.reconcile_s,
            clock,
            world.tasks,
            wake,
            ProcMachine(),
            config.report_s,
        )
        self.adoption = Adoption(identity, self.table, self.domains, self.records, self.notes, config.adoption_grace_s, clock)
        self.servicer = NodeAgentServer(self.agent)
        self.reporter = Reporter(self.agent, SchedulerLeader(self.records, status_message), config.report_s, clock, report)


def domain_of(node: Parts, opened: OpenStore, warm_flavours: Sequence[str]) -> Domain:
    """Everything that one trust domain has of the node."""
    world, store = node.world, opened.store
    config, clock, tasks = world.config, world.clock, world.tasks
    runtimes = make_runtimes(
        config,
        opened.runtimes_folder,
        store.root,
        world.state / "logs" / opened.trust_domain,
        opened.trust_domain,
        [TrustDomain(each.trust_domain) for each in config.stores],
        opened.user,
        clock,
        tasks,
    )
    fleet = Fleet(runtimes, store, node.table, opened.trust_domain, config.runtime_threads, clock, os.urandom, tasks, config.report_s)
    evictor = Evictor(node.table, fleet, store, config.evict_idle_s)
    sources = peers(config, opened.trust_domain, clock)
    fetcher = Fetcher(node.repository, store, config.fetch_concurrency, _from_thread(fleet.trim), sources)
    larder = Larder(
        store,
        fetcher,
        world.identity.build_class,
        {**FLAVOURS, **backends.others()},
        lambda: neighbours_of(world.identity.node_id, node.records.nodes(opened.trust_domain)),
    )
    transformer = Transformer(
        node.table, fleet, larder, node.limits, node.records, node.notes, lambda digest: store.path(digest).read_bytes(), clock
    )
    settings = StarterSettings(config.load_timeout_s, config.drain_ms, config.verify_on_bind, BEHIND_S)
    starter = Starter(
        world.identity,
        node.table,
        fleet,
        larder,
        evictor,
        node.poison,
        node.limits,
        node.records,
        node.notes,
        node.meter,
        transformer,
        settings,
        clock,
        tasks,
        node.changed,
    )
    # Other users pass through the run folder; the state folder is closed to them.
    baking = (world.state if opened.user is None else world.run) / BAKE_FOLDER / opened.trust_domain
    baker = ProcessBaker(baking, store.root, opened.user)
    baker.sweep()
    jobs = Jobs(larder, baker, node.repository.has, baker.scratch, baker.remove, store.path, os.urandom, node.job_turn)
    place = MeasuringPlace(fleet, larder, node.traffic, config.load_timeout_s, os.urandom, clock, node.job_turn)
    inspector = Inspector(store, fleet, node.table, lambda: starter.holders | jobs.holders | place.holders, own_pids, clock)
    pressure = PressureLimits(
        config.pressure_stall_share, config.pressure_reserve_bytes, config.pressure_step_bytes, config.pressure_pause_s
    )
    keeper = Keeper(store, fleet.trim, KernelMemory(), pressure, clock)
    appraiser = Appraiser(store, EtcdVariants(world.coordinator, opened.trust_domain), node.repository.read)
    return Domain(
        store, runtimes, fleet, larder, evictor, starter, jobs, Measurer(place), Observer(place), inspector, keeper, appraiser,
        node.meter, clock, warm_flavours,
    )  # fmt: skip


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
