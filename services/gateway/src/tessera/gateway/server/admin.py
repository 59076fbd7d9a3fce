"""The gateway's own admin service: the platform at a glance, why a request went where it went, and its spans."""

from __future__ import annotations

import asyncio
import re
from typing import Any

from tessera.api.common.v1 import common_pb2
from tessera.api.gateway.v1 import gateway_pb2, gateway_pb2_grpc
from tessera.api.node.v1 import node_pb2
from tessera.domain.errors import InvalidInput, NotFound, TesseraError
from tessera.domain.ids import InstanceId
from tessera.domain.instance import InstanceState
from tessera.domain.records import LoadState
from tessera.gateway.core.catalogue import Catalogue
from tessera.gateway.core.decisions import DecisionLog
from tessera.gateway.core.spans import RequestSpan, spans_of_decision
from tessera.gateway.server import explaining
from tessera.gateway.server.peers import Platform, StartExplanations
from tessera.rpc import encode_span
from tessera.telemetry import spans_of
from tessera.wire import decode_objectives

SERVICE = "tessera.api.gateway.v1.Gateway"
ASK_S = 2.0

_REQUEST_ID = re.compile(r"[0-9a-f]{32}")


class AdminServer(gateway_pb2_grpc.GatewayServicer):
    def __init__(self, catalogue: Catalogue, decisions: DecisionLog, platform: Platform, scheduler: StartExplanations) -> None:
        self._catalogue = catalogue
        self._decisions = decisions
        self._platform = platform
        self._scheduler = scheduler

    async def GetPlatform(self, request: gateway_pb2.GetPlatformRequest, context: Any) -> gateway_pb2.GetPlatformResponse:
        services, nodes = await asyncio.gather(self._platform.services(), self._platform.nodes())
        for node in nodes:
            self._say_load(node)
        return gateway_pb2.GetPlatformResponse(services=services, nodes=nodes, models=len(self._catalogue.models))

    def _say_load(self, node: node_pb2.NodeStatus) -> None:
        """The leader judges loads, and says so in etcd where an instance is not merely active."""
        for instance in node.instances:
            record = self._catalogue.fleet.loads.get(InstanceId(instance.instance_id))
            if record is not None:
                instance.load_state, instance.load_reason = record.state.value, record.reason
            elif instance.state == InstanceState.READY:
                instance.load_state = LoadState.ACTIVE.value

    async def Explain(self, request: gateway_pb2.ExplainRequest, context: Any) -> gateway_pb2.ExplainResponse:
        if request.model:
            if request.request_id:
                raise InvalidInput("model", request.model, "a request_id is given: ask for one of the two")
            return explaining.of_model(self._catalogue, self._catalogue.route(request.model, "", decode_objectives(request.objectives)))
        request_id = _checked(request.request_id)
        decision = self._decisions.get(request_id)
        if decision is None:
            raise NotFound(f"request {request_id!r} was not answered here, or is too long ago")
        answer = explaining.of_decision(self._catalogue, decision)
        # The ids of requests that shared a start differ; the scheduler may know it by either.
        for known_as in dict.fromkeys(name for name in (decision.start_request_id, request_id) if decision.start_request_id and name):
            try:
                answer.start.CopyFrom(await self._scheduler.explain(known_as, ASK_S))
                break
            except TesseraError:
                continue
        return answer

    async def GetTrace(self, request: gateway_pb2.GetTraceRequest, context: Any) -> gateway_pb2.GetTraceResponse:
        request_id = _checked(request.request_id)
        # Requests that waited for another one's start find it under that one's trace.
        decision = self._decisions.get(request_id)
        traces = dict.fromkeys((request_id, decision.start_request_id if decision and decision.start_request_id else request_id))
        found: dict[str, common_pb2.Span] = {}
        for own in self._decisions.of_trace(request_id):
            for made in spans_of_decision(own):
                found[made.span_id] = _request_span(request_id, made)
        for trace_id in traces:
            for span in (*map(encode_span, spans_of(trace_id)), *await self._platform.spans(trace_id)):
                if trace_id == request_id or "start" in span.name:
                    found[span.span_id] = span
        if not found:
            raise NotFound(f"no service holds spans of request {request_id!r}: it was not sampled, or is too long ago")
        return gateway_pb2.GetTraceResponse(spans=sorted(found.values(), key=lambda span: span.start_unix_ns))


def _checked(request_id: str) -> str:
    if not _REQUEST_ID.fullmatch(request_id):
        raise InvalidInput("request_id", request_id[:80], "must be 32 lowercase hex digits")
    return request_id


def _request_span(request_id: str, span: RequestSpan) -> common_pb2.Span:
    return common_pb2.Span(
        trace_id=request_id,
        span_id=span.span_id,
        parent_span_id=span.parent_span_id,
        name=span.name,
        service="gateway",
        start_unix_ns=span.start_unix_ns,
        end_unix_ns=span.end_unix_ns,
        attributes=dict(span.attributes),
        status=span.error or "ok",
    )
