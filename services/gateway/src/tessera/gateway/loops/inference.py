"""One request from its bytes to its answer. Nothing is awaited on the warm path but the runtime's reply."""

from __future__ import annotations

import asyncio
from binascii import hexlify
from collections.abc import Callable
from contextlib import suppress

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
from tessera.domain.objectives import NO_OBJECTIVES, Objectives
from tessera.frames import FrameClient, NeverSent, RequestHeader, Status
from tessera.frames.head import parse_head
from tessera.gateway.core.catalogue import Catalogue
from tessera.gateway.core.decisions import Decision, DecisionLog
from tessera.gateway.core.requests import AskedFor, missed_parameter, queue_budget_s, reply_prefix
from tessera.gateway.core.routes import Route, slot_of_choice
from tessera.gateway.core.slots import InstanceSlot
from tessera.gateway.core.spans import spans_of_decision
from tessera.gateway.loops.starts import Started, StartQueues
from tessera.gateway.loops.watchdog import Watchdog
from tessera.gateway.ports import Meter, RuntimeLinks
from tessera.policy.variant.base import Choice
from tessera.telemetry import TraceContext, get_logger, is_sampled, parse_traceparent, record_span

MAX_SENDS = 2
"""A request is sent to a second instance when the first one cannot have executed it."""

REVIVE_S = 0.2
"""How long broken connections are tried, all together, before the scheduler is asked for an instance."""

MAX_OUTCOME_CHARS = 4096
"""Of what is remembered of an error: its words may quote what a client sent."""

