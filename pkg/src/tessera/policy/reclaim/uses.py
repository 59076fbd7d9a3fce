"""How often a blob was used, in two numbers that fade: uses that count less the longer they are past, and the time watched, likewise.

Their ratio is the rate of use, weighted towards the last hours. A frozen value, kept by whoever owns the blob, also while the blob is
away: what comes back again and again is worth more than what came once.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

HORIZON_S = 4 * 3600.0
"""A use counts 1/e after this long: hours of a working day, not its shifts. Twice or a quarter of it changed the bytes fetched by 1 %."""


@dataclass(frozen=True, slots=True)
class UseCount:
    """As of `at_s`, monotonic. `count` has no unit, `watched_s` is at most `HORIZON_S`."""

    count: float
    watched_s: float
    at_s: float

    @staticmethod
    def first(now_s: float) -> UseCount:
        return UseCount(1.0, 0.0, now_s)

    def faded(self, now_s: float) -> UseCount:
        """As of `now_s`, without another use. A time before `at_s` changes nothing."""
        if now_s <= self.at_s:
            return self
        left = math.exp((self.at_s - now_s) / HORIZON_S)
        return UseCount(self.count * left, self.watched_s * left + HORIZON_S * (1.0 - left), now_s)

    def again(self, now_s: float) -> UseCount:
        faded = self.faded(now_s)
        return UseCount(faded.count + 1.0, faded.watched_s, faded.at_s)
