"""The profiler, put together. The only place that builds concrete things."""

from __future__ import annotations

import grpc.aio

from tessera import telemetry
from tessera.api.profiler.v1 import profiler_pb2_grpc
from tessera.clock import SystemClock
from tessera.coord.etcd import EtcdCoordinator
from tessera.coord.presence import announce
from tessera.domain.records import ServiceRecord
from tessera.profiler.adapters.agents import GrpcAgents
from tessera.profiler.adapters.records import EtcdRecords
from tessera.profiler.batch.app import SERVICE as BATCH_SERVICE
from tessera.profiler.batch.app import Batch
from tessera.profiler.config import ProfilerConfig
from tessera.profiler.core.planning import Limits
from tessera.profiler.loops import Profiler, RunLimits
from tessera.profiler.server import ProfilerServer
from tessera.program import Stop, Tasks
from tessera.rpc import RpcServer

SERVICE = "tessera.api.profiler.v1.Profiler"


async def serve(config: ProfilerConfig, stop: Stop) -> None:
    """Runs until `stop`. Stops in this order: the server, what it measures and batch jobs, channels, etcd."""
    telemetry.configure(
        "profiler",
        config.otlp_endpoint,
        config.trace_ring_size,
        sample_ratio=config.trace_sample_ratio,
        log_level=config.log_level,
    )
    clock = SystemClock()
    coordinator = EtcdCoordinator(config.etcd_endpoints)
    agents = GrpcAgents()
    batch = Batch(config, coordinator, clock, config.advertised(config.address), config.lease_ttl_s)
    full = Limits(
        config.variant_budget_s,
        config.full_seconds_per_row,
        config.min_repeats,
        config.spread,
        config.latency_cap_ms,
        config.private_cap_bytes,
    )
    limits = RunLimits(full, config.quick_seconds_per_row, config.row_timeout_s)
    try:
        async with Tasks(stop) as tasks:
            profiler = Profiler(clock=clock, tasks=tasks, records=EtcdRecords(coordinator), agents=agents, limits=limits)
            servicer = ProfilerServer(profiler)

            def add(server: grpc.aio.Server) -> None:
                profiler_pb2_grpc.add_ProfilerServicer_to_server(servicer, server)

            server = RpcServer(config.address, handlers=[add, batch.add], service_names=[SERVICE, BATCH_SERVICE])
            await server.start()
            try:
                address = config.advertised(server.address)
                record = ServiceRecord("profiler", address, address)
                tasks.start("presence", announce(coordinator, clock, record, config.lease_ttl_s))
                batch.start(tasks)
                await stop.wait()
            finally:
                await server.stop(config.stop_grace_s)
    finally:
        await batch.close()
        await agents.close()
        await coordinator.close()
