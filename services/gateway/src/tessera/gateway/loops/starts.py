"""Requests that wait for an instance: one start in flight for all that the same variants may answer, and a bounded queue per variant."""

from __future__ import annotations

import asyncio
from collections import Counter
from dataclasses import dataclass

from tessera.clock import Clock
from tessera.domain.errors import Conflict, FailedPrecondition, Internal, ResourceExhausted, StaleTerm, TesseraError, Unavailable, error_of
from tessera.domain.ids import VariantKey
from tessera.domain.instance import StageTime, StartPath
from tessera.gateway.core.admission import FailedStart, StartForecast, after_failure, refusal
from tessera.gateway.core.catalogue import Catalogue
from tessera.gateway.core.routes import Route
from tessera.gateway.core.slots import InstanceSlot
from tessera.gateway.ports import Meter, RuntimeLinks, StartRequests
from tessera.policy.variant.base import Candidate, Choice
from tessera.program import Tasks
from tessera.telemetry import TraceContext, get_logger, span

FIRST_RETRY_S = 0.05
LONGEST_RETRY_S = 1.0
REACH_S = 3.0
"""How long the scheduler may go on naming an instance that does not take connections: it learns of a dead runtime later than we do."""
NOTE_AFTER_S = 0.005

_PASSING = (Unavailable, StaleTerm, Conflict)
"""Nobody leads, or the leader does not answer or names what is gone: no failure of the variant, and asked again."""

_log = get_logger("tessera.gateway")


class _Unreachable(Unavailable):
    """The scheduler named an instance that takes no connection."""


@dataclass(frozen=True, slots=True)
class Started:
    """What a waiting request gets. `request_id`: by which the scheduler knows the start, "" when there was none after all."""

    slot: InstanceSlot
    start_path: str
    stages: tuple[StageTime, ...]
    request_id: str


@dataclass(slots=True, eq=False)
class _Start:
    """A start in flight."""

    result: asyncio.Future[Started | TesseraError]
    since_s: float
    ready_within_s: float
    waiting: int = 0


