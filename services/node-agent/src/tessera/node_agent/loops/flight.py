"""A start on its way, as whoever waits for it or wants it ended sees it."""

from __future__ import annotations

import asyncio
import threading
from dataclasses import dataclass, field

from tessera.domain.source import Source


@dataclass(slots=True)
class Flight:
    """`stop_reason` is set when somebody wants the instance gone before it is there; `cancel` ends its fetching, for which
    `sources` are asked first."""

    done: asyncio.Event = field(default_factory=asyncio.Event)
    cancel: threading.Event = field(default_factory=threading.Event)
    stop_reason: str = ""
    sources: tuple[Source, ...] = ()
