"""The node agent, put together (its objects in `parts`).

Order of the start: folders, stores (their locks say that we are the only one), relay, adoption, zygotes, server, records. Of the end:
the other way round. When it ends by failing, or is to leave, runtimes and relay live on for the next agent.
"""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Awaitable, Callable, Coroutine
from contextlib import AsyncExitStack
from typing import Any

import grpc.aio

from tessera import telemetry
from tessera.api.node.v1 import node_pb2, node_pb2_grpc
from tessera.clock import Clock, SystemClock
from tessera.coord.etcd import EtcdCoordinator
from tessera.coord.interface import Coordinator
from tessera.node_agent.adapters.files import writable_folder
from tessera.node_agent.adapters.peers import peer_server
from tessera.node_agent.adapters.relays import RelayProcess
from tessera.node_agent.adapters.stores import Stores
from tessera.node_agent.adapters.users import runs_as_users
from tessera.node_agent.config import NodeAgentConfig
from tessera.node_agent.parts import Parts, World, identity_of
from tessera.program import Stop, Tasks
from tessera.rpc import FramedServer, RpcServer
from tessera.telemetry import MetricsServer, get_logger

SERVICE = "tessera.api.node.v1.NodeAgent"
START = f"/{SERVICE}/StartInstance"
RPC_GRACE_S = 2.0
DEPARTED_LOOK_S = 10.0

_log = get_logger(__name__)


async def serve(config: NodeAgentConfig, stop: Stop) -> None:
    """Runs until `stop`.

    Raises:
        FailedPrecondition: a folder cannot be written, the tmpfs is too small, another agent owns a store, an address is in use, or a
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
        stores = Stores(config, run, clock, as_users=runs_as_users(config, run))
        stack.callback(lambda: stores.close(leave=ending.leaves))
        stores.open()
        relay = RelayProcess(config.relay_address, run, state / "logs", config.orphan_s, clock)
        stack.push_async_callback(ending.choose, relay.end, relay.leave)
        await relay.ensure()
        sender = peer_server(config, stores.opened)
        stack.callback(sender.stop)
        identity = identity_of(config, run, relay.address, sender.address)
        tasks = await stack.enter_async_context(Tasks(stop))
        parts = Parts(World(config, coordinator, clock, identity, run, state, tasks), stores.opened)
        stack.push_async_callback(ending.choose, lambda: parts.agent.end(config.drain_ms), parts.agent.leave)
        ending.adopted = True  # what lives from before is left when this is stopped or fails before it is known
        if not await _ended_before(stop, tasks, "adopt what lives", parts.adoption.adopt()):
            return
        await parts.adoption.look_back()
        ending.adopted = any(domain.fleet.members for domain in parts.domains)
        for domain in parts.domains:
            await domain.prepare()
        if config.metrics_address:
            metrics = MetricsServer(config.metrics_address, parts.metrics)
            metrics.start()
            stack.callback(metrics.stop)
        stack.push_async_callback(_close_records, parts, ending)

        def add_servicer(server: grpc.aio.Server) -> None:
            node_pb2_grpc.add_NodeAgentServicer_to_server(parts.servicer, server)

        server = RpcServer(config.address, handlers=[add_servicer], service_names=[SERVICE])
        await server.start()
        stack.push_async_callback(server.stop, RPC_GRACE_S)
        starts = FramedServer(config.start_address, {START: (node_pb2.StartInstanceRequest, parts.servicer.StartInstance)})
        await starts.start()
        stack.push_async_callback(starts.stop, RPC_GRACE_S)
        tasks.start("watch assignments", parts.records.watch(stop))
        tasks.start("keep records", parts.records.keep(stop))
        tasks.start("reconcile", parts.agent.run(stop))
        tasks.start("report", parts.reporter.run(stop))
        tasks.start("keep the relay", _keep_relay(relay, stop))
        tasks.start("unmount stores of departed trust domains", _unmount_departed(stores, stop))
        for domain in parts.domains:
            tasks.start(f"keep the store of {domain.name}", domain.keep(stop))
        ending.started = True
        # What was imported and made so far stays: without this a full collection takes tens of milliseconds in the midst of starts.
        gc.collect()
        gc.freeze()
        _log.info(
            "node agent ready",
            node_id=identity.node_id,
            address=identity.address,
            relay=identity.relay_address,
            trust_domains=[opened.trust_domain for opened in stores.opened],
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


async def _ended_before(stop: Stop, tasks: Tasks, name: str, work: Coroutine[Any, Any, None]) -> bool:
    """Whether the work came to its end; what fails, or is to stop before, is not at work any more."""
    working, stopped = tasks.start(name, work), tasks.start(f"{name}: stopped", stop.wait())
    await asyncio.wait((working, stopped), return_when=asyncio.FIRST_COMPLETED)
    for task in (working, stopped):
        task.cancel()
    await asyncio.wait((working, stopped))
    return not stop.is_set()


async def _close_records(parts: Parts, ending: _Ending) -> None:
    await parts.records.close(leave=ending.leaves)


async def _unmount_departed(stores: Stores, stop: Stop) -> None:
    """Until none is left: nobody here hears when a runtime that this agent did not adopt ends."""
    while await asyncio.to_thread(stores.unmount_departed) and not await stop.wait_for(DEPARTED_LOOK_S):
        pass


async def _keep_relay(relay: RelayProcess, stop: Stop) -> None:
    while not await stop.wait_for(1.0):
        if not relay.alive:
            await relay.ensure()
