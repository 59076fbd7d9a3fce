"""As few empty runtimes as it takes that a start hardly ever finds none, while there is memory for them.

Starts that take one arrive as a Poisson process; one that was taken is replaced within `create_s`. With n waiting, a start finds none
when more than n arrive in that time (base stock under one-for-one replacement: Hadley and Whitin, Analysis of Inventory Systems, 1963).
The wanted n is the smallest for which that happens at most once in a hundred times. Where memory does not suffice for all, it goes where a
byte saves most waiting: P(none left) * takes_per_s * create_s / runtime_bytes; ties end in the flavour's name.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from tessera.policy.pool.base import PoolDemand

DEFAULT_MEMORY_BYTES = 512 << 20
MOST_WITHOUT = 0.01
MOST_RUNTIMES = 64
"""Of a flavour. What is asked for faster than this many can be made is not helped by waiting ones."""


@dataclass(frozen=True, slots=True)
class PoissonPool:
    """`memory_bytes` bounds what all pools of one trust domain on a node take together, beyond the least number of each."""

    memory_bytes: int = DEFAULT_MEMORY_BYTES

    @property
    def name(self) -> str:
        return "poisson"

    def sizes(self, demands: Sequence[PoolDemand], least: int) -> Mapping[str, int]:
        sizes = {demand.flavour: least for demand in demands}
        left_bytes = self.memory_bytes - sum(demand.runtime_bytes * least for demand in demands)
        while True:
            short = [
                (-without * demand.takes_per_s * demand.create_s / max(1, demand.runtime_bytes), demand.flavour, demand)
                for demand in demands
                if (without := more_than(sizes[demand.flavour], demand.takes_per_s * demand.create_s)) > MOST_WITHOUT
                and sizes[demand.flavour] < MOST_RUNTIMES
                and demand.runtime_bytes <= left_bytes
            ]
            if not short:
                return sizes
            _, flavour, demand = min(short, key=lambda entry: entry[:2])
            sizes[flavour] += 1
            left_bytes -= demand.runtime_bytes


def more_than(count: int, mean: float) -> float:
    """P(N > count) of a Poisson N."""
    term, below = math.exp(-mean), 0.0
    for at in range(count + 1):
        below += term
        term *= mean / (at + 1)
    return max(0.0, 1.0 - below)
