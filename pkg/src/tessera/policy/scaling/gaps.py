"""How long a variant is usually left alone: a histogram of the gaps between one use and the next.

Shahrad et al., "Serverless in the Wild", USENIX ATC'20, section 4.2: bins of one minute over four hours; longer gaps are only counted.
A frozen value: adding returns a new one. Old habits fade: at `MOST_GAPS` all counts are halved.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

BIN_S = 60.0
BINS = 240
MOST_GAPS = 4096


@dataclass(frozen=True, slots=True)
class GapHistogram:
    """`counts[i]` gaps lasted from `i` to `i + 1` bins, trailing zeros left out; `beyond` lasted longer than all bins."""

    counts: tuple[int, ...] = ()
    beyond: int = 0

    @property
    def within(self) -> int:
        return sum(self.counts)

    @property
    def total(self) -> int:
        return self.within + self.beyond

    def add(self, gap_s: float) -> GapHistogram:
        """Raises: ValueError when `gap_s` is negative."""
        if gap_s < 0:
            raise ValueError(f"gap_s {gap_s}: must not be negative")
        at = int(gap_s / BIN_S)
        if at >= BINS:
            return GapHistogram(self.counts, self.beyond + 1)._faded()
        counts = self.counts + (0,) * (at + 1 - len(self.counts))
        return GapHistogram((*counts[:at], counts[at] + 1, *counts[at + 1 :]), self.beyond)._faded()

    def _faded(self) -> GapHistogram:
        if self.total < MOST_GAPS:
            return self
        counts = [count // 2 for count in self.counts]
        while counts and counts[-1] == 0:
            counts.pop()
        return GapHistogram(tuple(counts), self.beyond // 2)

    def longest_of(self, share: float) -> float:
        """Seconds within which `share` (0..1) of the gaps inside the bins ended: the upper edge of that bin. 0 without any gap."""
        wanted, seen = share * self.within, 0
        for at, count in enumerate(self.counts):
            seen += count
            if seen >= wanted and seen > 0:
                return (at + 1) * BIN_S
        return 0.0

    @property
    def variation(self) -> float:
        """Standard deviation over mean of all bins' counts: 0 when every gap is as frequent as any other, about 15 when all are alike."""
        mean = self.within / BINS
        if mean == 0:
            return 0.0
        return math.sqrt(max(0.0, sum(count * count for count in self.counts) / BINS - mean * mean)) / mean
