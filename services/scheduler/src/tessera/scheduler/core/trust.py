"""How far plans of transformations can be believed: what starts took over what was expected, by profile class and
backend.

A path whose estimates were too low is expected to take more from then on, so that it is chosen less; one that was too careful, less. No
single start says much: any may have waited for a processor.
"""

from __future__ import annotations

from tessera.domain.ids import ProfileClass

GAIN = 1 / 8
MOST_AT_ONCE = 2.0
LEAST, MOST = 1 / 64, 64.0


class Trust:
    """A factor on estimates, 1 where nothing was seen."""

    def __init__(self) -> None:
        self._factors: dict[tuple[ProfileClass, str], float] = {}

    def factor(self, profile_class: ProfileClass, backend: str) -> float:
        return self._factors.get((profile_class, backend), 1.0)

    def note(self, profile_class: ProfileClass, backend: str, planned_ms: float, took_ms: float) -> None:
        """`planned_ms`: the estimate before any factor, more than 0. Moves the factor by an eighth of the way, on a scale of doublings, to
        what would have been right, which counts as at most twice and at least half of what was expected."""
        known = self.factor(profile_class, backend)
        wrong = min(max(took_ms / (planned_ms * known), 1 / MOST_AT_ONCE), MOST_AT_ONCE)
        self._factors[profile_class, backend] = min(max(known * wrong**GAIN, LEAST), MOST)
