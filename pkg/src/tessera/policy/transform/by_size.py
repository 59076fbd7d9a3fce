"""Which planner makes the plans that are carried out: ours for programs of a few hundred operations, the published one beyond."""

from __future__ import annotations

from tessera.policy.transform.aligned import AlignedPlanner
from tessera.policy.transform.base import Planner
from tessera.policy.transform.group import GroupPlanner
from tessera.policy.transform.structure import Structure

MOST_OPERATIONS = 300
"""Of a program that is planned by the planner that looks at every pair of operations: some ten milliseconds of a process that has other
things to do. Beyond it the published one plans, which is linear."""


def planner_for(source: Structure, target: Structure) -> Planner:
    """One for both ways: the larger of the two decides."""
    many = max(len(source.operations), len(target.operations)) > MOST_OPERATIONS
    return GroupPlanner() if many else AlignedPlanner()
