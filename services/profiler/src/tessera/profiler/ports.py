"""What the profiler needs from outside, as Protocols."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from dataclasses import dataclass
from typing import Protocol

from tessera.domain.ids import Digest, NodeId, ProfileClass, TrustDomain, VariantKey, VersionKey
from tessera.domain.records import LatencyRow, LoadCost, MetaCostRecord, ModelRecord, NodeRecord, ProfileRecord, VariantRecord
from tessera.domain.transformation import Observation
from tessera.profiler.core.grid import Cell


@dataclass(frozen=True, slots=True)
class MeasureOrder:
    """One row of one variant. `artifact` is None for a variant without blobs (identity)."""

    node_id: NodeId
    variant: VariantKey
    artifact: Digest | None
    cell: Cell
    seconds: float
    min_repeats: int
    spread: float


Measured = LoadCost | LatencyRow | str
"""A load's cost, a row, or words of progress."""


class Agents(Protocol):
    """The node agents, by address."""

    def measure(self, address: str, order: MeasureOrder, budget_s: float) -> AsyncGenerator[Measured, None]:
        """Load costs and a row, with words in between, the last of which stand for the moment in which the row began. Closing it early
        ends the measuring. Raises: TesseraError, the agent's own reason."""
        ...

    def observe(self, address: str, trust_domain: TrustDomain, seconds: float, budget_s: float) -> AsyncGenerator[Observation | str, None]:
        """What transformations between the agent's specimens take, with words in between. Closing it early ends it.

        Raises: TesseraError, the agent's own reason.
        """
        ...

    async def close(self) -> None: ...


class Records(Protocol):
    """etcd's records, read when they are asked for. Every method raises Unavailable when etcd does not answer."""

    async def resolve(self, trust_domain: TrustDomain, name: str, version: int) -> VersionKey:
        """A model or an alias; version 0 is the alias's own, or the newest. Raises: ModelNotFound, VersionNotFound."""
        ...

    async def model(self, version: VersionKey) -> ModelRecord | None: ...

    async def variants(self, version: VersionKey) -> list[VariantRecord]: ...

    async def nodes(self, trust_domain: TrustDomain) -> list[NodeRecord]: ...

    async def profile(self, variant: VariantKey, profile_class: str) -> ProfileRecord | None: ...

    async def profiles(self, version: VersionKey) -> list[ProfileRecord]: ...

    async def meta_costs(self, trust_domain: TrustDomain, profile_class: ProfileClass) -> MetaCostRecord | None:
        """Of dialect `aten`."""
        ...

    async def all_meta_costs(self, trust_domain: TrustDomain) -> list[MetaCostRecord]: ...

    async def store_meta_costs(self, record: MetaCostRecord) -> None:
        """In the place of what was there."""
        ...

    async def store(self, profile: ProfileRecord, based_on: ProfileRecord | None) -> None:
        """Writes when the record is still `based_on`. Raises: Conflict; NotFound when the variant is gone."""
        ...
