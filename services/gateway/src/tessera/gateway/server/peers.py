"""What the admin door asks of the other services. Their answers stay on the wire's types: the door passes them on as they are."""

from __future__ import annotations

from typing import Protocol

import grpc.aio

from tessera.api.common.v1 import common_pb2
from tessera.api.gateway.v1 import gateway_pb2
from tessera.api.node.v1 import node_pb2
from tessera.api.scheduler.v1 import scheduler_pb2
from tessera.domain.records import ServiceRecord


class Platform(Protocol):
    """The other services at a glance. One that does not answer is missing in the answer, or shown as such; nothing is raised."""

    async def services(self) -> list[gateway_pb2.ServiceStatus]: ...

    async def nodes(self) -> list[node_pb2.NodeStatus]: ...

    async def spans(self, trace_id: str) -> list[common_pb2.Span]: ...


class StartExplanations(Protocol):
    async def explain(self, request_id: str, timeout_s: float) -> scheduler_pb2.ExplainStartResponse:
        """Raises: NotFound when the leader does not know the request; Unavailable."""
        ...


class Announced(Protocol):
    def services_of(self, kind: str) -> list[ServiceRecord]: ...


class Leader(Protocol):
    def address(self) -> str:
        """Raises: Unavailable when nobody leads."""
        ...


class Channels(Protocol):
    def to(self, address: str) -> grpc.aio.Channel: ...
