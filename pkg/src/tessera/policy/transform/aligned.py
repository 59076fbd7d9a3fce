"""Tessera's own planner: the best plan that keeps the order of operations, or the published group plan where that is cheaper.

The best alignment of two sequences where each pair has a value, here what it saves against taking away and adding: the longest common
subsequence with weights (Needleman and Wunsch, 1970). Programs of a family are the same sequence with pieces put in or left out, so what
is kept mostly reads from where it read before, and few edges change.
"""

from __future__ import annotations

import numpy as np

from tessera.policy.transform.base import Pairs
from tessera.policy.transform.group import GroupPlanner
from tessera.policy.transform.matrix import CostMatrix

MOST_PAIRS = 4_000_000
"""Of operations that are compared with each other: 32 MB twice. Beyond it the group plan is taken, which is linear."""

_GROUP = GroupPlanner()


class AlignedPlanner:
    name = "tessera"

    def __init__(self, most_pairs: int = MOST_PAIRS) -> None:
        self._most_pairs = most_pairs

    def pairs(self, matrix: CostMatrix) -> Pairs:
        group = _GROUP.pairs(matrix)
        if len(matrix.source.structure.operations) * len(matrix.target.structure.operations) > self._most_pairs:
            return group
        own = aligned(matrix)
        return own if matrix.total_ms(own) <= matrix.total_ms(group) else group


def aligned(matrix: CostMatrix) -> Pairs:
    """Time and memory are in the product of the two lengths: 1,000 x 1,000 is 8 MB twice."""
    rows, columns = len(matrix.source.structure.operations), len(matrix.target.structure.operations)
    saved = np.zeros((rows, columns))
    for some_rows, some_columns, block in matrix.blocks():
        saved[np.ix_(some_rows, some_columns)] = np.maximum(block, 0.0)
    best = np.zeros((rows + 1, columns + 1))
    for row in range(rows):
        taken = np.maximum(best[row, 1:], best[row, :-1] + saved[row])
        np.maximum.accumulate(taken, out=best[row + 1, 1:])
    found: list[tuple[int, int]] = []
    row, column = rows, columns
    while row and column:
        if best[row, column] == best[row - 1, column]:
            row -= 1
        elif best[row, column] == best[row, column - 1]:
            column -= 1
        else:
            row, column = row - 1, column - 1
            found.append((row, column))
    return tuple(reversed(found))
