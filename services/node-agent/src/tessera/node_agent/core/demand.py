"""What is asked of the pools of empty runtimes: learnt from starts that took one, and from how long new ones took."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

from tessera.policy.fading import FadingCount
from tessera.policy.pool.base import PoolDemand

HORIZON_S = 600.0
"""How far back starts count: a burst is over by then."""
LATEST_SHARE = 0.2
"""Of the average creation time: five or so of the last ones make it up."""
ASSUMED_CREATE_S = 0.05
ASSUMED_RUNTIME_BYTES = 64 << 20
"""Until one was made, and until one has said how much memory it takes."""


@dataclass(frozen=True, slots=True)
class FlavourDemand:
    takes: FadingCount
    create_s: float | None = None


@dataclass(frozen=True, slots=True)
class Demand:
    """By flavour. Every step returns a new value."""

    flavours: Mapping[str, FlavourDemand] = field(default_factory=dict)

    def taken(self, flavour: str, now_s: float) -> Demand:
        """A start took an empty runtime, or had to wait for one."""
        known = self._of(flavour, now_s)
        return self._with(flavour, replace(known, takes=known.takes.again(now_s)))

    def created(self, flavour: str, took_s: float, now_s: float) -> Demand:
        known = self._of(flavour, now_s)
        before_s = known.create_s if known.create_s is not None else took_s
        return self._with(flavour, replace(known, create_s=before_s + LATEST_SHARE * (took_s - before_s)))

    def asked(self, flavours: Iterable[str], runtime_bytes: Mapping[str, int], now_s: float) -> tuple[PoolDemand, ...]:
        """What a pool policy looks at. A rate counts at least the horizon, so that two starts at once are not a flood."""
        found = []
        for flavour in flavours:
            known = self._of(flavour, now_s)
            create_s = known.create_s if known.create_s is not None else ASSUMED_CREATE_S
            rate = known.takes.faded(now_s).count / HORIZON_S
            found.append(PoolDemand(flavour, rate, create_s, runtime_bytes.get(flavour) or ASSUMED_RUNTIME_BYTES))
        return tuple(found)

    def _of(self, flavour: str, now_s: float) -> FlavourDemand:
        return self.flavours.get(flavour) or FlavourDemand(FadingCount(HORIZON_S, now_s))

    def _with(self, flavour: str, demand: FlavourDemand) -> Demand:
        return Demand({**self.flavours, flavour: demand})
