"""The interface of planners: which operation of the source becomes which one of the target."""

from __future__ import annotations

from typing import Protocol

from tessera.policy.transform.matrix import CostMatrix

Pairs = tuple[tuple[int, int], ...]
"""Places in source and target, each at most once, of operations of the same kind; by the target's."""


class Planner(Protocol):
    @property
    def name(self) -> str: ...

    def pairs(self, matrix: CostMatrix) -> Pairs: ...
