"""Times the stages of one start, and leaves its spans."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from tessera.clock import Clock
from tessera.domain.instance import Stage, StageTime
from tessera.node_agent.core.table import Instance
from tessera.telemetry import current_context, record_span

_ORDER = list(Stage)


Parts = list[tuple[Stage, float, float]]
"""Stage, from, to: seconds on the monotonic clock."""


class Loading:
    """A load under way: the runtime says, at once or in two steps, how long it mapped and opened."""

    def __init__(self, clock: Clock, rest: Stage, parts: Parts) -> None:
        self._clock = clock
        self._rest = rest
        self._parts = parts
        self._at_s = clock.monotonic_s()
        self._known: set[Stage] = set()

    def take(self, said: Iterable[StageTime]) -> None:
        """The stages so far. What passed since the last word, and is none of those that it adds, counts as `rest`."""
        said, now_s = [time for time in said if time.stage not in self._known], self._clock.monotonic_s()
        self._known.update(time.stage for time in said)
        said_s = min(sum(time.ms for time in said) / 1e3, now_s - self._at_s)
        at_s = now_s - said_s
        self._parts.append((self._rest, self._at_s, at_s))
        for time in said:
            self._parts.append((time.stage, at_s, at_s + time.ms / 1e3))
            at_s += time.ms / 1e3
        self._at_s = now_s


class Stopwatch:
    """Stages may come twice (a second fetch); their times add up. Belongs to one start; made where the request's context is current."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._context = current_context()
        self._begun_s = clock.monotonic_s()
        self._begun_ns = int(clock.wall_s() * 1e9)
        self._parts: Parts = []

    @contextmanager
    def stage(self, stage: Stage) -> Iterator[None]:
        at_s = self._clock.monotonic_s()
        try:
            yield
        finally:
            self._parts.append((stage, at_s, self._clock.monotonic_s()))

    @contextmanager
    def loading(self, rest: Stage) -> Iterator[Loading]:
        """Around a runtime's load. What it took beyond what the runtime says (the way there and back; a runtime that was forked just now
        warms up first) counts as `rest`, so that the stages add up to the time that passed."""
        loading = Loading(self._clock, rest, self._parts)
        try:
            yield loading
        except BaseException:
            loading.take(())
            raise

    def stages(self) -> tuple[StageTime, ...]:
        """Milliseconds by stage, in the order in which stages follow each other."""
        sums: dict[Stage, float] = {}
        for stage, from_s, to_s in self._parts:
            sums[stage] = sums.get(stage, 0.0) + max(0.0, to_s - from_s) * 1e3
        return tuple(StageTime(stage, sums[stage]) for stage in _ORDER if stage in sums)

    def record_spans(self, instance: Instance) -> None:
        """One span per stage below the request's own (`tessera.node_agent.start_instance`), where its trace is sampled."""
        if self._context is None or not self._context.sampled:
            return
        attributes = {
            "instance_id": instance.instance_id,
            "variant": str(instance.variant),
            "start_path": str(instance.start_path),
            "runtime_id": instance.runtime_id or "",
        }
        for stage, from_s, to_s in self._parts:
            record_span(
                f"tessera.node_agent.{stage}",
                self._context.trace_id,
                start_unix_ns=self._ns(from_s),
                end_unix_ns=self._ns(to_s),
                parent_span_id=self._context.span_id,
                attributes=attributes,
            )

    def _ns(self, at_s: float) -> int:
        return self._begun_ns + int((at_s - self._begun_s) * 1e9)
