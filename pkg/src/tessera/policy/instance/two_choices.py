"""Of two instances drawn at random the one that is expected to answer sooner (Mitzenmacher, "The power of two choices", 2001).

It costs the same with a hundred instances as with two, and several gateways that do not know of each other's requests do not all choose
the same instance, as they do with the least of all.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from tessera.policy.instance.base import AnInstance, Draw, completion_ms


@dataclass(frozen=True, slots=True)
class TwoChoices:
    draw: Draw

    @property
    def name(self) -> str:
        return "two-choices"

    def pick(self, instances: Sequence[AnInstance]) -> AnInstance:
        count = len(instances)
        if count == 1:
            return instances[0]
        at = int(self.draw() * count)
        first, second = instances[at], instances[(at + 1 + int(self.draw() * (count - 1))) % count]
        first_ms, second_ms = completion_ms(first), completion_ms(second)
        if first_ms is None or second_ms is None:
            return first if first.in_flight <= second.in_flight else second
        return first if first_ms <= second_ms else second
