"""What the other services say when people ask: their health, their nodes, their spans."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable

from grpc_health.v1 import health_pb2, health_pb2_grpc

from tessera.api.common.v1 import common_pb2, traces_pb2, traces_pb2_grpc
from tessera.api.gateway.v1 import gateway_pb2
from tessera.api.node.v1 import node_pb2, node_pb2_grpc
from tessera.coord.interface import Coordinator
from tessera.domain.errors import TesseraError
from tessera.domain.records import NodeRecord
from tessera.gateway.adapters.channels import Channels
from tessera.gateway.adapters.scheduler import Leader
from tessera.gateway.adapters.watched import WatchedState
from tessera.gateway.core.catalogue import Catalogue

ASK_S = 2.0
"""How long one service may take; a dead one must not hold up the picture of the others."""


class Platform:
    def __init__(
        self, coordinator: Coordinator, catalogue: Catalogue, watched: WatchedState, leader: Leader, channels: Channels, etcd: str
    ) -> None:
        self._coordinator = coordinator
        self._catalogue = catalogue
        self._watched = watched
        self._leader = leader
        self._channels = channels
        self._etcd = etcd

    async def services(self) -> list[gateway_pb2.ServiceStatus]:
        """Every announced service and every node agent, each asked for its health, and etcd."""
        records = sorted(self._watched.services.values(), key=lambda record: (record.kind, record.service_id))
        wanted = [(record.kind, record.service_id, record.address) for record in records if record.kind != "node-agent"]
        wanted += [("node-agent", str(node.node_id), node.agent_address) for node in self._nodes()]
        asked = [self._service(*one) for one in wanted]
        return list(await asyncio.gather(self._etcd_status(), *asked))

    async def nodes(self) -> list[node_pb2.NodeStatus]:
        """What each node's agent reports of this gateway's trust domain, without digest lists; an agent that does not answer leaves what
        its record says."""
        return list(await asyncio.gather(*(self._node(node) for node in self._nodes())))

    async def spans(self, trace_id: str) -> list[common_pb2.Span]:
        """The spans of a trace that other services still hold."""
        addresses = {record.address for record in self._watched.services.values() if record.kind != "gateway"}
        addresses |= {node.agent_address for node in self._nodes()}
        found = await asyncio.gather(*(self._spans(address, trace_id) for address in sorted(addresses)))
        return [span for spans in found for span in spans]

    def _nodes(self) -> Iterable[NodeRecord]:
        return sorted(self._catalogue.nodes.values(), key=lambda node: node.node_id)

    async def _service(self, kind: str, service_id: str, address: str) -> gateway_pb2.ServiceStatus:
        status = gateway_pb2.ServiceStatus(kind=kind, id=service_id, address=address)
        try:
            stub = health_pb2_grpc.HealthStub(self._channels.to(address))
            answer = await stub.Check(health_pb2.HealthCheckRequest(), timeout=ASK_S)
            status.ready = answer.status == health_pb2.HealthCheckResponse.SERVING
            status.detail = "" if status.ready else "not serving"
            if kind == "scheduler" and status.ready:
                status.detail = "leader" if self._leads(address) else "standby"
        except TesseraError as error:
            status.detail = f"{error.kind}: {error.message}"
        return status

    def _leads(self, address: str) -> bool:
        try:
            return self._leader.address() == address
        except TesseraError:
            return False

    async def _etcd_status(self) -> gateway_pb2.ServiceStatus:
        status = gateway_pb2.ServiceStatus(kind="etcd", id="etcd", address=self._etcd)
        try:
            async with asyncio.timeout(ASK_S):
                await self._coordinator.list("/tessera/v1/elections/")
            status.ready = True
        except (TesseraError, TimeoutError) as error:
            status.detail = str(error) or f"no answer within {ASK_S} s"
        return status

    async def _node(self, node: NodeRecord) -> node_pb2.NodeStatus:
        try:
            stub = node_pb2_grpc.NodeAgentStub(self._channels.to(node.agent_address))
            request = node_pb2.GetStatusRequest(trust_domain=self._catalogue.trust_domain)
            status: node_pb2.NodeStatus = (await stub.GetStatus(request, timeout=ASK_S)).status
            for store in status.stores:
                del store.digests_added[:]
                del store.digests_removed[:]
            return status
        except TesseraError:
            return node_pb2.NodeStatus(
                node_id=node.node_id,
                build_class=node.build_class,
                profile_class=node.profile_class,
                flavours=node.flavours,
                agent_address=node.agent_address,
                cpu_count=node.cpu_count,
                stores=[node_pb2.StoreStatus(trust_domain=node.trust_domain, budget_bytes=node.store_budget_bytes)],
            )

    async def _spans(self, address: str, trace_id: str) -> list[common_pb2.Span]:
        try:
            stub = traces_pb2_grpc.TracesStub(self._channels.to(address))
            answer = await stub.GetSpans(traces_pb2.GetSpansRequest(trace_id=trace_id), timeout=ASK_S)
            return list(answer.spans)
        except TesseraError:
            return []
