"""The optimum on the cost matrix, by assignment (Munkres, 1957; scipy's solver is Jonker and Volgenant's): cubic, and what the
others are measured against.

Optimus assigns on (n + m) x (n + m) with dummies for Add and Reduce. The same optimum comes of n x m with what a pair saves against
both, and of one kind after another, since no pair has two kinds.
"""

from __future__ import annotations

import numpy as np

from tessera.domain.errors import FailedPrecondition
from tessera.policy.transform.base import Pairs
from tessera.policy.transform.matrix import CostMatrix


class MunkresPlanner:
    """Raises from `pairs`: FailedPrecondition where scipy is not installed (extra `munkres`)."""

    name = "munkres"

    def pairs(self, matrix: CostMatrix) -> Pairs:
        try:
            from scipy.optimize import linear_sum_assignment
        except ImportError as error:
            raise FailedPrecondition("planner 'munkres' needs scipy: install tessera-pkg[munkres]") from error
        found: list[tuple[int, int]] = []
        for rows, columns, saved in matrix.blocks():
            for row, column in zip(*linear_sum_assignment(np.maximum(saved, 0.0), maximize=True), strict=True):
                if saved[row, column] > 0:
                    found.append((rows[row], columns[column]))
        return tuple(sorted(found, key=lambda pair: pair[1]))
