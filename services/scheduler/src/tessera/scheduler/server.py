"""The scheduler's gRPC face: wire in, one call, wire out. Errors of the domain become statuses in the guard."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator
from typing import Any

from tessera.api.scheduler.v1 import scheduler_pb2, scheduler_pb2_grpc
from tessera.clock import Clock
from tessera.domain.errors import InvalidInput, NotFound, Unavailable
from tessera.domain.ids import InstanceId, NodeId, RequestId
from tessera.program import Tasks
from tessera.scheduler.core.cluster import Cluster
from tessera.scheduler.core.explanations import Explanations
from tessera.scheduler.loops.leading import Leading
from tessera.scheduler.loops.pulse import Pulse
from tessera.scheduler.loops.reconciling import Reconciler
from tessera.scheduler.loops.starting import Starter, StartRequest
from tessera.scheduler.ports import Agents
from tessera.scheduler.wire import explanation_response, report_of, start_response
from tessera.wire import decode_variant_key, encode_term

MAX_CANDIDATES = 64
LOOK_AGAIN_S = 30.0
SILENT_S = 10.0
"""How long nothing may come on a status stream. Agents report each second, and wait two at most for runtimes that do not answer: one that
says nothing for so long hangs, is stopped, or is cut off without a word, and what it said last is history."""


class SchedulerServer(scheduler_pb2_grpc.SchedulerServicer):
    def __init__(
        self,
        *,
        clock: Clock,
        tasks: Tasks,
        leading: Leading,
        starter: Starter,
        reconciler: Reconciler,
        cluster: Cluster,
        explanations: Explanations,
        agents: Agents,
        changed: Pulse,
    ) -> None:
        self._clock = clock
        self._tasks = tasks
        self._leading = leading
        self._starter = starter
        self._reconciler = reconciler
        self._cluster = cluster
        self._explanations = explanations
        self._agents = agents
        self._changed = changed
        self._streams = itertools.count(1)
        self._closing = False

    async def StartInstance(self, request: scheduler_pb2.StartInstanceRequest, context: Any) -> scheduler_pb2.StartInstanceResponse:
        if len(request.candidates) > MAX_CANDIDATES:
            raise InvalidInput("candidates", len(request.candidates), f"at most {MAX_CANDIDATES}")
        candidates = tuple(decode_variant_key(item, f"candidates[{index}]") for index, item in enumerate(request.candidates))
        if any(item.trust_domain != request.trust_domain for item in candidates):
            raise InvalidInput("trust_domain", request.trust_domain, "must be that of every candidate")
        within_ms = request.ready_within_us / 1e3 if request.ready_within_us else None
        answer = await self._starter.start(StartRequest(RequestId(request.request_id), candidates, request.budget_us / 1e6, within_ms))
        return start_response(answer)

    async def StopInstance(self, request: scheduler_pb2.StopInstanceRequest, context: Any) -> scheduler_pb2.StopInstanceResponse:
        await self._reconciler.stop(NodeId(request.node_id), InstanceId(request.instance_id))
        return scheduler_pb2.StopInstanceResponse()

    async def ReportStatus(self, request_iterator: AsyncIterator[Any], context: Any) -> AsyncIterator[scheduler_pb2.ReportStatusResponse]:
        """Takes reports in until the agent ends the stream or hangs, or until another scheduler leads; says the term at once and when it
        changes."""
        self._leading.require()
        reader = _Reader(self, request_iterator, next(self._streams))
        reading = self._tasks.start("status stream", reader.read())
        term = None
        try:
            while not reader.done:
                if self._closing:
                    raise Unavailable("the scheduler is stopping")
                now = self._leading.require().term
                if now != term:
                    term = now
                    yield scheduler_pb2.ReportStatusResponse(term=encode_term(term))
                    continue
                await self._leading.changed.wait(LOOK_AGAIN_S)
        finally:
            reading.cancel()
            reader.close()
        if reader.error is not None:
            raise reader.error

    def close(self) -> None:
        """Ends the status streams, which would otherwise keep a stopping server waiting."""
        self._closing = True
        self._leading.changed.fire()

    def take_report(self, message: Any, stream: int) -> NodeId:
        report = report_of(message)
        if report.full and report.start_address:
            self._agents.expect(report.start_address)
        self._cluster.report(report, stream, self._clock.monotonic_s())
        self.woken()
        return report.node_id

    def woken(self) -> None:
        """Something was reported: who waits for a node looks again."""
        self._changed.fire()

    def stream_ended(self, node_id: NodeId | None, stream: int) -> None:
        """Wakes the handlers too: the one whose reader ended must look."""
        if node_id is not None:
            self._cluster.stream_ended(node_id, stream)
        self._changed.fire()
        self._leading.changed.fire()

    async def ExplainStart(self, request: scheduler_pb2.ExplainStartRequest, context: Any) -> scheduler_pb2.ExplainStartResponse:
        found = self._explanations.get(RequestId(request.request_id))
        if found is None:
            raise NotFound(f"request {request.request_id!r} started nothing here, or is too long ago")
        return explanation_response(found)

    async def GetLeader(self, request: scheduler_pb2.GetLeaderRequest, context: Any) -> scheduler_pb2.GetLeaderResponse:
        known = self._leading.known
        if known is None:
            return scheduler_pb2.GetLeaderResponse(is_self=False)
        is_self = self._leading.leadership is not None
        return scheduler_pb2.GetLeaderResponse(term=encode_term(known.term), address=known.address, is_self=is_self)


class _Reader:
    """Reads one status stream, to its end or until nothing comes. An error is kept as a value for the handler: nothing else waits for this
    task."""

    def __init__(self, server: SchedulerServer, messages: AsyncIterator[Any], stream: int) -> None:
        self._server = server
        self._messages = messages
        self._stream = stream
        self._node_id: NodeId | None = None
        self.error: Exception | None = None
        self.done = False

    async def read(self) -> None:
        try:
            async with asyncio.timeout(SILENT_S) as patience:
                async for message in self._messages:
                    self._node_id = self._server.take_report(message, self._stream)
                    patience.reschedule(asyncio.get_running_loop().time() + SILENT_S)
        except TimeoutError:
            self.error = Unavailable(f"status of node {self._node_id or 'unknown'}: nothing came for {SILENT_S:.0f} s")
        except Exception as error:
            self.error = error
        finally:
            self.close()

    def close(self) -> None:
        """The stream is over, once."""
        if not self.done:
            self.done = True
            self._server.stream_ended(self._node_id, self._stream)
