"""The scheduler, put together. The only place that builds concrete things."""

from __future__ import annotations

import asyncio
import gc
import os
from collections.abc import Sequence

import grpc.aio

from tessera import telemetry
from tessera.api.scheduler.v1 import scheduler_pb2, scheduler_pb2_grpc
from tessera.clock import Clock, SystemClock
from tessera.coord.etcd import EtcdCoordinator
from tessera.coord.interface import Coordinator
from tessera.coord.presence import announce
from tessera.domain.ids import TrustDomain
from tessera.domain.records import ServiceRecord, VariantRecord
from tessera.engine import EngineCalls
from tessera.policy.autoscaling import registry as autoscalers
from tessera.policy.balance import registry as balancers
from tessera.policy.load import registry as load_policies
from tessera.policy.nodes import registry as node_policies
from tessera.policy.placement import registry as placements
from tessera.policy.placement.homes import HomesPlacement
from tessera.policy.scaling import registry as keep_alives
from tessera.policy.start import registry as starts
from tessera.policy.start.costs import CostModel
from tessera.program import Stop, Tasks
from tessera.rpc import FramedCalls, FramedServer, RpcServer
from tessera.scheduler.adapters.agents import RemoteAgents
from tessera.scheduler.adapters.artifacts import BlobLists
from tessera.scheduler.adapters.docker_nodes import DockerNodes
from tessera.scheduler.adapters.graph_plans import GraphPlans
from tessera.scheduler.adapters.local_nodes import LocalNodes
from tessera.scheduler.adapters.metrics import PrometheusMeter
from tessera.scheduler.adapters.records import EtcdRecords
from tessera.scheduler.config import SchedulerConfig
from tessera.scheduler.core.assignments import Limits
from tessera.scheduler.core.cluster import Cluster
from tessera.scheduler.core.donors import DonorRules
from tessera.scheduler.core.explanations import Explanations
from tessera.scheduler.loops.autoscaling import Autoscaler
from tessera.scheduler.loops.balancing import Balancing
from tessera.scheduler.loops.donating import Donating
from tessera.scheduler.loops.judging import Judge
from tessera.scheduler.loops.leading import Elector, LeaderFollower, Leading
from tessera.scheduler.loops.learning import Learning
from tessera.scheduler.loops.moving import Mover
from tessera.scheduler.loops.pooling import NodePool
from tessera.scheduler.loops.pulse import Pulse
from tessera.scheduler.loops.reconciling import Reconciler
from tessera.scheduler.loops.starting import Starter, StartLimits
from tessera.scheduler.ports import Agents, Meter, NodeProvider, RandomBytes
from tessera.scheduler.server import SchedulerServer

SERVICE = "tessera.api.scheduler.v1.Scheduler"
START = f"/{SERVICE}/StartInstance"


async def serve(config: SchedulerConfig, stop: Stop) -> None:
    """Runs until `stop`. Stops in this order: the server, the loops (which give the leadership back), the agents' channels, etcd."""
    telemetry.configure(
        "scheduler",
        config.otlp_endpoint,
        config.trace_ring_size,
        sample_ratio=config.trace_sample_ratio,
        log_level=config.log_level,
    )
    coordinator = EtcdCoordinator(config.etcd_endpoints)
    try:
        await run(config, stop, coordinator)
    finally:
        await coordinator.close()


async def run(config: SchedulerConfig, stop: Stop, coordinator: Coordinator) -> None:
    """The scheduler's process over any coordinator."""
    meter = PrometheusMeter()
    metrics_server = telemetry.MetricsServer(config.metrics_address, meter.registry) if config.metrics_address else None
    async with Tasks(stop) as tasks:
        agents = RemoteAgents(FramedCalls(tasks))
        scheduler = Scheduler(config, coordinator, agents=agents, clock=SystemClock(), tasks=tasks, random_bytes=os.urandom, meter=meter)

        def add(server: grpc.aio.Server) -> None:
            scheduler_pb2_grpc.add_SchedulerServicer_to_server(scheduler.servicer, server)

        server = RpcServer(config.address, handlers=[add], service_names=[SERVICE])
        starts = FramedServer(config.start_address, {START: (scheduler_pb2.StartInstanceRequest, scheduler.servicer.StartInstance)})
        await starts.start()
        await server.start()
        if metrics_server is not None:
            metrics_server.start()
        try:
            scheduler.start()
            tasks.start("freeze", _freeze(scheduler.records))
            await stop.wait()
        finally:
            if metrics_server is not None:
                metrics_server.stop()
            scheduler.servicer.close()
            await asyncio.gather(starts.stop(config.stop_grace_s), server.stop(config.stop_grace_s))
            await tasks.aclose()
            await agents.close()
            await scheduler.close()


