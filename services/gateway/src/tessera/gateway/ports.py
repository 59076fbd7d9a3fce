"""What the gateway needs of the world."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from tessera.domain.ids import VariantKey
from tessera.domain.instance import StageTime
from tessera.frames import FrameClient
from tessera.gateway.core.slots import InstanceSlot


@dataclass(frozen=True, slots=True)
class StartedInstance:
    """The scheduler's answer: everything that is needed to send, no waiting for etcd."""

    slot: InstanceSlot
    start_path: str
    fetched: bool
    stages: tuple[StageTime, ...]


class StartRequests(Protocol):
    async def start_instance(
        self, candidates: Sequence[VariantKey], request_id: str, budget_s: float, ready_within_s: float
    ) -> StartedInstance:
        """Asks the leader for an instance of one of the candidates (the choice first) and waits until it is ready. `ready_within_s`: so
        that the first request that waits is in time; starts that make it are preferred.

        Raises:
            Unavailable, StaleTerm: nobody leads right now, or the leader did not answer: ask again.
            TesseraError: of any other kind, why it cannot be.
        """
        ...


class RuntimeLinks(Protocol):
    def connected(self, slot: InstanceSlot) -> FrameClient | None:
        """The open connection to the slot's runtime, None when there is none that takes new requests."""
        ...

    async def connect(self, slot: InstanceSlot) -> FrameClient:
        """Opens it, or joins who is opening it, in a failure too. Raises: Unavailable, also where the runtime takes no new requests;
        FailedPrecondition."""
        ...


class Meter(Protocol):
    """Metrics, in the words of docs/nomenclature.md."""

    def decided(self, seconds: float) -> None: ...

    def answered(self, labels: tuple[str, str, str, str], outcome: str, seconds: float) -> None:
        """`labels`: model, version, variant, node, as far as they were known."""
        ...

    def waiting(self, change: int) -> None: ...

    def started(self, start_path: str, stages: Sequence[StageTime]) -> None: ...
