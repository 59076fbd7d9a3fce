"""The same small number of empty runtimes for every flavour, whatever happens."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from tessera.policy.pool.base import PoolDemand


@dataclass(frozen=True, slots=True)
class ConstantPool:
    @property
    def name(self) -> str:
        return "constant"

    def sizes(self, demands: Sequence[PoolDemand], least: int) -> Mapping[str, int]:
        return {demand.flavour: least for demand in demands}
