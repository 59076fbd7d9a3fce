"""When a job holds its breath: while an instance of its trust domain is overloaded or interfered with, and for some seconds after.

INFaaS stops offline work while any variant of the worker is flagged (released code); the seconds keep a load that swings around the
threshold from switching the job on and off.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from tessera.domain.records import LoadRecord, LoadState

BUSY = frozenset({LoadState.OVERLOADED, LoadState.INTERFERED})


@dataclass(frozen=True, slots=True)
class Look:
    """`reason` "" where the job may run. `quiet_since_s`: since when nothing was busy, None while something is."""

    reason: str = ""
    quiet_since_s: float | None = None

    @property
    def paused(self) -> bool:
        return bool(self.reason)


def look(before: Look, loads: Iterable[LoadRecord], now_s: float, calm_s: float) -> Look:
    """What follows from the load records of now (monotonic seconds) and from what was seen before."""
    busy = sorted((load for load in loads if load.state in BUSY), key=lambda load: (load.node_id, load.instance_id))
    if busy:
        first, more = busy[0], f" (and {len(busy) - 1} more)" if len(busy) > 1 else ""
        words = f": {first.reason}" if first.reason else ""
        return Look(f"instance {first.instance_id} of {first.variant} on {first.node_id} is {first.state}{more}{words}")
    if not before.paused:
        return Look(quiet_since_s=now_s)
    since_s = before.quiet_since_s if before.quiet_since_s is not None else now_s
    if now_s - since_s >= calm_s:
        return Look(quiet_since_s=since_s)
    return Look(before.reason, since_s)
