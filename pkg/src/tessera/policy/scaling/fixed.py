"""An instance ends when it has been idle longer than one window for all, the longest idle one first."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from tessera.domain.ids import VariantKey
from tessera.policy.scaling.base import DEFAULT_KEEP_ALIVE_S, StopProposal, Window, idle_beyond
from tessera.policy.scaling.gaps import GapHistogram
from tessera.policy.view import NodeView


@dataclass(frozen=True, slots=True)
class FixedKeepAlive:
    """`keep_alive_s` 0 keeps nothing; an instance idle for exactly the window still stays."""

    keep_alive_s: float = DEFAULT_KEEP_ALIVE_S

    @property
    def name(self) -> str:
        return "fixed"

    def window(self, gaps: GapHistogram) -> Window:
        return Window(self.keep_alive_s)

    def propose(self, nodes: Sequence[NodeView], gaps: Mapping[VariantKey, GapHistogram]) -> tuple[StopProposal, ...]:
        window = Window(self.keep_alive_s)
        return idle_beyond(nodes, lambda variant: window)
