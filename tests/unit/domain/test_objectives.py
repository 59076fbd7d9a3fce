"""What a request may ask for, and how what is none is refused."""

from __future__ import annotations

import pytest

from tessera.domain.errors import InvalidInput
from tessera.domain.objectives import NO_OBJECTIVES, Objectives, objectives_of


def test_nothing_asked() -> None:
    assert objectives_of({"timeout": 5, "anything": "else"}) == NO_OBJECTIVES
    assert not NO_OBJECTIVES.any


def test_all_of_them() -> None:
    found = objectives_of({"latency_ms": 20, "min_accuracy": 0.9, "max_cost": 0.002, "dataset": "digits", "strict": True})
    assert found == Objectives(20.0, 0.9, 0.002, "digits", True)
    assert found.any


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("latency_ms", 0),
        ("latency_ms", -1),
        ("latency_ms", float("nan")),
        ("latency_ms", float("inf")),
        ("latency_ms", 1e9),
        ("latency_ms", "20"),
        ("latency_ms", True),
        ("min_accuracy", 1.01),
        ("min_accuracy", -0.1),
        ("max_cost", -1),
        ("max_cost", 1e7),
        ("dataset", 5),
        ("dataset", "No Such Name"),
        ("strict", 1),
        ("strict", True),
    ],
)
def test_what_is_none_is_refused_by_name(name: str, value: object) -> None:
    with pytest.raises(InvalidInput, match=f"parameter {name}"):
        objectives_of({name: value})
