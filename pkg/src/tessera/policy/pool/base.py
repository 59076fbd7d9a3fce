"""The interface of pool policies: how many empty runtimes shall wait. The node agent forks, and retires what is too many later."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True, slots=True)
class PoolDemand:
    """What is asked of the pool of one flavour.

    `takes_per_s`: starts that need an empty runtime, on average. `create_s`: how long making one takes. `runtime_bytes`: the private
    memory of an empty one.
    """

    flavour: str
    takes_per_s: float
    create_s: float
    runtime_bytes: int


class PoolPolicy(Protocol):
    @property
    def name(self) -> str: ...

    def sizes(self, demands: Sequence[PoolDemand], least: int) -> Mapping[str, int]:
        """Empty runtimes wanted by flavour, at least `least` each. The result does not depend on the order of `demands`."""
        ...
