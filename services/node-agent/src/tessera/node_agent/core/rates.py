"""How fast a total grows: requests served, CPU seconds used."""

from __future__ import annotations


class Rate:
    """Growth per second over the last interval of at least `interval_s` seconds, however often somebody looks."""

    def __init__(self, interval_s: float) -> None:
        self._interval_s = interval_s
        self._total: float | None = None
        self._at_s = 0.0
        self.per_s = 0.0

    def note(self, total: float, now_s: float) -> float:
        """`total` as of `now_s` (monotonic). Returns growth per second; 0 before the first interval is over. One that fell began anew."""
        if self._total is None or total < self._total:
            self._total, self._at_s = total, now_s
        elif now_s - self._at_s >= self._interval_s:
            self.per_s = (total - self._total) / (now_s - self._at_s)
            self._total, self._at_s = total, now_s
        return self.per_s
