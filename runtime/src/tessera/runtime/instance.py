"""One loaded artifact that serves: its queue, its batches, its end.

Everything here runs on the event loop's thread, which is the lock that loading and unloading take as well; only `Loaded.run` goes to
a worker thread. At most one batch of an instance runs at a time. One that is new has no `Loaded` until it was opened, a parked one until
its next request has it opened again: requests wait for that in the queue as they would for a batch.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial

from tessera.clock import Clock
from tessera.domain.artifact import ALONE, Artifact
from tessera.domain.errors import Conflict, FailedPrecondition, Internal, ResourceExhausted, TesseraError, WrongGeneration
from tessera.frames.codec import FrameResponse, RequestHeader
from tessera.frames.openinference import InferRequest, encode_response
from tessera.runtime.activity import InstanceStatus, RecentRuns
from tessera.runtime.alarm import Alarm
from tessera.runtime.backends.interface import Loaded, Tensor
from tessera.runtime.expiry import Expiry
from tessera.runtime.identity import BatchLimits, InstanceIdentity, InstancePhase
from tessera.runtime.tensors import check_request, join, joinable_key, output_tensors, split
from tessera.runtime.waiting import Waiting

_log = logging.getLogger(__name__)

Submit = Callable[[Callable[[], dict[str, Tensor]]], "asyncio.Future[dict[str, Tensor]]"]
"""Runs a call on a worker thread."""

Reopen = Callable[[], "asyncio.Future[Loaded]"]
"""Opens what was closed when the instance was parked, over the same mappings."""


@dataclass(slots=True)
class _Running:
    items: list[Waiting] = field(default_factory=list)
    started_s: float = 0.0


class Instance:
    """Raises from `submit`: what `check_request` raises, ResourceExhausted, WrongGeneration."""

    def __init__(
        self,
        identity: InstanceIdentity,
        artifact: Artifact,
        loaded: Loaded | None,
        limits: BatchLimits,
        clock: Clock,
        submit: Submit,
        reopen: Reopen,
    ) -> None:
        self.identity = identity
        self.artifact = artifact
        self.loaded = loaded
        self.limits = limits
        self.phase = InstancePhase.SERVING
        self._clock = clock
        self._submit = submit
        self._reopen = reopen
        self._opening: asyncio.Future[Loaded] | None = None
        self._opening_since_s = 0.0
        self._runs = RecentRuns()
        self._loop = asyncio.get_running_loop()
        self._queue: deque[Waiting] = deque()
        self._running: _Running | None = None
        self._exclusive = False
        self._joinable = artifact.signature.batched and ALONE not in artifact.options
        self._quiet: list[asyncio.Future[None]] = []
        self._company = Alarm(clock)
        self._expiry = Expiry(self._queue, identity.variant, clock)
        self._served = 0
        self._items = 0
        self._last_s = clock.monotonic_s()

    def status(self, window_s: float = 1.0) -> InstanceStatus:
        """Figures as of now; percentiles of what ran in the last `window_s` seconds."""
        executing = len(self._running.items) if self._running else 0
        runs = self._runs.figures(self._clock.monotonic_s() - window_s)
        waiting = len(self._queue)
        return InstanceStatus(waiting, executing, self._served, self.idle_s, runs.p50_ms, runs.p99_ms, self.parked, self._items, runs.items)

    @property
    def idle_s(self) -> float:
        """Seconds since it had something to do; 0 while it has."""
        return 0.0 if self._busy or self._exclusive or self._queue else self._clock.monotonic_s() - self._last_s

    @property
    def parked(self) -> bool:
        return self.loaded is None and self._opening is None

    @property
    def _busy(self) -> bool:
        return self._running is not None or self._opening is not None

    def park(self) -> Loaded | None:
        """Takes its `Loaded` away, for the caller to close. None when it has something to do, is parked already, or is of no use parked."""
        loaded = self.loaded
        if loaded is None or loaded.inline or self._busy or self._exclusive or self._queue or self.phase is not InstancePhase.SERVING:
            return None
        self.loaded = None
        return loaded

    def open(self, opening: asyncio.Future[Loaded]) -> asyncio.Future[Loaded]:
        """It is being opened; what waits goes on when that is done, or hears why it failed."""
        self._opening, self._opening_since_s = opening, self._clock.monotonic_s()
        opening.add_done_callback(self._opened)
        return opening

    def _opened(self, done: asyncio.Future[Loaded]) -> None:
        self._opening = None
        now = self._last_s = self._clock.monotonic_s()
        for item in self._queue:
            item.opening_s += now - max(item.arrived_s, self._opening_since_s)
        error = Internal("the runtime is ending") if done.cancelled() else done.exception()
        self.loaded = done.result() if error is None else None
        while error is not None and self._queue:
            self._fail(self._queue.popleft(), error)
        self._wake_quiet()
        self._dispatch()

    def _fail(self, item: Waiting, error: BaseException) -> None:
        if not item.future.done():
            known = error if isinstance(error, TesseraError) else Internal(f"{self.identity.variant}: {type(error).__name__}: {error}")
            item.future.set_exception(known)

    def submit(self, header: RequestHeader, request: InferRequest) -> asyncio.Future[FrameResponse]:
        """Checks a request and queues it. Cancelling the future takes it out of the queue."""
        if self.phase is not InstancePhase.SERVING:
            raise self._wrong_generation()
        checked = check_request(request, self.artifact.signature, self.limits.max_batch)
        if len(self._queue) >= self.limits.max_queue:
            raise ResourceExhausted(
                f"the queue of {self.identity.variant} holds {len(self._queue)} requests: at most {self.limits.max_queue}"
            )
        now = self._clock.monotonic_s()
        budget_us = header.budget_us if checked.timeout_us is None else min(header.budget_us, checked.timeout_us)
        item = Waiting(
            checked,
            joinable_key(checked.tensors) if self._joinable else None,
            request.model_name,
            request.id,
            header.generation,
            now,
            now + budget_us / 1e6,
            self._loop.create_future(),
        )
        self._queue.append(item)
        if not self._busy and not self._exclusive:
            self._dispatch()
        if self._queue:
            self._expiry.watch(item)
        if not item.future.done():
            item.future.add_done_callback(partial(self._left, item))
        return item.future

    def _left(self, item: Waiting, future: asyncio.Future[FrameResponse]) -> None:
        """A cancelled request frees its place in the queue at once."""
        if future.cancelled() and item in self._queue:
            self._queue.remove(item)
            self._wake_quiet()

    def _dispatch(self) -> None:
        """Forms the next batch and starts it; the generation is checked here again."""
        while not self._busy and not self._exclusive and self._queue:
            if self.loaded is None:
                self.open(self._reopen())
                return
            items = self._form()
            if items is None:
                return
            if not items:
                continue
            self._company.off()
            running = self._running = _Running(items, self._clock.monotonic_s())
            call = partial(_run, self.loaded, [item.request.tensors for item in items])
            if self.loaded.inline:
                self._finish_inline(running, call)
            else:
                self._submit(call).add_done_callback(partial(self._finished, running))
        self._wake_quiet()

    def _form(self) -> list[Waiting] | None:
        """The next batch in order of arrival; empty when all that was looked at had expired; None while it waits for company."""
        now = self._clock.monotonic_s()
        first: Waiting | None = None
        taken: list[Waiting] = []
        passed: list[Waiting] = []
        rows = 0
        while self._queue:
            item = self._queue.popleft()
            if item.future.done():
                continue
            if item.generation != self.identity.generation:
                item.future.set_exception(self._wrong_generation())
            elif item.deadline_s <= now:
                self._expiry.end(item, now)
            elif first is None or self._joins(first, item, rows):
                first = first or item
                taken.append(item)
                rows += item.request.rows
                if rows >= self.limits.max_batch or not self._may_join(first):
                    break
            else:
                passed.append(item)
        self._queue.extendleft(reversed(passed))
        if taken and not passed and self._worth_waiting(taken, rows, now):
            self._queue.extendleft(reversed(taken))
            return None
        return taken

    def _may_join(self, item: Waiting) -> bool:
        return item.key is not None and not item.alone and self._joinable

    def _joins(self, first: Waiting, item: Waiting, rows: int) -> bool:
        return (
            self._may_join(first) and self._may_join(item) and item.key == first.key and rows + item.request.rows <= self.limits.max_batch
        )

    def _worth_waiting(self, taken: list[Waiting], rows: int, now: float) -> bool:
        """Sets the alarm and says yes while each of them may still wait for others."""
        if (
            not self.limits.max_delay_us
            or rows >= self.limits.max_batch
            or not self._may_join(taken[0])
            or self.phase is not InstancePhase.SERVING
        ):
            return False
        until = min(item.company_until_s(self.limits.max_delay_us / 1e6) for item in taken)
        if until <= now:
            return False
        self._company.by(until, self._dispatch)
        return True

    def _finish_inline(self, running: _Running, call: Callable[[], dict[str, Tensor]]) -> None:
        done: asyncio.Future[dict[str, Tensor]] = self._loop.create_future()
        try:
            done.set_result(call())
        except Exception as error:
            done.set_exception(error)
        self._finished(running, done, dispatch=False)

    def _finished(self, running: _Running, done: asyncio.Future[dict[str, Tensor]], dispatch: bool = True) -> None:
        now = self._clock.monotonic_s()
        self._running = None
        self._last_s = now
        error = Internal("the worker was stopped") if done.cancelled() else done.exception()
        if error is None:
            self._answer(running, done.result(), now)
        elif len(running.items) > 1 and not isinstance(error, MemoryError):
            _log.warning("a batch of %d requests to %s failed and is run one by one: %s", len(running.items), self.identity.variant, error)
            self._run_alone(running.items)
        else:
            for item in running.items:
                self._fail(item, error)
        if dispatch:
            self._dispatch()

    def _run_alone(self, items: list[Waiting]) -> None:
        for item in reversed(items):
            item.alone = True
            self._queue.appendleft(item)
            self._expiry.watch(item)

    def _answer(self, running: _Running, answers: Mapping[str, Tensor], now: float) -> None:
        items = running.items
        try:
            parts = split(answers, [item.request.rows for item in items])
        except TesseraError as error:
            _log.warning("%s serves one request at a time from now on: %s", self.identity.variant, error)
            self._joinable = False
            self._run_alone(items)
            return
        rows = sum(item.request.rows for item in items)
        run_us = int((now - running.started_s) * 1e6)
        self._runs.note(now, (now - running.started_s) * 1e3, rows)
        self._served += len(items)
        self._items += rows
        for item, part in zip(items, parts, strict=True):
            if item.future.done():
                continue
            try:
                outputs = output_tensors(part, item.request.outputs, item.request.raw)
                body = encode_response(item.model_name, self.identity.version, item.request_id, outputs)
            except Exception as error:
                known = isinstance(error, TesseraError)
                item.future.set_exception(error if known else Internal(f"{self.identity.variant}: the answer cannot be written: {error!r}"))
                continue
            queue_us, opening_us = item.waited_us(running.started_s)
            item.future.set_result(FrameResponse(0, min(rows, 0xFFFF), queue_us, opening_us, run_us, body))

    async def exclusively(self) -> None:
        """Waits until nothing runs and keeps batches from starting until `release`. A parked one is opened.

        Raises:
            FailedPrecondition: somebody has it already.
            WrongGeneration: its first opening failed meanwhile.
            TesseraError: it cannot be opened.
        """
        if self._exclusive:
            raise FailedPrecondition(f"instance {self.identity.instance_id} is being measured already, or another one is made of it")
        self._exclusive = True
        try:
            while self._busy:
                await self._until_quiet()
            if self.phase is InstancePhase.GONE:
                raise self._wrong_generation()
            if self.loaded is None:
                opening = self.open(self._reopen())
                await asyncio.wait([opening])
                opening.result()
        except BaseException:
            self.release()
            raise

    def release(self, used: bool = True) -> None:
        """`used` False: it has been idle all the while."""
        self._exclusive = False
        if used:
            self._last_s = self._clock.monotonic_s()
        self._dispatch()

    def reserve(self, least_idle_s: float = 0.0) -> None:
        """Keeps batches from starting until `release` or `hand_over`; requests wait. A parked one stays so.

        Raises:
            Conflict: it has something to do, or had less than `least_idle_s` ago, or is about to end.
        """
        if self.phase is not InstancePhase.SERVING or self._busy or self._exclusive or self._queue:
            raise Conflict(f"instance {self.identity.instance_id} is not idle: {self.phase}, {len(self._queue)} waiting")
        if self.idle_s < least_idle_s:
            idle = f"instance {self.identity.instance_id} is idle for {self.idle_s:.1f} s"
            raise Conflict(f"{idle}: donors are from {least_idle_s:g} s on")
        self._exclusive = True

    def hand_over(self) -> bool:
        """A reserved one ends: whoever waits is sent on. False: its end had begun otherwise and goes on."""
        ours = self.phase is InstancePhase.SERVING
        if ours:
            self.phase = InstancePhase.GONE
            self._send_on()
        self._exclusive = False
        self._wake_quiet()
        return ours

    async def drain(self, drain_s: float) -> None:
        """Takes nothing new, gives what waits `drain_s` seconds, then answers the rest with WrongGeneration; returns when nothing runs."""
        self.phase = InstancePhase.DRAINING
        self._company.off()
        self._dispatch()
        try:
            async with asyncio.timeout(drain_s):
                while self._queue or self._busy:
                    await self._until_quiet()
        except TimeoutError:
            pass
        self._send_on()
        while self._busy or self._exclusive:
            await self._until_quiet()
        self.phase = InstancePhase.GONE

    def _send_on(self) -> None:
        while self._queue:
            item = self._queue.popleft()
            if not item.future.done():
                item.future.set_exception(self._wrong_generation())

    async def _until_quiet(self) -> None:
        future: asyncio.Future[None] = self._loop.create_future()
        self._quiet.append(future)
        await future

    def _wake_quiet(self) -> None:
        if not self._busy:
            waiting, self._quiet = self._quiet, []
            for future in waiting:
                if not future.done():
                    future.set_result(None)

    def _wrong_generation(self) -> WrongGeneration:
        return WrongGeneration(f"instance {self.identity.instance_id} of {self.identity.variant} is gone")


def _run(loaded: Loaded, parts: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    return loaded.run(join(parts))
