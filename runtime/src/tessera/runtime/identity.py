"""What an instance is called, what it may take, and where it stands."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from tessera.domain.ids import Digest, Generation, InstanceId

DEFAULT_MAX_QUEUE = 1024


class InstancePhase(StrEnum):
    """docs/states/runtime.md; forward only."""

    SERVING = "serving"
    DRAINING = "draining"
    GONE = "gone"


@dataclass(slots=True)
class BatchLimits:
    """`max_delay_us`: how long the first of a batch may wait for company, nobody in it longer than half of its budget; 0 takes what is
    there when the worker gets free."""

    max_batch: int
    max_delay_us: int = 0
    max_queue: int = DEFAULT_MAX_QUEUE


@dataclass(frozen=True, slots=True)
class InstanceIdentity:
    """`version` is what answers say as model_version."""

    instance_id: InstanceId
    generation: Generation
    variant: str
    version: str
    artifact_digest: Digest