class StartQueues:
    """One queue per variant. Who waits in it shares a start with those that each of its candidates may answer as well: the scheduler takes
    any of them.

    Args:
        limit: requests that may wait for one variant.
        budget_s: how long a start is tried, whoever waits; longer than most requests, because the next ones profit from it.
    """

    def __init__(
        self,
        catalogue: Catalogue,
        scheduler: StartRequests,
        links: RuntimeLinks,
        tasks: Tasks,
        clock: Clock,
        meter: Meter,
        *,
        limit: int,
        budget_s: float,
    ) -> None:
        self._catalogue = catalogue
        self._scheduler = scheduler
        self._links = links
        self._tasks = tasks
        self._clock = clock
        self._meter = meter
        self._limit = limit
        self._budget_s = budget_s
        self._starts: dict[tuple[VariantKey, ...], _Start] = {}
        """By their candidates, the choice first."""
        self._waiting: Counter[VariantKey] = Counter()
        self._failed: dict[VariantKey, FailedStart] = {}

    async def wait(self, route: Route, choice: Choice, budget_s: float, context: TraceContext) -> Started:
        """Waits for an instance of the choice, starting one where none is on its way. The caller bounds the wait.

        Raises:
            ResourceExhausted: the queue is full. DeadlineExceeded: the start would take longer than the budget.
            TesseraError: why the start failed.
        """
        key = choice.candidate.key
        candidates = tuple(route.to_start(choice))
        now_s = self._clock.monotonic_s()
        start = self._starts.get(candidates)
        if start is None:
            failed = self._failed.get(key)
            if failed is not None and now_s < failed.until_s:
                raise failed.error(now_s)
        forecast = _forecast(choice.candidate)
        refused = refusal(
            variant=str(key),
            waiting=self._waiting[key],
            limit=self._limit,
            budget_s=budget_s,
            forecast=forecast,
            running_for_s=now_s - start.since_s if start is not None else 0.0,
        )
        if isinstance(refused, ResourceExhausted):
            raise refused
        if start is None:
            # Also for a request that comes too short: the next one with the same deadline must find an instance.
            start = self._begin(candidates, _ready_within_s(route, budget_s, forecast), context)
        if refused is not None:
            raise refused
        start.waiting += 1
        self._waiting[key] += 1
        self._meter.waiting(1)
        try:
            result = await asyncio.shield(start.result)
        finally:
            start.waiting -= 1
            self._waiting[key] -= 1
            self._meter.waiting(-1)
        if isinstance(result, TesseraError):
            raise error_of(result.kind, result.message)
        return result

    def _begin(self, candidates: tuple[VariantKey, ...], ready_within_s: float, context: TraceContext) -> _Start:
        start = _Start(asyncio.get_running_loop().create_future(), self._clock.monotonic_s(), ready_within_s)
        self._starts[candidates] = start
        self._tasks.start(f"start {candidates[0]}", self._run(candidates, start, context))
        return start

    async def _run(self, candidates: tuple[VariantKey, ...], start: _Start, context: TraceContext) -> None:
        key = candidates[0]
        result: Started | TesseraError = Internal(f"the start of {key} was broken off")
        try:
            result = await self._ask(candidates, start, context)
        except TesseraError as error:
            result = error
        except Exception as error:
            # Never out of here: requests wait for the result, and a failed task would end the gateway.
            result = Internal(f"{type(error).__name__}: {error}")
        finally:
            ended_s = self._clock.monotonic_s()
            if isinstance(result, Started):
                self._failed.pop(key, None)
            elif not isinstance(result, _PASSING):
                self._failed[key] = after_failure(self._failed.get(key), result, ended_s)
            waiting = start.waiting
            del self._starts[candidates]
            start.result.set_result(result)
            if isinstance(result, Started):
                self._meter.started(result.start_path, result.stages)
        # Those who waited are sent on before anything is written about it: a line in the log takes longer than a frame.
        await self._clock.sleep(NOTE_AFTER_S)
        self._note(key, result, context.trace_id, waiting, ended_s - start.since_s)

    def _note(self, key: VariantKey, result: Started | TesseraError, request_id: str, waiting: int, took_s: float) -> None:
        about: dict[str, object] = {"variant": str(key), "request_id": request_id, "waiting": waiting, "ms": round(took_s * 1000, 3)}
        if isinstance(result, Started):
            stages = {stage.stage.value: round(stage.ms, 3) for stage in result.stages}
            slot = result.slot
            _log.info(
                "instance started", node=slot.node_id, instance=slot.instance_id, start_path=result.start_path, stages=stages, **about
            )
            return
        failed = self._failed.get(key) if not isinstance(result, _PASSING) else None
        retry = {"failures": failed.failures, "next_try_s": failed.pause_s} if failed is not None else {}
        _log.warning("start failed", kind=result.kind, reason=result.message, **retry, **about)

    async def _ask(self, candidates: tuple[VariantKey, ...], start: _Start, context: TraceContext) -> Started:
        """Asks until the scheduler names an instance that is there; nobody leading, or a leader on its way out, is waited out within the
        budget, a leader that does not know yet what died for `REACH_S`.
        """
        deadline_s = start.since_s + self._budget_s
        pause_s = FIRST_RETRY_S
        unreachable = False
        with span("tessera.gateway.start", parent=context, variant=str(candidates[0])) as own:
            while True:
                try:
                    gone_s = self._clock.monotonic_s() - start.since_s
                    within_s = max(0.0, start.ready_within_s - gone_s)
                    answer = await self._scheduler.start_instance(candidates, context.trace_id, self._budget_s - gone_s, within_s)
                    if self._catalogue.fleet.is_stale(answer.slot.generation):
                        raise Unavailable(f"the scheduler named instance {answer.slot.instance_id}, whose generation is gone")
                    await self._reach(answer.slot)
                    own.set_attribute("start_path", answer.start_path)
                    own.set_attribute("node", str(answer.slot.node_id))
                    return Started(self._catalogue.fleet.adopt(answer.slot), answer.start_path, answer.stages, context.trace_id)
                except _PASSING as error:
                    now_s = self._clock.monotonic_s()
                    if isinstance(error, _Unreachable):
                        deadline_s = min(deadline_s, now_s + REACH_S) if not unreachable else deadline_s
                        unreachable = True
                    if now_s + pause_s >= deadline_s:
                        raise
                    passing = error
                # Also when nobody waits: requests that come meanwhile join, and the scheduler is not asked for each of them.
                await self._clock.sleep(pause_s)
                pause_s = min(LONGEST_RETRY_S, pause_s * 2)
                slot = self._catalogue.ready(candidates)
                if slot is not None:
                    return Started(slot, StartPath.WARM.value, (), "")
                if not start.waiting:
                    raise passing
                _log.info("start is asked for again", variant=str(candidates[0]), request_id=context.trace_id, reason=passing.message)

    async def _reach(self, slot: InstanceSlot) -> None:
        """Connects to what the scheduler named, before anybody relies on it. Raises: _Unreachable."""
        try:
            async with asyncio.timeout(REACH_S):
                await self._links.connect(slot)
        except (Unavailable, FailedPrecondition, TimeoutError) as error:
            words = str(error) or f"no connection after {REACH_S} s"
            raise _Unreachable(f"instance {slot.instance_id} cannot be reached: {words}") from None


def _forecast(candidate: Candidate) -> StartForecast:
    if candidate.start_ms is None or candidate.load_ms is None:
        return StartForecast(None, None)
    return StartForecast(candidate.load_ms / 1000, (candidate.start_ms - candidate.load_ms) / 1000)


def _ready_within_s(route: Route, budget_s: float, forecast: StartForecast) -> float:
    """From now, so that the request is answered by its deadline and within the latency that it asked for."""
    wanted_ms = route.objectives.latency_ms
    left_s = budget_s if wanted_ms is None else min(budget_s, wanted_ms / 1000)
    return max(0.0, left_s - (forecast.latency_s or 0.0))
