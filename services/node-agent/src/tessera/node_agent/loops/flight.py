"""A start on its way, as whoever waits for it or wants it ended sees it."""

from __future__ import annotations

import asyncio
import threading
from dataclasses import dataclass, field

from tessera.domain.errors import Cancelled
from tessera.domain.ids import InstanceId
from tessera.domain.source import Source


@dataclass(slots=True)
class Flight:
    """`done`: the instance is ready, or never will be; `over`: its runtime is not at work on it any more. `stop_reason` is set when
    somebody wants the instance gone before that; `cancel` ends its fetching, for which `sources` are asked first (None: nobody named any).
    `delta`: of a start by transformation, where it is planned already; `donor_idle_s`: for how long nobody must have asked its donor."""

    done: asyncio.Event = field(default_factory=asyncio.Event)
    over: asyncio.Event = field(default_factory=asyncio.Event)
    cancel: threading.Event = field(default_factory=threading.Event)
    stop_reason: str = ""
    sources: tuple[Source, ...] | None = None
    delta: bytes = b""
    donor_idle_s: float = 0.0

    def check_wanted(self, instance_id: InstanceId) -> None:
        """Raises: Cancelled: somebody wants it gone."""
        if self.stop_reason:
            raise Cancelled(f"instance {instance_id}: {self.stop_reason}")

    def end(self) -> None:
        self.done.set()
        self.over.set()


@dataclass(frozen=True, slots=True)
class StarterSettings:
    """`behind_s`: how long after its answer a start is published, noted and told about; none of that shall take the answer's time."""

    load_timeout_s: float
    drain_ms: int
    verify: bool
    behind_s: float = 0.0
