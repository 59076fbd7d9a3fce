"""What a load is asked for, what it answers, and where it stands meanwhile."""

from __future__ import annotations

from dataclasses import dataclass

from tessera.domain.ids import Digest, Generation, InstanceId
from tessera.runtime.blobs import ArtifactBlobs


@dataclass(frozen=True, slots=True)
class Becoming:
    """Of a load by transformation: the idle instance that ends with it, the delta from its graph (docs/adr/0012), and for how long nobody
    must have asked it."""

    instance_id: InstanceId
    delta: bytes
    idle_s: float = 0.0


@dataclass(frozen=True, slots=True)
class LoadRequest:
    instance_id: InstanceId
    generation: Generation
    variant: str
    artifact: Digest
    max_delay_us: int = 0
    verify: bool = False
    donor: Becoming | None = None


@dataclass(frozen=True, slots=True)
class LoadAnswer:
    map_ms: float
    load_ms: float
    mapped_bytes: int
    private_bytes: int


@dataclass(slots=True)
class Opening:
    """A load whose bytes are mapped; `load_ms` and the rest of `grown_bytes` are known when it is open."""

    blobs: ArtifactBlobs
    map_ms: float
    grown_bytes: int
    load_ms: float = 0.0

    @property
    def answer(self) -> LoadAnswer:
        return LoadAnswer(self.map_ms, self.load_ms, self.blobs.mapped_bytes, self.grown_bytes)
