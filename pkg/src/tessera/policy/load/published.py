"""The published states: overloaded at the profiled peak, interfered where runs are slow although the load is below it.

INFaaS (USENIX ATC'21) defines the states and gives no factors; those of its released code are the defaults. Beyond both: a state changes
only by votes of several reports (two for what is just past its threshold, one for twice as much), and it is left at another threshold
than it was entered at, so that a load that swings around one of them does not flap.
"""

from __future__ import annotations

from dataclasses import dataclass

from tessera.domain.records import LoadState
from tessera.policy.load.base import Expected, Load, Observation, offered_items_per_s, slowest_ms


@dataclass(frozen=True, slots=True)
class Factors:
    """`slow`: interfered beyond so many times the profiled latency (F of the released code). `calm`: no more below so many (U).
    `queue`: overloaded beyond so many seconds of waiting work (B). `busy`: share of the profiled rate below which the released code takes
    slowness for chance (Q)."""

    slow: float
    busy: float
    queue: float
    calm: float


ALONE = Factors(slow=4.0, busy=1.0, queue=1.1, calm=1.5)
"""Released: an instance that is the only one of its variant on its node (CPU)."""
SEVERAL = Factors(slow=2.5, busy=0.5, queue=0.8, calm=1.5)

LEAVE_PEAK = 0.9
"""Assumed: overload ends below this share of the peak; the published "back below" would flap."""
QUIET_S = 30.0
"""Assumed: an interfered instance that gets no requests any more, because they go elsewhere, has shown nothing; after so long it may try
again."""
LEAST_EXCESS_MS = 10.0
"""Assumed: below this a run is not called slow, however short the profile says it is: the first run of an architecture in a process takes
8 to 14 ms longer, and a turn of the kernel's scheduler a few."""
ENTER_VOTES = 2
MOST_VOTES = 3


@dataclass(frozen=True, slots=True)
class PublishedLoad:
    alone: Factors = ALONE
    several: Factors = SEVERAL

    @property
    def name(self) -> str:
        return "published"

    def step(self, previous: Load | None, seen: Observation, expected: Expected | None, now_s: float) -> Load:
        before = previous.state if previous is not None else LoadState.ACTIVE
        offered = offered_items_per_s(previous, seen, now_s)
        run_ms = slowest_ms(previous, seen, now_s)
        if expected is None:
            return _load(previous, LoadState.ACTIVE, "not judged: no profile of its variant on this class of node", seen, now_s, offered)
        factors = self.alone if seen.replicas <= 1 else self.several
        peak, profiled_ms = expected.peak_items_per_s, expected.run_ms(max(1.0, seen.batch))
        waiting_s = seen.in_flight_items / peak
        load = max(offered / peak, waiting_s / factors.queue)
        over = _vote(previous.over if previous else 0, load, 1.0, LEAVE_PEAK, before is LoadState.OVERLOADED)
        heard_s = now_s if run_ms > 0 or previous is None else previous.heard_s
        slow = previous.slow if previous else 0
        if run_ms > 0 or before is not LoadState.INTERFERED or now_s - heard_s > QUIET_S:
            times = run_ms / profiled_ms if run_ms - profiled_ms >= LEAST_EXCESS_MS else 0.0
            slow = _vote(slow, times, factors.slow, factors.calm, before is LoadState.INTERFERED)
        is_over = over >= ENTER_VOTES or (before is LoadState.OVERLOADED and over > 0)
        is_slow = slow >= ENTER_VOTES or (before is LoadState.INTERFERED and slow > 0)
        words = ""
        if is_slow and (not is_over or offered < peak):
            # What waits behind slow runs is their doing: overload is a matter of what is offered.
            state = LoadState.INTERFERED
            words = f"runs take {run_ms:.3g} ms, {run_ms / profiled_ms:.1f} times the profiled {profiled_ms:.3g} ms" if run_ms else ""
            words = words or (previous.reason if previous else "")
        elif is_over:
            state = LoadState.OVERLOADED
            words = f"{offered:.3g} items/s offered and {seen.in_flight} requests in flight, its peak is {peak:.3g} items/s"
        else:
            state = LoadState.ACTIVE
        return _load(previous, state, words, seen, now_s, offered, over, slow, run_ms, heard_s)


@dataclass(frozen=True, slots=True)
class ReleasedLoad:
    """The released code's one flag, without votes: for comparison. Latency fades by `FADE` in an interval without an answer.

    Its condition on the rate leaves an instance alone that is slow and little used.
    """

    alone: Factors = ALONE
    several: Factors = SEVERAL

    @property
    def name(self) -> str:
        return "released"

    def step(self, previous: Load | None, seen: Observation, expected: Expected | None, now_s: float) -> Load:
        offered = offered_items_per_s(previous, seen, now_s)
        if expected is None:
            return _load(previous, LoadState.ACTIVE, "not judged: no profile of its variant on this class of node", seen, now_s, offered)
        factors = self.alone if seen.replicas <= 1 else self.several
        average_ms = seen.run_ms or (previous.average_ms / FADE if previous is not None else 0.0)
        profiled_ms = expected.run_ms(max(1.0, seen.batch))
        rate = 1000 / profiled_ms
        slow = average_ms > factors.slow * profiled_ms and seen.requests_per_s > factors.busy * rate
        full = seen.in_flight > factors.queue * rate
        flagged = previous is not None and previous.flagged
        if full or slow or (flagged and average_ms >= factors.calm * profiled_ms):
            state = LoadState.OVERLOADED if full else LoadState.INTERFERED
            words = f"{seen.in_flight} in flight at {average_ms:.3g} ms, the profile says {profiled_ms:.3g} ms"
            return _load(previous, state, words, seen, now_s, offered, average_ms=average_ms)
        return _load(previous, LoadState.ACTIVE, "", seen, now_s, offered, average_ms=average_ms)


FADE = 15.0
"""Released: on a CPU."""


def _vote(before: int, value: float, enter: float, leave: float, inside: bool) -> int:
    if value >= 2 * enter:
        return min(MOST_VOTES, before + 2)
    if value >= enter:
        return min(MOST_VOTES, before + 1)
    # Between the two thresholds nothing changes for who is in the state, and nothing adds up for who is not.
    return before if inside and value >= leave else max(0, before - 1)


def _load(
    previous: Load | None,
    state: LoadState,
    reason: str,
    seen: Observation,
    now_s: float,
    offered: float,
    over: int = 0,
    slow: int = 0,
    average_ms: float = 0.0,
    heard_s: float = 0.0,
) -> Load:
    since_s = previous.since_s if previous is not None and previous.state is state else now_s
    return Load(state, since_s, now_s, seen, reason, over, slow, heard_s, offered, average_ms)
