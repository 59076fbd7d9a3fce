"""How often something happens, in two numbers that fade: events that count less the longer they are past, and the time watched, likewise.

Their ratio is the rate, weighted towards the last horizon. A frozen value.
"""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class FadingCount:
    """As of `at_s`, monotonic. An event counts 1/e after `horizon_s`; `watched_s` is at most that."""

    horizon_s: float
    at_s: float
    count: float = 0.0
    watched_s: float = 0.0

    def faded(self, now_s: float) -> FadingCount:
        """As of `now_s`, without another event. A time before `at_s` changes nothing."""
        if now_s <= self.at_s:
            return self
        left = math.exp((self.at_s - now_s) / self.horizon_s)
        return FadingCount(self.horizon_s, now_s, self.count * left, self.watched_s * left + self.horizon_s * (1.0 - left))

    def again(self, now_s: float, apart_s: float = 0.0) -> FadingCount:
        """One event more; one that follows the last within `apart_s` is the same event."""
        if self.count > 0.0 and now_s - self.at_s < apart_s:
            return self
        faded = self.faded(now_s)
        return FadingCount(faded.horizon_s, faded.at_s, faded.count + 1.0, faded.watched_s)
