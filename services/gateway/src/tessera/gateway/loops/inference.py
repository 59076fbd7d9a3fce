"""One request from its bytes to its answer. Nothing is awaited on the warm path but the runtime's reply."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from tessera.clock import Clock
from tessera.domain.errors import (
    DeadlineExceeded,
    FailedPrecondition,
    Internal,
    NotFound,
    ResourceExhausted,
    TesseraError,
    Unavailable,
)
from tessera.domain.instance import Stage, StageTime, StartPath
from tessera.frames import FrameClient, FrameResponse, RequestHeader, Status
from tessera.frames.openinference import parse_head
from tessera.gateway.core.catalogue import Catalogue, Route
from tessera.gateway.core.decisions import Decision, DecisionLog
from tessera.gateway.core.requests import queue_budget_s, reply_suffix
from tessera.gateway.core.slots import InstanceSlot
from tessera.gateway.loops.starts import Started, StartQueues
from tessera.gateway.ports import Meter, RuntimeLinks
from tessera.telemetry import TraceContext, get_logger, is_sampled, new_span_id, new_trace_id, parse_traceparent, record_span

MAX_SENDS = 2
"""A request is sent to a second instance when the first one cannot have executed it."""

REVIVE_S = 0.2
"""How long a broken connection is tried before the scheduler is asked for an instance."""

_log = get_logger("tessera.gateway")


class _Lost(Exception):
    """The connection broke. `sent`: the runtime may have executed the request."""

    def __init__(self, error: TesseraError, *, sent: bool) -> None:
        super().__init__(error.message)
        self.error = error
        self.sent = sent


class Inference:
    """Answers ModelInfer.

    Args:
        synced: whether the catalogue has been read; before that "not registered" would be a guess.
        default_budget_s: for a request whose client sets no deadline.
        held_bytes_limit: request bytes that are kept until answered, all requests together.
    """

    def __init__(
        self,
        catalogue: Catalogue,
        synced: Callable[[], bool],
        links: RuntimeLinks,
        starts: StartQueues,
        decisions: DecisionLog,
        clock: Clock,
        meter: Meter,
        *,
        default_budget_s: float,
        held_bytes_limit: int,
    ) -> None:
        self._catalogue = catalogue
        self._synced = synced
        self._links = links
        self._starts = starts
        self._decisions = decisions
        self._clock = clock
        self._meter = meter
        self._default_budget_s = default_budget_s
        self._held_bytes_limit = held_bytes_limit
        self._held_bytes = 0
        self.in_flight = 0

    async def infer(self, body: bytes, remaining_s: float | None = None, traceparent: str = "") -> bytes:
        """Answers an encoded ModelInferRequest with an encoded ModelInferResponse.

        Args:
            remaining_s: what is left of the client's deadline, None where it set none.
            traceparent: the client's W3C context; its trace id becomes the request id.

        Raises:
            TesseraError: one clear error; its kind decides the status.
        """
        began_s = self._clock.monotonic_s()
        outer = parse_traceparent(traceparent) if traceparent else None
        trace_id = outer.trace_id if outer is not None else new_trace_id()
        sampled = outer.sampled if outer is not None else is_sampled(trace_id)
        context = TraceContext(trace_id, new_span_id(), sampled)
        decision = Decision(trace_id, "", self._clock.wall_s())
        self.in_flight += 1
        self._held_bytes += len(body)
        self._meter.arrived()
        try:
            if self._held_bytes > self._held_bytes_limit:
                raise ResourceExhausted(
                    f"request of {len(body)} bytes: {self._held_bytes - len(body)} bytes of unanswered requests are held, "
                    f"at most held_bytes_limit = {self._held_bytes_limit}"
                )
            answer = await self._within_budget(body, remaining_s, decision, context, began_s)
            decision.outcome = "ok"
            return answer
        except TesseraError as error:
            decision.outcome = f"{error.kind}: {error.message}"
            raise
        except asyncio.CancelledError:
            decision.outcome = "cancelled: the client went away"
            raise
        except Exception as error:
            decision.outcome = f"internal: {error}"
            _log.exception("request failed", request_id=trace_id, model=decision.model)
            raise Internal(f"the gateway failed: {type(error).__name__}: {error}") from error
        finally:
            self.in_flight -= 1
            self._held_bytes -= len(body)
            self._finished(decision, context, outer, began_s)

    async def _within_budget(
        self, body: bytes, remaining_s: float | None, decision: Decision, context: TraceContext, began_s: float
    ) -> bytes:
        budget_s = self._default_budget_s if remaining_s is None else remaining_s
        if budget_s <= 0:
            raise DeadlineExceeded(f"expired budget: the deadline passed {-budget_s * 1000:.1f} ms before the request arrived")
        head = parse_head(body)
        decision.model = f"{head.model_name}@{head.model_version}" if head.model_version else head.model_name
        queue_s = queue_budget_s(head.parameters)
        try:
            async with asyncio.timeout(budget_s):
                return await self._send(
                    body,
                    head.model_name,
                    head.model_version,
                    began_s + budget_s,
                    began_s + (budget_s if queue_s is None else min(budget_s, queue_s)),
                    decision,
                    context,
                    began_s,
                )
        except TimeoutError:
            doing = f"executing on instance {decision.instance_id}" if decision.instance_id else "waiting for an instance"
            raise DeadlineExceeded(f"the budget of {budget_s * 1000:.0f} ms ended while {doing}") from None

    async def _send(
        self,
        body: bytes,
        name: str,
        version: str,
        deadline_s: float,
        queue_deadline_s: float,
        decision: Decision,
        context: TraceContext,
        began_s: float,
    ) -> bytes:
        start_path = StartPath.WARM.value
        while True:
            try:
                route = self._catalogue.route(name, version)
            except NotFound:
                if not self._synced():
                    raise Unavailable("the gateway has not read the models yet: the coordination service does not answer") from None
                raise
            slot = route.pick()
            self._note_choice(route, decision)
            now_s = self._clock.monotonic_s()
            if not decision.attempts:
                self._meter.decided(now_s - began_s)
            if slot is None:
                slot = await self._revived(route)
            if slot is None:
                started = await self._start(route, queue_deadline_s, decision, context)
                slot, start_path = started.slot, started.start_path
                now_s = self._clock.monotonic_s()
            decision.attempts += 1
            decision.instance_id = slot.instance_id
            decision.node_id = slot.node_id
            decision.start_path = start_path
            # The whole time that is left, but where the client bounded its waiting: the runtime drops what is late in its queue.
            budget_us = int((min(deadline_s, max(queue_deadline_s, now_s)) - now_s) * 1e6)
            header = RequestHeader(
                slot.generation, max(1, budget_us), bytes.fromhex(context.trace_id), bytes.fromhex(context.span_id), int(context.sampled)
            )
            try:
                response = await self._exchange(slot, header, body)
            except _Lost as lost:
                if not lost.sent:
                    self._catalogue.mark_runtime(slot.runtime_id, suspect=True)
                if lost.sent or decision.attempts >= MAX_SENDS:
                    raise lost.error from None
                decision.instance_id = ""
                continue
            if response.status == Status.OK:
                decision.queue_us, decision.run_us = response.queue_us, response.run_us
                self._note_stages(decision, response, now_s, context)
                return b"".join((response.body, reply_suffix(slot, start_path, context.trace_id)))
            if response.status == Status.WRONG_GENERATION:
                self._catalogue.mark_stale(slot)
                if decision.attempts < MAX_SENDS:
                    decision.instance_id = ""
                    continue
                raise Unavailable(f"two instances of {slot.variant} were gone when the request reached them")
            raise response.error() or Internal(f"the runtime answered with status {response.status}")

    async def _exchange(self, slot: InstanceSlot, header: RequestHeader, body: bytes) -> FrameResponse:
        """Sends to one instance. Raises: _Lost, and what the link refuses (TooLarge)."""
        link = self._links.connected(slot)
        if link is None:
            try:
                link = await self._links.connect(slot)
            except (Unavailable, FailedPrecondition) as error:
                raise _Lost(Unavailable(f"instance {slot.instance_id} cannot be reached: {error.message}"), sent=False) from None
        slot.in_flight += 1
        try:
            return await _request(link, slot, header, body)
        finally:
            slot.in_flight -= 1

    async def _revived(self, route: Route) -> InstanceSlot | None:
        """An instance whose connection broke but can be made again: a relay that restarts must not start every model anew."""
        chosen = route.plan.chosen
        for slot in self._catalogue.suspects(chosen.variant) if chosen is not None else ():
            try:
                async with asyncio.timeout(REVIVE_S):
                    await self._links.connect(slot)
                return slot
            except (TesseraError, TimeoutError):
                continue
        return None

    async def _start(self, route: Route, queue_deadline_s: float, decision: Decision, context: TraceContext) -> Started:
        chosen = route.plan.chosen
        if chosen is None:
            why = f"{route.resolved.version} has no variant that can serve: {route.plan.refusal()}"
            raise Unavailable(why) if not self._catalogue.nodes else FailedPrecondition(why)
        began_s = self._clock.monotonic_s()
        wall_ns = int(self._clock.wall_s() * 1e9)
        budget_s = queue_deadline_s - began_s
        try:
            async with asyncio.timeout(max(0.0, budget_s)):
                started = await self._starts.wait(route, budget_s, context)
        except TimeoutError:
            raise DeadlineExceeded(
                f"no instance of {chosen.variant} became ready within the {budget_s * 1000:.0f} ms that were left"
            ) from None
        finally:
            waited_s = self._clock.monotonic_s() - began_s
            if context.sampled:
                record_span(
                    "tessera.gateway.queue",
                    context.trace_id,
                    start_unix_ns=wall_ns,
                    end_unix_ns=wall_ns + int(waited_s * 1e9),
                    parent_span_id=context.span_id,
                    attributes={"variant": str(chosen.variant)},
                )
        decision.start_request_id = started.request_id
        known_ms = sum(stage.ms for stage in started.stages)
        decision.stages = (StageTime(Stage.QUEUE, max(0.0, waited_s * 1000 - known_ms)), *started.stages)
        return started

    def _note_choice(self, route: Route, decision: Decision) -> None:
        decision.version, decision.plan = route.resolved.version, route.plan
        chosen = route.plan.chosen
        if chosen is not None:
            decision.variant = chosen.variant.variant
            decision.predicted_ms = chosen.expected_ms or 0.0

    def _note_stages(self, decision: Decision, response: FrameResponse, sent_s: float, context: TraceContext) -> None:
        if context.sampled:
            # The runtime keeps no spans: its two times hang below ours, at the end of the exchange, where they were.
            end_ns = int(self._clock.wall_s() * 1e9)
            begin_ns = end_ns - int((self._clock.monotonic_s() - sent_s) * 1e9)
            forward = record_span(
                "tessera.gateway.forward",
                context.trace_id,
                start_unix_ns=begin_ns,
                end_unix_ns=end_ns,
                parent_span_id=context.span_id,
                attributes={"instance": decision.instance_id, "node": decision.node_id},
            )
            run_ns = max(begin_ns, end_ns - response.run_us * 1000)
            record_span(
                "tessera.runtime.run",
                context.trace_id,
                start_unix_ns=run_ns,
                end_unix_ns=end_ns,
                parent_span_id=forward,
                attributes={"batch_size": response.batch_size, "instance": decision.instance_id},
            )
            if response.queue_us:
                record_span(
                    "tessera.runtime.queue",
                    context.trace_id,
                    start_unix_ns=max(begin_ns, run_ns - response.queue_us * 1000),
                    end_unix_ns=run_ns,
                    parent_span_id=forward,
                )

    def _finished(self, decision: Decision, context: TraceContext, outer: TraceContext | None, began_s: float) -> None:
        elapsed_s = self._clock.monotonic_s() - began_s
        decision.actual_ms = elapsed_s * 1000
        self._decisions.add(decision)
        version = decision.version
        self._meter.answered(
            version.model if version is not None else "",
            str(version.version) if version is not None else "",
            decision.variant,
            decision.node_id,
            "ok" if decision.outcome == "ok" else decision.outcome.partition(":")[0],
            elapsed_s,
        )
        if context.sampled:
            start_ns = int(decision.started_unix_s * 1e9)
            record_span(
                "tessera.gateway.infer",
                context.trace_id,
                start_unix_ns=start_ns,
                end_unix_ns=start_ns + int(elapsed_s * 1e9),
                parent_span_id=outer.span_id if outer is not None else "",
                span_id=context.span_id,
                attributes={
                    "model": decision.model,
                    "variant": decision.variant,
                    "node": decision.node_id,
                    "start_path": decision.start_path,
                },
                error="" if decision.outcome == "ok" else decision.outcome,
            )


async def _request(link: FrameClient, slot: InstanceSlot, header: RequestHeader, body: bytes) -> FrameResponse:
    if link.closed or link.draining:
        raise _Lost(Unavailable(f"instance {slot.instance_id}: its runtime takes no new requests"), sent=False)
    try:
        return await link.request(header, body)
    except Unavailable as error:
        words = f"the connection to instance {slot.instance_id} broke while it may have been executing the request, which was not repeated"
        raise _Lost(Unavailable(f"{words} ({error.message})"), sent=True) from None
