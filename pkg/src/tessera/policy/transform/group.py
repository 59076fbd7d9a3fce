"""The published online planner (Optimus, EuroSys'24): operations by type, and within a type the first with the first. Linear."""

from __future__ import annotations

from collections import defaultdict

from tessera.policy.transform.base import Pairs
from tessera.policy.transform.matrix import CostMatrix


class GroupPlanner:
    name = "group"

    def pairs(self, matrix: CostMatrix) -> Pairs:
        waiting: defaultdict[str, list[int]] = defaultdict(list)
        for at, operation in enumerate(matrix.source.structure.operations):
            waiting[operation.kind].append(at)
        for each in waiting.values():
            each.reverse()
        targets = enumerate(matrix.target.structure.operations)
        return tuple([(waiting[operation.kind].pop(), at) for at, operation in targets if waiting.get(operation.kind)])
