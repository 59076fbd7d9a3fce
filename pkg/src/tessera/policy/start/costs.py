"""What a start path is expected to cost: what it took lately here, else the profile of this variant on this profile class, else a stated
default, either one corrected by how far such starts by the same path were off."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from tessera.domain.ids import NodeId, ProfileClass, TrustDomain, VariantKey
from tessera.domain.instance import StartPath, without_fetch_ms
from tessera.domain.records import ProfileRecord, VariantRecord

DEFAULT_PATH_MS: Mapping[tuple[StartPath, str], float] = {
    (StartPath.BIND, "ort"): 4.0,
    (StartPath.BIND, "aten"): 5.0,
    (StartPath.BIND, "identity"): 1.0,
    (StartPath.FORK, "ort"): 14.0,
    (StartPath.FORK, "aten"): 40.0,
    (StartPath.FORK, "identity"): 8.0,
    (StartPath.CONTAINER, "ort"): 900.0,
    (StartPath.CONTAINER, "aten"): 3000.0,
    (StartPath.CONTAINER, "identity"): 800.0,
}
"""Milliseconds per start path and backend where nothing was measured. Assumptions, meant for small CNNs on one CPU thread; what the
profiler measures replaces them."""

FALLBACK_PATH_MS: Mapping[StartPath, float] = {
    StartPath.WARM: 0.0,
    StartPath.BIND: 20.0,
    StartPath.FORK: 200.0,
    StartPath.CONTAINER: 5000.0,
}
"""For a backend that has no line above: pessimistic, so that a measured path wins."""

DEFAULT_MS_PER_BYTE = 2e-6
"""Fetching a missing byte: 500 MB/s from a local repository with hashing while writing. Where a node fetched lately, what it took there."""

StartKind = tuple[VariantKey, ProfileClass, StartPath]
"""Starts that should take the same."""
PathKind = tuple[TrustDomain, str, ProfileClass, StartPath, bool]
"""Starts whose estimates are off for the same reasons. The second one: a backend. The last: whether they were measured, else assumed."""


def path_kind(variant: VariantRecord, profile_class: ProfileClass, path: StartPath, measured: bool) -> PathKind:
    return (variant.key.trust_domain, variant.backend, profile_class, path, measured)


@dataclass(frozen=True, slots=True)
class StartsSeen:
    """What starts took lately. `took_ms`: of a variant, fetching left out. `off`: took over expected (1: as expected), of variants of which
    too few were seen. `ms_per_byte`: fetching, by the node that fetches. Who is in none was expected right, as far as anybody knows."""

    took_ms: Mapping[StartKind, float] = field(default_factory=dict)
    off: Mapping[PathKind, float] = field(default_factory=dict)
    ms_per_byte: Mapping[NodeId, float] = field(default_factory=dict)


NOTHING_SEEN = StartsSeen()


@dataclass(frozen=True, slots=True)
class PathCost:
    """`ms` without fetching. `measured`: from a profile or from starts of this variant; `words` say where it is from."""

    ms: float
    measured: bool
    words: str


@dataclass(frozen=True, slots=True)
class CostModel:
    ms_per_byte: float = DEFAULT_MS_PER_BYTE
    path_ms: Mapping[tuple[StartPath, str], float] = field(default_factory=lambda: DEFAULT_PATH_MS)

    def path(self, start_path: StartPath, backend: str, profile: ProfileRecord | None) -> tuple[float, bool]:
        """(milliseconds without fetching, whether measured), before anything started. A profile's fetch stage is left out: what is missing
        differs by node."""
        if start_path is StartPath.WARM:
            return 0.0, True
        measured = next((cost for cost in profile.load if cost.start_path is start_path), None) if profile is not None else None
        if measured is not None:
            return without_fetch_ms(measured.stages), True
        return self.path_ms.get((start_path, backend), FALLBACK_PATH_MS[start_path]), False

    def expected(
        self, path: StartPath, variant: VariantRecord, profile_class: ProfileClass, profile: ProfileRecord | None, seen: StartsSeen
    ) -> PathCost:
        """Of the next start. `profile`: the variant's on that class."""
        took_ms = seen.took_ms.get((variant.key, profile_class, path))
        if took_ms is not None:
            return PathCost(took_ms, True, "as it took lately")
        ms, measured = self.path(path, variant.backend, profile)
        words = "measured" if measured else "assumed"
        off = seen.off.get(path_kind(variant, profile_class, path, measured))
        if off is None:
            return PathCost(ms, measured, words)
        return PathCost(ms * off, measured, f"{words}, times {off:.2g} as such starts were off")

    def fetch_ms(self, bytes_to_fetch: float, node_id: NodeId, seen: StartsSeen) -> float:
        return bytes_to_fetch * seen.ms_per_byte.get(node_id, self.ms_per_byte)
