"""The gateway, put together. The only place that builds concrete things."""

from __future__ import annotations

import asyncio
import gc
import os
import stat
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

import grpc.aio
from prometheus_client import CollectorRegistry

from tessera import telemetry
from tessera.api.gateway.v1 import gateway_pb2_grpc
from tessera.api.open_inference import inference_pb2
from tessera.clock import Clock, SystemClock
from tessera.coord.etcd import EtcdCoordinator
from tessera.coord.interface import Coordinator
from tessera.coord.presence import announce
from tessera.domain.errors import FailedPrecondition
from tessera.domain.ids import RuntimeId, TrustDomain
from tessera.domain.records import ServiceRecord
from tessera.gateway.adapters.channels import Channels
from tessera.gateway.adapters.identifiers import Identifiers
from tessera.gateway.adapters.links import FrameLinks
from tessera.gateway.adapters.metrics import PrometheusMeter
from tessera.gateway.adapters.platform import Platform
from tessera.gateway.adapters.scheduler import Leader, SchedulerClient
from tessera.gateway.adapters.watched import WatchedState
from tessera.gateway.config import GatewayConfig
from tessera.gateway.core.catalogue import Catalogue
from tessera.gateway.core.decisions import DecisionLog
from tessera.gateway.loops.inference import Inference
from tessera.gateway.loops.starts import StartQueues
from tessera.gateway.server import admin, open_inference, proxy
from tessera.policy.instance import registry as instance_policies
from tessera.policy.variant import registry as policies
from tessera.program import Stop, Tasks, host_id
from tessera.rpc import FramedCalls, RpcServer

SWEEP_S = 5.0
"""Far longer than the watches of instances and nodes can differ when one lease ends both."""

GC_THRESHOLDS = (20_000, 20, 20)

_log = telemetry.get_logger("tessera.gateway")


@dataclass(frozen=True, slots=True)
class Doors:
    """Where a running gateway answers."""

    address: str
    admin_address: str
    metrics_port: int


