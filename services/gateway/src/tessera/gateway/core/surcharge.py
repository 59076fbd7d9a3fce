"""What answers take beyond their queue and what the profile says of their batch: the way to the runtime and back, and a kernel that is
slower between other work than it was in a profile, or faster where the machine was busier then. Learnt from the answers, so that what is
promised holds where it is asked.

By the number of items, since a request of many is longer on its way; of all variants together, so that none is passed over for what it
took once.
"""

from __future__ import annotations

GAIN = 1 / 8
"""Of the newest answer, once there are eight: load comes and goes within tens of answers. An assumption."""


class Surcharge:
    """Milliseconds, by powers of two of items. What no request had yet is taken from the next smaller one; nothing known: 0."""

    __slots__ = ("_ms", "_seen")

    def __init__(self) -> None:
        self._ms: dict[int, float] = {}
        self._seen: dict[int, int] = {}

    def ms(self, items: int) -> float:
        return self._ms.get(self._place(items), 0.0)

    def note(self, items: int, beyond_ms: float, profiled_ms: float) -> None:
        """An answer took `beyond_ms` more (less than 0: less) than the profile's `profiled_ms`. However much more, it counts for no more
        than that: one that waited for a processor says little of the next. One that came sooner than was known counts as it is."""
        place = items.bit_length()
        seen = self._seen[place] = self._seen.get(place, 0) + 1
        known = self._ms.get(place, 0.0)
        self._ms[place] = known + min(beyond_ms - known, profiled_ms) * max(GAIN, 1 / seen)

    def doubt(self, items: int) -> None:
        """A request was refused for this alone. Refusals teach nothing: it wears off, until one is answered and counts again."""
        place = self._place(items)
        if self._ms.get(place, 0.0) > 0:
            self._ms[place] *= 1 - GAIN

    def _place(self, items: int) -> int:
        """The power of two whose answers tell of so many items."""
        place = items.bit_length()
        while place > 1 and place not in self._ms:
            place -= 1
        return place