async def _freeze(records: EtcdRecords) -> None:
    """What was imported and read stays: without this a full collection walks all of it, for milliseconds in the midst of starts."""
    await records.wait_synced()
    gc.collect()
    gc.freeze()


class Scheduler:
    """Everything but the server and the process: built over the given world, started by `start`."""

    def __init__(
        self,
        config: SchedulerConfig,
        coordinator: Coordinator,
        *,
        agents: Agents,
        clock: Clock,
        tasks: Tasks,
        random_bytes: RandomBytes,
        meter: Meter,
    ) -> None:
        """Raises: InvalidInput when the settings name a policy that does not exist; FailedPrecondition: one that needs a library more."""
        self._tasks = tasks
        costs = CostModel(ms_per_byte=config.fetch_ms_per_mib / (1 << 20))
        keep_alive = keep_alives.make(config.keep_alive_policy, config.instance_keep_alive_s)
        changed, wake = Pulse(), asyncio.Event()
        address = config.advertised(config.address)
        self.leading, self.cluster, self.explanations = Leading(address), Cluster(), Explanations(config.explanations)
        self._blobs = BlobLists(config.repository_url, config.artifact_cache, options=config.repository_options)
        domains = [TrustDomain(name) for name in config.trust_domains]
        self.records = EtcdRecords(coordinator, domains, changed.fire, self._variant_ready)
        self._learning = Learning(clock, self.cluster, self.records, costs, learns=config.learn_start_times)
        rules = DonorRules(config.transform_idle_s, config.instance_keep_alive_s) if config.transform_idle_s else None
        self._plans = GraphPlans(self._blobs.read, clock, self.leading.until_ours)
        self._donating = Donating(clock, self.cluster, self.records, self._plans, self._blobs, rules, costs, self._learning)
        self._balancing = self._balances(config, domains, clock)
        self._plans_wanted = rules is not None or self._balancing is not None
        placement = placements.make(config.placement_policy)
        if self._balancing is not None:
            placement = HomesPlacement(placement, self._balancing.home)
        self.starter = Starter(
            clock=clock,
            tasks=tasks,
            leading=self.leading,
            cluster=self.cluster,
            records=self.records,
            policy=starts.make(config.start_policy, placement, costs),
            agents=agents,
            blobs=self._blobs,
            random_bytes=random_bytes,
            explanations=self.explanations,
            changed=changed,
            wake=wake,
            meter=meter,
            limits=StartLimits(
                provisional_s=config.provisional_s,
                least_budget_s=config.least_start_budget_s,
                settle_s=config.settle_s,
                patience_s=config.patience_s,
                attempts=config.start_attempts,
            ),
            donors=self._donating,
            learning=self._learning,
        )
        self.reconciler = Reconciler(
            clock=clock,
            coordinator=coordinator,
            leading=self.leading,
            cluster=self.cluster,
            records=self.records,
            agents=agents,
            starter=self.starter,
            keep_alive=keep_alive,
            wake=wake,
            meter=meter,
            limits=Limits(provisional_s=config.provisional_s, node_lost_s=config.node_lost_s),
            learning=self._learning,
            period_s=config.reconcile_s,
        )
        self.autoscaler = Autoscaler(
            clock=clock,
            tasks=tasks,
            coordinator=coordinator,
            leading=self.leading,
            cluster=self.cluster,
            records=self.records,
            starter=self.starter,
            policy=autoscalers.make(config.autoscaling_policy),
            wake=wake,
            meter=meter,
            starts_per_tick=config.starts_per_tick,
        )
        self._provider = _provider(config, clock)
        self.pool = None if self._provider is None else self._pool(config, self._provider, coordinator, clock, tasks, wake, meter)
        mover = Mover(
            clock=clock,
            tasks=tasks,
            coordinator=coordinator,
            cluster=self.cluster,
            records=self.records,
            blobs=self._blobs,
            starter=self.starter,
            wake=wake,
            meter=meter,
        )
        self.judge = Judge(
            clock=clock,
            coordinator=coordinator,
            leading=self.leading,
            cluster=self.cluster,
            records=self.records,
            policy=load_policies.make(config.load_policy),
            changed=changed,
            mover=mover if config.move_interfered else None,
            meter=meter,
        )
        self.servicer = SchedulerServer(
            clock=clock,
            tasks=tasks,
            leading=self.leading,
            starter=self.starter,
            reconciler=self.reconciler,
            cluster=self.cluster,
            explanations=self.explanations,
            agents=agents,
            changed=changed,
        )
        self._elector = Elector(coordinator, self.leading, clock, lease_ttl_s=config.lease_ttl_s, on_end=self._forget)
        self._follower = LeaderFollower(coordinator, self.leading, clock)
        self._presence = ServiceRecord("scheduler", address, address, {"start_address": config.advertised(config.start_address)})
        self._coordinator, self._clock, self._lease_ttl_s = coordinator, clock, config.lease_ttl_s

    def _forget(self) -> None:
        """The term is over."""
        self.cluster.reset()
        self._learning.reset()
        self._donating.reset()

    def start(self) -> None:
        for view in self.records.views:
            self._tasks.start("view", view.run())
        self._tasks.start("blob lists", self._blobs.run())
        self._tasks.start("plans", self._plans.run())
        self._tasks.start("leader", self._follower.run())
        self._tasks.start("election", self._lead())
        self._tasks.start("reconciling", self.reconciler.run())
        self._tasks.start("judging", self.judge.run())
        self._tasks.start("autoscaling", self.autoscaler.run())
        if self.pool is not None:
            self._tasks.start("node pool", self.pool.run())
        if self._balancing is not None:
            self._tasks.start("balancing", self._balancing.run())
        self._tasks.start("presence", announce(self._coordinator, self._clock, self._presence, self._lease_ttl_s))

    async def close(self) -> None:
        """After its tasks."""
        if self._provider is not None:
            await self._provider.close()

    def _balances(self, config: SchedulerConfig, domains: Sequence[TrustDomain], clock: Clock) -> Balancing | None:
        if config.balance_policy == "none":
            return None
        balancer = balancers.make(config.balance_policy, self._plans.edits_ms)
        return Balancing(
            clock, self.leading, self.cluster, self.records, self._blobs, balancer, lambda: self._plans.graphs, domains, config.balance_s
        )

    def _pool(
        self,
        config: SchedulerConfig,
        provider: NodeProvider,
        coordinator: Coordinator,
        clock: Clock,
        tasks: Tasks,
        wake: asyncio.Event,
        meter: Meter,
    ) -> NodePool:
        return NodePool(
            clock=clock,
            tasks=tasks,
            coordinator=coordinator,
            leading=self.leading,
            cluster=self.cluster,
            records=self.records,
            starter=self.starter,
            provider=provider,
            policy=node_policies.make(config.node_policy),
            wake=wake,
            meter=meter,
            most=config.most_added_nodes,
            period_s=config.node_period_s,
        )

    async def _lead(self) -> None:
        """A leader must know the records before it acts on them."""
        await self.records.wait_synced()
        await self._elector.run()

    def _variant_ready(self, variant: VariantRecord) -> None:
        if variant.artifact:
            self._blobs.want(variant.artifact)
        if self._plans_wanted and variant.backend == "aten" and variant.graph:
            self._plans.learn(variant.graph)


def _provider(config: SchedulerConfig, clock: Clock) -> NodeProvider | None:
    if config.node_provider == "docker":
        return DockerNodes(EngineCalls(config.engine_url), config.node_like, config.node_prefix, clock)
    if config.node_provider == "local" and config.node_template is not None and config.node_folder is not None:
        return LocalNodes(config.node_template, config.node_folder, config.node_prefix, clock)
    return None
