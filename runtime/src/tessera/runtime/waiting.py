"""A request in the queue of an instance."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

from tessera.frames.codec import FrameResponse
from tessera.runtime.tensors import CheckedRequest


@dataclass(slots=True, eq=False)
class Waiting:
    """`opening_s`: for how long of its waiting the instance was being opened."""

    request: CheckedRequest
    key: object
    model_name: str
    request_id: str
    generation: int
    arrived_s: float
    deadline_s: float
    future: asyncio.Future[FrameResponse]
    alone: bool = False
    """Set after a joined batch failed: whose fault it was shows when each runs by itself."""
    opening_s: float = 0.0

    def company_until_s(self, delay_s: float) -> float:
        """Until when it waits for others: for at most half of its budget, because waiting must not be what makes it late."""
        return self.arrived_s + min(delay_s, (self.deadline_s - self.arrived_s) / 2)

    def waited_us(self, until_s: float) -> tuple[int, int]:
        """How long it waited in the queue, and for the opening, until `until_s`."""
        opening_us = int(self.opening_s * 1e6)
        return max(0, int((until_s - self.arrived_s) * 1e6) - opening_us), opening_us
