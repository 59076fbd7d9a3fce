"""The admin door to the other services: bytes in, bytes out, any kind of call, errors and cancellation passed on."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable
from typing import Any

import grpc
import grpc.aio

from tessera.domain.errors import InvalidInput, NotFound, TesseraError, Unavailable
from tessera.domain.ids import NodeId
from tessera.gateway.core.catalogue import Catalogue
from tessera.gateway.server.peers import Announced, Channels, Leader

NODE_METADATA = "tessera-node"
_PREFIX = "/tessera.api."
_KINDS = {"registry": "registry", "scheduler": "scheduler", "profiler": "profiler", "batch": "profiler", "node": "node-agent"}
SERVICES = (
    "tessera.api.registry.v1.Registry",
    "tessera.api.scheduler.v1.Scheduler",
    "tessera.api.profiler.v1.Profiler",
    "tessera.api.batch.v1.Batch",
    "tessera.api.node.v1.NodeAgent",
)
_OWN_METADATA = frozenset({"authorization", "traceparent", "user-agent", "te", "content-type", "host"})
"""Metadata that belongs to the connection (or that the channel sets anew)."""

Context = grpc.aio.ServicerContext[Any, Any]


class Directory:
    """Where a proxied call goes."""

    def __init__(self, catalogue: Catalogue, announced: Announced, leader: Leader) -> None:
        self._catalogue = catalogue
        self._announced = announced
        self._leader = leader

    def address(self, kind: str, node: str) -> str:
        """Raises: Unavailable, NotFound, InvalidInput: nobody of that kind is there, or more than one node could be meant."""
        if kind == "scheduler":
            return self._leader.address()
        if kind == "node-agent":
            return self._agent(node)
        found = self._announced.services_of(kind)
        if not found:
            raise Unavailable(f"no {kind} has announced itself")
        return found[0].address

    def _agent(self, node: str) -> str:
        nodes = self._catalogue.nodes
        if node:
            if NodeId(node) not in nodes:
                raise NotFound(f"node {node!r} is not there{'; there are ' + ', '.join(sorted(nodes)) if nodes else ''}")
            return nodes[NodeId(node)].agent_address
        if not nodes:
            raise Unavailable("no node is there")
        if len(nodes) > 1:
            raise InvalidInput(f"metadata {NODE_METADATA}", None, f"must name one of {', '.join(sorted(nodes))}")
        return next(iter(nodes.values())).agent_address


class ProxyHandler(grpc.GenericRpcHandler):
    """Passes `/tessera.api.{registry,scheduler,profiler,batch,node}.v1.*` on. On the wire every kind of call is a stream each way, so one
    handler does for all four.
    """

    def __init__(self, directory: Directory, channels: Channels) -> None:
        self._directory = directory
        self._channels = channels
        self._handlers: dict[str, grpc.RpcMethodHandler[Any, Any]] = {}

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler[Any, Any] | None:
        method: str = handler_call_details.method
        service = method[1:].rpartition("/")[0]
        if service not in SERVICES:
            return None
        handler = self._handlers.get(method)
        if handler is None:
            kind = _KINDS[service[len(_PREFIX) - 1 :].partition(".")[0]]
            handler = grpc.stream_stream_rpc_method_handler(_Forward(self._directory, self._channels, method, kind))
            if len(self._handlers) < 256:
                self._handlers[method] = handler
        return handler


class _Forward:
    def __init__(self, directory: Directory, channels: Channels, method: str, kind: str) -> None:
        self._directory = directory
        self._channels = channels
        self._method = method
        self._kind = kind

    async def __call__(self, requests: AsyncIterator[bytes], context: Context) -> None:
        metadata = _passed_on(context.invocation_metadata() or ())
        address = self._directory.address(self._kind, dict(metadata).get(NODE_METADATA, ""))
        call: Any = self._channels.to(address).stream_stream(self._method)(timeout=context.time_remaining(), metadata=metadata)

        async def upstream() -> None:
            try:
                async for message in requests:
                    await call.write(message)
                await call.done_writing()
            except (TesseraError, asyncio.InvalidStateError):
                # The call has ended early; its status comes out below, where the answers are read.
                return

        try:
            async with asyncio.TaskGroup() as group:
                writing = group.create_task(upstream())
                while (answer := await call.read()) is not grpc.aio.EOF:
                    await context.write(answer)
                writing.cancel()
            context.set_trailing_metadata(tuple(await call.trailing_metadata() or ()))
        except BaseExceptionGroup as group_error:
            # One failure only: the reader's. Its kind must reach the client as it is.
            raise group_error.exceptions[0] from None
        finally:
            call.cancel()


def _passed_on(metadata: Iterable[tuple[str, Any]]) -> list[tuple[str, Any]]:
    return [(key, value) for key, value in metadata if key not in _OWN_METADATA and not key.startswith((":", "grpc-"))]
