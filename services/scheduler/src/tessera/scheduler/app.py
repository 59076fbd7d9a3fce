"""The scheduler, put together. The only place that builds concrete things."""

from __future__ import annotations

import asyncio
import os

import grpc.aio

from tessera import telemetry
from tessera.api.scheduler.v1 import scheduler_pb2_grpc
from tessera.clock import SystemClock
from tessera.coord.etcd import EtcdCoordinator
from tessera.coord.interface import Coordinator
from tessera.domain.ids import TrustDomain
from tessera.domain.records import ServiceRecord, VariantRecord
from tessera.policy.placement import registry as placements
from tessera.policy.scaling import registry as keep_alives
from tessera.policy.start import registry as starts
from tessera.policy.start.costs import CostModel
from tessera.program import Stop, Tasks
from tessera.rpc import RpcServer
from tessera.scheduler.adapters.agents import GrpcAgents
from tessera.scheduler.adapters.artifacts import BlobLists
from tessera.scheduler.adapters.metrics import PrometheusMeter
from tessera.scheduler.adapters.records import EtcdRecords
from tessera.scheduler.config import SchedulerConfig
from tessera.scheduler.core.assignments import Limits
from tessera.scheduler.core.cluster import Cluster
from tessera.scheduler.core.explanations import Explanations
from tessera.scheduler.loops.leading import Elector, LeaderFollower, Leading
from tessera.scheduler.loops.presence import Presence
from tessera.scheduler.loops.pulse import Pulse
from tessera.scheduler.loops.reconciling import Reconciler
from tessera.scheduler.loops.starting import Starter, StartLimits
from tessera.scheduler.server import SchedulerServer

SERVICE = "tessera.api.scheduler.v1.Scheduler"


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
    """The scheduler over any coordinator."""
    clock = SystemClock()
    meter = PrometheusMeter()
    metrics_server = telemetry.MetricsServer(config.metrics_address, meter.registry) if config.metrics_address else None
    placement = placements.make(config.placement_policy)
    policy = starts.make(config.start_policy, placement, CostModel(ms_per_byte=config.fetch_ms_per_mib / (1 << 20)))
    keep_alive = keep_alives.make(config.keep_alive_policy, config.instance_keep_alive_s)
    agents = GrpcAgents()
    async with Tasks(stop) as tasks:
        changed, wake = Pulse(), asyncio.Event()
        leading, cluster, explanations = Leading(config.address), Cluster(), Explanations(config.explanations)
        blobs = BlobLists(config.repository_url, config.artifact_cache)

        def ready(variant: VariantRecord) -> None:
            if variant.artifact:
                blobs.want(variant.artifact)

        records = EtcdRecords(coordinator, [TrustDomain(name) for name in config.trust_domains], changed.fire, ready)
        starter = Starter(
            clock=clock, tasks=tasks, leading=leading, cluster=cluster, records=records, policy=policy, agents=agents, blobs=blobs,
            random_bytes=os.urandom, explanations=explanations, changed=changed, wake=wake, meter=meter,
            limits=StartLimits(
                provisional_s=config.provisional_s, least_budget_s=config.least_start_budget_s,
                settle_s=config.settle_s, attempts=config.start_attempts,
            ),
        )  # fmt: skip
        reconciler = Reconciler(
            clock=clock, coordinator=coordinator, leading=leading, cluster=cluster, records=records, agents=agents, starter=starter,
            keep_alive=keep_alive, wake=wake, meter=meter, period_s=config.reconcile_s,
            limits=Limits(provisional_s=config.provisional_s, node_lost_s=config.node_lost_s),
        )  # fmt: skip
        servicer = SchedulerServer(
            clock=clock, tasks=tasks, leading=leading, starter=starter, reconciler=reconciler, cluster=cluster,
            explanations=explanations, changed=changed, wake=wake,
        )  # fmt: skip
        elector = Elector(coordinator, leading, clock, lease_ttl_s=config.lease_ttl_s, on_end=cluster.reset)

        async def lead() -> None:
            # A leader must know the records before it acts on them.
            for view in records.views:
                await view.synced.wait()
            await elector.run()

        def add(server: grpc.aio.Server) -> None:
            scheduler_pb2_grpc.add_SchedulerServicer_to_server(servicer, server)

        server = RpcServer(config.address, handlers=[add], service_names=[SERVICE])
        await server.start()
        if metrics_server is not None:
            metrics_server.start()
        try:
            for view in records.views:
                tasks.start("view", view.run())
            tasks.start("blob lists", blobs.run())
            tasks.start("leader", LeaderFollower(coordinator, leading, clock).run())
            tasks.start("election", lead())
            tasks.start("reconciling", reconciler.run())
            record = ServiceRecord("scheduler", config.address, config.address)
            tasks.start("presence", Presence(coordinator, clock, record, config.lease_ttl_s).run())
            await stop.wait()
        finally:
            if metrics_server is not None:
                metrics_server.stop()
            await server.stop(config.stop_grace_s)
            await tasks.aclose()
            await agents.close()