async def serve(config: GatewayConfig, stop: Stop) -> None:
    """Runs until `stop`. Raises: FailedPrecondition when an address is taken or the token cannot be read."""
    telemetry.configure(
        "gateway",
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


async def run(
    config: GatewayConfig,
    stop: Stop,
    coordinator: Coordinator,
    clock: Clock | None = None,
    on_started: Callable[[Doors], None] | None = None,
) -> None:
    """The gateway over any coordinator. It ends in this order: health says no, its record goes, requests end, doors close."""
    clock = clock or SystemClock()
    token = read_token(config.token_file, config.token_file_shared)
    metrics = CollectorRegistry()
    meter = PrometheusMeter(metrics)
    instances = instance_policies.make(config.instance_policy, Random().random)
    catalogue = Catalogue(TrustDomain(config.trust_domain), policies.make(config.variant_policy), instances)
    decisions = DecisionLog(config.explain_ring_size)
    channels = Channels(config.max_message_bytes)
    leader = Leader(coordinator, channels)
    metrics_server = telemetry.MetricsServer(config.metrics_address, metrics) if config.metrics_address else None
    async with Tasks(stop) as tasks:

        def link_changed(runtime_id: RuntimeId, connected: bool) -> None:
            catalogue.fleet.mark_runtime(runtime_id, suspect=not connected)

        links = FrameLinks(
            config.host_id or host_id(), tasks, clock, max_message_bytes=config.max_message_bytes,
            on_change=link_changed, wanted=lambda runtime_id: runtime_id in catalogue.runtimes(),
        )  # fmt: skip
        watched = WatchedState(coordinator, catalogue, links.prepare)
        calls = FramedCalls(tasks)
        scheduler = SchedulerClient(leader, lambda: watched.services_of("scheduler"), channels, calls, catalogue.trust_domain)
        watched.services.on_change(lambda _key, _old, _new: scheduler.expect())
        starts = StartQueues(
            catalogue, scheduler, links, tasks, clock, meter, limit=config.start_queue_limit, budget_s=config.start_budget_s
        )  # fmt: skip
        inference = Inference(
            catalogue, lambda: watched.synced, links, starts, decisions, clock, meter, Identifiers(),
            default_budget_s=config.default_budget_s, held_bytes_limit=config.held_bytes_limit,
            export_spans=config.otlp_endpoint is not None,
        )  # fmt: skip
        meter.in_flight = lambda: inference.in_flight

        def ready() -> bool:
            return watched.synced and not stop.is_set()

        public = RpcServer(
            config.address,
            handlers=[_generic(open_inference.OpenInferenceHandler(inference, catalogue, ready))],
            service_names=[open_inference.SERVICE],
            pools=[inference_pb2.DESCRIPTOR.pool],
            untouched=[open_inference.MODEL_INFER],
            max_message_bytes=config.max_message_bytes,
            reuse_port=config.reuse_port,
        )
        platform = Platform(coordinator, catalogue, watched, leader, channels, ",".join(config.etcd_endpoints))
        servicer = admin.AdminServer(catalogue, decisions, platform, scheduler)

        def add_admin(server: grpc.aio.Server) -> None:
            gateway_pb2_grpc.add_GatewayServicer_to_server(servicer, server)

        private = RpcServer(
            config.admin_address,
            handlers=[add_admin, _generic(proxy.ProxyHandler(proxy.Directory(catalogue, watched, leader), channels))],
            service_names=[admin.SERVICE, *proxy.SERVICES],
            token=token,
            max_message_bytes=config.max_message_bytes,
        )
        presence: asyncio.Task[None] | None = None
        try:
            if metrics_server is not None:
                metrics_server.start()
            await public.start()
            await private.start()
            for name in ("", open_inference.SERVICE):
                await public.set_serving(False, name)
            watched.start(tasks)
            tasks.start("leader", leader.run())
            tasks.start("sweep", _sweep(catalogue, clock))
            presence = tasks.start("presence", announce(coordinator, clock, _record(config, public, private), config.session_ttl_s))
            tasks.start("health", _serving_once_synced(watched, public))
            if on_started is not None:
                on_started(Doors(public.address, private.address, metrics_server.port if metrics_server is not None else 0))
            _log.info("listening", address=public.address, admin_address=private.address, metrics_address=config.metrics_address)
            await stop.wait()
            # New clients go elsewhere; those that are here are answered.
            await public.drain()
            presence.cancel()
            _log.info("draining", reason=stop.reason, in_flight=inference.in_flight, grace_s=config.drain_grace_s)
        finally:
            ends: list[Awaitable[Any]] = [public.stop(config.drain_grace_s), private.stop(min(1.0, config.drain_grace_s))]
            if presence is not None and presence.cancelling():
                # It may still be giving its lease back; cancelled once more, below, it would leave the record until the lease runs out.
                ends.append(asyncio.wait({presence}))
            await asyncio.gather(*ends)
            inference.close()
            links.close()
            calls.close()
            await tasks.aclose()
            await channels.close()
            if metrics_server is not None:
                await asyncio.to_thread(metrics_server.stop)


async def _serving_once_synced(watched: WatchedState, server: RpcServer) -> None:
    await watched.wait_synced()
    # What was read stays: without this every full collection walks all records, for milliseconds in the midst of requests.
    gc.collect()
    gc.freeze()
    # A request leaves a decision behind and no cycle: to look every 700 objects finds nothing and costs each request microseconds.
    gc.set_threshold(*GC_THRESHOLDS)
    for name in ("", open_inference.SERVICE):
        await server.set_serving(True, name)


async def _sweep(catalogue: Catalogue, clock: Clock) -> None:
    while True:
        await clock.sleep(SWEEP_S)
        catalogue.fleet.sweep()


def _generic(handler: grpc.GenericRpcHandler) -> Callable[[grpc.aio.Server], None]:
    return lambda server: server.add_generic_rpc_handlers((handler,))


def _record(config: GatewayConfig, public: RpcServer, private: RpcServer) -> ServiceRecord:
    own_id = config.gateway_id or f"{os.uname().nodename}-{public.address}".replace("/", "-")
    metadata = {"endpoint": config.advertised(public.address), "trust_domain": config.trust_domain}
    return ServiceRecord("gateway", own_id, config.advertised(private.address), metadata)


def read_token(path: Path, shared: bool = False) -> str:
    """The admin token. Raises: FailedPrecondition: the file is not there, empty, or (unless `shared`) not for its owner alone."""
    try:
        mode = path.stat().st_mode
        token = path.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise FailedPrecondition(f"token_file {path}: {error}") from None
    if mode & (stat.S_IRWXG | stat.S_IRWXO) and not shared:
        raise FailedPrecondition(f"token_file {path} has mode {stat.S_IMODE(mode):04o}: must be 0600, for its owner alone")
    if not token:
        raise FailedPrecondition(f"token_file {path} is empty")
    return token
