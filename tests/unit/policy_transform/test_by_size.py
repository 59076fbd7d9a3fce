"""One rule says whose plans are carried out, for all who make or show them."""

from __future__ import annotations

import pytest
from transform_programs import a_program

from tessera.policy.transform.by_size import MOST_OPERATIONS, planner_for


@pytest.mark.parametrize(
    ("source", "target", "planner"),
    [
        (1, 1, "tessera"),
        (MOST_OPERATIONS, MOST_OPERATIONS, "tessera"),
        (MOST_OPERATIONS + 1, 1, "group"),
        (1, MOST_OPERATIONS + 1, "group"),
    ],
)
def test_the_larger_of_the_two_decides(source: int, target: int, planner: str) -> None:
    here, there = (a_program([("relu", 0, 1, 0, 0)] * length).structure for length in (source, target))
    assert planner_for(here, there).name == planner
