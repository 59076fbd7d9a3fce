"""When memory runs short, and how much the store gives up then. Pure: a reading in, bytes out.

Two signs, because each misses what the other sees. What is left (of the machine, of every control group above us) falls before anybody
waits, but says nothing where the kernel frees as fast as others take. The stall share (PSI) says that somebody waits already, whatever
is left, but as an average over ten seconds: so after a step for it the next one waits until the first can be seen in it.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class MemoryReading:
    """`stall_share`: of the last 10 s, in which somebody waited for memory, 0 to 1 (0 where the kernel does not tell).
    `available_bytes`: what may still be taken, of the tightest of the machine and the control groups."""

    stall_share: float
    available_bytes: int


@dataclass(frozen=True, slots=True)
class PressureLimits:
    """`reserve_bytes` shall stay available; a stall share of `stall_share` or more (0: never mind) costs `step_bytes`, at most every
    `pause_s`."""

    stall_share: float
    reserve_bytes: int
    step_bytes: int
    pause_s: float


def relief_bytes(reading: MemoryReading, limits: PressureLimits, since_step_s: float) -> int:
    """How many bytes the stores shall give up now; 0 when memory is not short. `since_step_s`: since the last step for a stall."""
    missing = max(0, limits.reserve_bytes - reading.available_bytes)
    stalled = limits.stall_share > 0 and reading.stall_share >= limits.stall_share and since_step_s >= limits.pause_s
    return max(missing, limits.step_bytes if stalled else 0)
