"""How far plans of transformations can be believed: what starts took over what was expected, by profile class.

A path whose estimates were too low is expected to take more from then on, so that it is chosen less; one that was too careful, less.
"""

from __future__ import annotations

from tessera.domain.ids import ProfileClass

GAIN = 1 / 8
LEAST, MOST = 0.25, 8.0


class Trust:
    """A factor on estimates, 1 where nothing was seen."""

    def __init__(self) -> None:
        self._factors: dict[ProfileClass, float] = {}

    def factor(self, profile_class: ProfileClass) -> float:
        return self._factors.get(profile_class, 1.0)

    def note(self, profile_class: ProfileClass, planned_ms: float, took_ms: float) -> None:
        """`planned_ms`: the estimate before any factor, more than 0."""
        known = self.factor(profile_class)
        ratio = min(max(took_ms / planned_ms, LEAST), MOST)
        self._factors[profile_class] = known + (ratio - known) * GAIN
