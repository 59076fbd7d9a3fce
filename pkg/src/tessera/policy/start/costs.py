"""What a start path is expected to cost: from the profile of this variant on this profile class, else a stated default."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from tessera.domain.instance import Stage, StartPath
from tessera.domain.records import ProfileRecord

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
"""Fetching a missing byte: 500 MB/s from a local repository with hashing while writing."""


@dataclass(frozen=True, slots=True)
class CostModel:
    ms_per_byte: float = DEFAULT_MS_PER_BYTE
    path_ms: Mapping[tuple[StartPath, str], float] = field(default_factory=lambda: DEFAULT_PATH_MS)

    def path(self, start_path: StartPath, backend: str, profile: ProfileRecord | None) -> tuple[float, bool]:
        """(milliseconds without fetching, whether measured). A profile's fetch stage is left out: what is missing differs by node."""
        if profile is not None and start_path is not StartPath.WARM:
            measured = next((cost for cost in profile.load if cost.start_path is start_path), None)
            if measured is not None:
                return sum(stage.ms for stage in measured.stages if stage.stage is not Stage.FETCH), True
        if start_path is StartPath.WARM:
            return 0.0, True
        return self.path_ms.get((start_path, backend), FALLBACK_PATH_MS[start_path]), False

    def fetch_ms(self, bytes_to_fetch: float) -> float:
        return bytes_to_fetch * self.ms_per_byte