_OK = int(Status.OK)
_WARM = StartPath.WARM.value

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
        identifiers: draws (trace id, span id).
        default_budget_s: for a request whose client sets no deadline.
        held_bytes_limit: request bytes that are kept until answered, all requests together.
        export_spans: hand every request's spans on at once (they go out by OTLP); else they are made when somebody asks.
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
        identifiers: Callable[[], tuple[bytes, bytes]],
        *,
        default_budget_s: float,
        held_bytes_limit: int,
        export_spans: bool = False,
    ) -> None:
        self._catalogue = catalogue
        self._synced = synced
        self._links = links
        self._starts = starts
        self._decisions = decisions
        self._now_s = clock.monotonic_s
        self._wall_s = clock.wall_s
        self._meter = meter
        self._identifiers = identifiers
        self._asked_for = AskedFor()
        self._watchdog = Watchdog(default_budget_s)
        self._held_bytes_limit = held_bytes_limit
        self._held_bytes = 0
        self._export_spans = export_spans
        self.in_flight = 0

    async def infer(self, body: bytes, remaining_s: float | None = None, traceparent: str = "") -> bytes:
        """Answers an encoded ModelInferRequest with an encoded ModelInferResponse.

        Args:
            remaining_s: what is left of the client's deadline, None where it set none. Whoever calls cancels at the deadline, as
                gRPC does; without one the default budget ends the request here.
            traceparent: the client's W3C context; its trace id becomes the request id.

        Raises:
            TesseraError: one clear error; its kind decides the status.
        """
        began_s = self._now_s()
        decision = self._new_decision(traceparent)
        self.in_flight += 1
        self._held_bytes += len(body)
        watched = self._watchdog.enter(began_s) if remaining_s is None else None
        try:
            answer = await self._answer(body, remaining_s, decision, began_s)
            decision.outcome = "ok"
            return answer
        except TesseraError as error:
            decision.outcome = f"{error.kind}: {error.message}"[:MAX_OUTCOME_CHARS]
            raise
        except asyncio.CancelledError:
            elapsed_s = self._now_s() - began_s
            if watched is not None and self._watchdog.leave(watched):
                late = _too_late(decision, elapsed_s)
                decision.outcome = f"{late.kind}: {late.message}"
                raise late from None
            over = remaining_s is not None and elapsed_s >= remaining_s
            decision.outcome = f"deadline_exceeded: {_too_late(decision, elapsed_s)}" if over else "cancelled: the client went away"
            raise
        except Exception as error:
            decision.outcome = f"internal: {error}"[:MAX_OUTCOME_CHARS]
            _log.exception("request failed", request_id=decision.request_id, model=decision.model)
            raise Internal(f"the gateway failed: {type(error).__name__}: {error}") from error
        finally:
            if watched is not None:
                self._watchdog.leave(watched)
            self.in_flight -= 1
            self._held_bytes -= len(body)
            self._finished(decision, began_s)

    def close(self) -> None:
        self._watchdog.close()

    async def _answer(self, body: bytes, remaining_s: float | None, decision: Decision, began_s: float) -> bytes:
        """Checks the request, then sends it until an instance has answered, twice at most."""
        if self._held_bytes > self._held_bytes_limit:
            raise ResourceExhausted(
                f"request of {len(body)} bytes: {self._held_bytes - len(body)} bytes of unanswered requests are held, "
                f"at most held_bytes_limit = {self._held_bytes_limit}"
            )
        budget_s = self._watchdog.budget_s if remaining_s is None else remaining_s
        if budget_s <= 0:
            raise DeadlineExceeded(f"expired budget: the deadline passed {-budget_s * 1000:.1f} ms before the request arrived")
        head = parse_head(body)
        name, version = head.model_name, head.model_version
        decision.model = f"{name}@{version}" if version else name
        queue_s, objectives = None, NO_OBJECTIVES
        if head.parameters:
            queue_s, objectives = queue_budget_s(head.parameters), self._asked_for.objectives(head.parameters)
        # The whole time that is left, but where the client bounded its waiting: the runtime drops what is late in its queue.
        wait_until_s = began_s + (budget_s if queue_s is None else min(budget_s, queue_s))
        while True:
            start_path = _WARM
            route = decision.route = self._route(name, version, objectives)
            choice = decision.choice = self._catalogue.choose(route, head.items)
            if objectives is not NO_OBJECTIVES and choice is not None:
                self._check_missed(route, choice, decision)
            slot = slot_of_choice(choice) if choice is not None else None
            now_s = self._now_s()
            if not decision.attempts:
                self._meter.decided(now_s - began_s)
            if slot is None:
                slot = await self._revived(choice, wait_until_s - now_s)
                if slot is None:
                    started = await self._start(route, choice, wait_until_s, decision, began_s)
                    slot, start_path = started.slot, started.start_path
                now_s = self._now_s()
            decision.attempts += 1
            decision.slot, decision.start_path = slot, start_path
            decision.sent_ms = (now_s - began_s) * 1000
            budget_us = int((wait_until_s - now_s) * 1e6)
            header = RequestHeader(
                slot.generation, budget_us if budget_us > 0 else 1, decision.trace_id, decision.own_span, decision.sampled
            )
            suffix = reply_prefix(slot, start_path, bool(route.name.task)) + hexlify(decision.trace_id)
            if decision.missed:
                suffix += missed_parameter(decision.missed)
            items = min(head.items, slot.max_batch)
            slot.in_flight += items
            try:
                link = self._links.connected(slot) or await self._connect(slot)
                status, batch_size, queue_us, opening_us, run_us, answer = response = await link.request(header, body, suffix)
            except (Unavailable, _Lost) as error:
                lost = error if isinstance(error, _Lost) else _broken(slot, error)
                if not lost.sent:
                    self._catalogue.fleet.mark_runtime(slot.runtime_id, suspect=True)
                if lost.sent or decision.attempts >= MAX_SENDS:
                    raise lost.error from None
                decision.leave()
                continue
            finally:
                slot.in_flight -= items
            if status == _OK:
                decision.batch_size, decision.queue_us, decision.opening_us, decision.run_us = batch_size, queue_us, opening_us, run_us
                return answer if isinstance(answer, bytes) else bytes(answer)
            if status != Status.WRONG_GENERATION:
                raise response.error() or Internal(f"the runtime answered with status {status}")
            self._catalogue.fleet.mark_stale(slot)
            if decision.attempts >= MAX_SENDS:
                raise Unavailable(f"two instances of {slot.variant} were gone when the request reached them")
            decision.leave()

    def _route(self, name: str, version: str, objectives: Objectives) -> Route:
        try:
            return self._catalogue.route(name, version, objectives)
        except NotFound:
            if not self._synced():
                raise Unavailable("the gateway has not read the models yet: the coordination service does not answer") from None
            raise

    def _check_missed(self, route: Route, choice: Choice, decision: Decision) -> None:
        """Notes what the choice is expected to miss. Raises: FailedPrecondition: it misses something, and the request is strict."""
        decision.missed = route.missed(choice)
        if decision.missed and route.objectives.strict:
            route.refused_for(choice)
            raise FailedPrecondition(
                f"nothing that answers for {route.name.shown} meets the objectives now; the closest is {choice.candidate.key}, "
                f"which misses {decision.missed}"
            )

    async def _connect(self, slot: InstanceSlot) -> FrameClient:
        """Raises: _Lost."""
        try:
            return await self._links.connect(slot)
        except (Unavailable, FailedPrecondition) as error:
            raise _Lost(Unavailable(f"instance {slot.instance_id} cannot be reached: {error.message}"), sent=False) from None

    async def _revived(self, choice: Choice | None, budget_s: float) -> InstanceSlot | None:
        """An instance whose connection broke but can be made again: a relay that restarts must not start every model anew."""
        suspects = [slot for slot in self._catalogue.fleet.slots_of(choice.candidate.key) if slot.suspect] if choice is not None else ()
        if not suspects:
            return None
        try:
            async with asyncio.timeout(max(0.0, min(REVIVE_S, budget_s))):
                for slot in suspects:
                    with suppress(TesseraError):
                        await self._links.connect(slot)
                        return slot
        except TimeoutError:
            pass
        return None

    async def _start(self, route: Route, choice: Choice | None, wait_until_s: float, decision: Decision, began_s: float) -> Started:
        if choice is None:
            why = f"{route.name.shown} has no variant that can serve: {self._catalogue.refusal(route)}"
            raise Unavailable(why) if not self._catalogue.nodes else FailedPrecondition(why)
        queued_s = self._now_s()
        decision.queued_ms = (queued_s - began_s) * 1000
        budget_s = wait_until_s - queued_s
        context = TraceContext(decision.request_id, decision.span_id, decision.sampled)
        try:
            async with asyncio.timeout(max(0.0, budget_s)):
                started = await self._starts.wait(route, choice, budget_s, context)
        except TimeoutError:
            left = f"within the {budget_s * 1000:.0f} ms that were left"
            raise DeadlineExceeded(f"no instance of {choice.candidate.key} became ready {left}") from None
        finally:
            decision.waited_ms = (self._now_s() - queued_s) * 1000
        decision.start_request_id = started.request_id
        known_ms = sum(stage.ms for stage in started.stages)
        decision.stages = (StageTime(Stage.QUEUE, max(0.0, decision.waited_ms - known_ms)), *started.stages)
        return started

    def _new_decision(self, traceparent: str) -> Decision:
        trace_id, span_id = self._identifiers()
        outer = parse_traceparent(traceparent) if traceparent else None
        if outer is not None:
            return Decision(bytes.fromhex(outer.trace_id), span_id, outer.span_id, outer.sampled, self._wall_s())
        return Decision(trace_id, span_id, "", is_sampled(trace_id.hex()), self._wall_s())

    def _finished(self, decision: Decision, began_s: float) -> None:
        elapsed_s = self._now_s() - began_s
        decision.actual_ms = elapsed_s * 1000
        self._decisions.add(decision)
        outcome = decision.outcome
        if outcome == "ok":
            decision.teach()
        self._meter.answered(decision.labels, outcome if outcome == "ok" else outcome.partition(":")[0], elapsed_s)
        if self._export_spans:
            for span in spans_of_decision(decision):
                record_span(
                    span.name,
                    decision.request_id,
                    start_unix_ns=span.start_unix_ns,
                    end_unix_ns=span.end_unix_ns,
                    parent_span_id=span.parent_span_id,
                    span_id=span.span_id,
                    attributes=span.attributes,
                    error=span.error,
                )


def _broken(slot: InstanceSlot, error: Unavailable) -> _Lost:
    if isinstance(error, NeverSent):
        words = f"the connection to instance {slot.instance_id} broke before the request was sent"
        return _Lost(Unavailable(f"{words} ({error.message})"), sent=False)
    words = f"the connection to instance {slot.instance_id} broke while it may have been executing the request"
    return _Lost(Unavailable(f"{words}, which was not repeated ({error.message})"), sent=True)


def _too_late(decision: Decision, elapsed_s: float) -> DeadlineExceeded:
    doing = f"executing on instance {decision.instance_id}" if decision.instance_id else "waiting for an instance"
    return DeadlineExceeded(f"the budget of {elapsed_s * 1000:.0f} ms ended while {doing}")
