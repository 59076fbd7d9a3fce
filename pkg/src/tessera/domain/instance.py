"""The states of an instance, its start paths and stages (docs/states/instance.md)."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum


class InstanceState(StrEnum):
    ACCEPTED = "accepted"
    FETCHING = "fetching"
    MAPPED = "mapped"
    LOADING = "loading"
    READY = "ready"
    DRAINING = "draining"
    GONE = "gone"
    FAILED = "failed"


_FORWARD: dict[InstanceState, frozenset[InstanceState]] = {
    InstanceState.ACCEPTED: frozenset({InstanceState.FETCHING, InstanceState.MAPPED, InstanceState.FAILED, InstanceState.GONE}),
    InstanceState.FETCHING: frozenset({InstanceState.MAPPED, InstanceState.FAILED, InstanceState.GONE}),
    InstanceState.MAPPED: frozenset({InstanceState.LOADING, InstanceState.FAILED, InstanceState.GONE}),
    InstanceState.LOADING: frozenset({InstanceState.READY, InstanceState.FAILED, InstanceState.GONE}),
    InstanceState.READY: frozenset({InstanceState.DRAINING, InstanceState.FAILED, InstanceState.GONE}),
    InstanceState.DRAINING: frozenset({InstanceState.GONE, InstanceState.FAILED}),
    InstanceState.GONE: frozenset(),
    InstanceState.FAILED: frozenset({InstanceState.GONE}),
}

TERMINAL = frozenset({InstanceState.GONE, InstanceState.FAILED})


def step(state: InstanceState, to: InstanceState) -> InstanceState:
    """Moves one step forward; the only way a state changes.

    Raises:
        ValueError: when `to` does not follow `state` (states never go back).
    """
    if to not in _FORWARD[state]:
        raise ValueError(f"an instance does not go from {state} to {to}")
    return to


class StartPath(StrEnum):
    """How an instance comes to be."""

    WARM = "warm"
    TRANSFORM = "transform"
    BIND = "bind"
    FORK = "fork"
    CONTAINER = "container"

    @property
    def again(self) -> StartPath:
        """How the same start is asked for once more: a transformation's donor is gone, and no record names it."""
        return StartPath.BIND if self is StartPath.TRANSFORM else self


class Stage(StrEnum):
    QUEUE = "queue"
    SCHEDULE = "schedule"
    FETCH = "fetch"
    FORK = "fork"
    CONTAINER = "container"
    MAP = "map"
    TRANSFORM = "transform"
    LOAD = "load"
    RUN = "run"


@dataclass(frozen=True, slots=True)
class StageTime:
    stage: Stage
    ms: float


def without_fetch_ms(stages: Iterable[StageTime]) -> float:
    """What a start took beside fetching, in ms: what is missing differs by node."""
    return sum(stage.ms for stage in stages if stage.stage is not Stage.FETCH)
