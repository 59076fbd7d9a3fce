"""What starts took, for the next estimates: a start path whose estimates were wrong is expected to take what it takes.

Of a variant that was started often enough lately, the median; of others, the median of how far such starts of their backend by that path
were off on that class of nodes (measured estimates and assumed ones apart). Of fetching, the median of what a byte took on the node. What
was seen is forgotten after a while: a path that was slow for a moment must get its chance again, and who is not chosen is never seen. In
memory, of one term. Departs from Optimus, whose safeguard compares estimates that nothing corrects.
"""

from __future__ import annotations

import statistics
from collections import OrderedDict, deque
from collections.abc import Iterable, Iterator
from typing import TypeVar

from tessera.domain.ids import InstanceId, NodeId, ProfileClass
from tessera.domain.instance import InstanceState, without_fetch_ms
from tessera.policy.start.costs import PathKind, StartKind, StartsSeen
from tessera.scheduler.core.observed import ObservedInstance, ObservedNode

LEAST, WINDOW = 3, 8
"""Starts of a variant by a path, and fetches of a node: that say something, and that are kept."""
LEAST_OFF, WINDOW_OFF = 8, 64
"""Starts of a backend by a path, of variants of which too few were seen."""
LEAST_BYTES = 1 << 20
"""Of a fetch that says something."""
FORGET_S = 600.0
"""After the last start of its kind."""
MOST_OFF = 8.0
"""Or one over it: a correction beyond that says that something else was the matter."""


KeyT = TypeVar("KeyT")
Windows = OrderedDict[KeyT, tuple[float, deque[float]]]
"""When the last one was seen, and the last ones; the longest ago first."""


class StartTimes:
    def __init__(self) -> None:
        self._took: Windows[StartKind] = OrderedDict()
        self._off: Windows[PathKind] = OrderedDict()
        self._fetched: Windows[NodeId] = OrderedDict()
        self._took_ms: dict[StartKind, float] = {}
        self._off_by: dict[PathKind, float] = {}
        self._ms_per_byte: dict[NodeId, float] = {}
        self._known: frozenset[InstanceId] = frozenset()
        self._nodes: frozenset[NodeId] = frozenset()

    @property
    def seen(self) -> StartsSeen:
        """Of this moment: valid until the next change here."""
        return StartsSeen(self._took_ms, self._off_by, self._ms_per_byte)

    def ended(self, nodes: Iterable[ObservedNode]) -> list[tuple[ObservedInstance, ProfileClass, float]]:
        """Starts whose end is reported for the first time, with the class of their nodes and what they took without fetching (ms, more than
        0). Whoever was ready at the first look at its node is passed over: nobody knows since when."""
        found: list[tuple[ObservedInstance, ProfileClass, float]] = []
        known: set[InstanceId] = set()
        looked_at: set[NodeId] = set()
        for node in nodes:
            looked_at.add(node.report.node_id)
            for item in node.instances:
                if item.state is not InstanceState.READY or item.opening:
                    continue
                known.add(item.instance_id)
                if item.instance_id in self._known or node.report.node_id not in self._nodes:
                    continue
                took_ms = without_fetch_ms(item.stages)
                if took_ms > 0:
                    found.append((item, node.report.profile_class, took_ms))
        self._known, self._nodes = frozenset(known), frozenset(looked_at)
        return found

    def note(self, start: StartKind, path: PathKind, took_ms: float, expected_ms: float, now_s: float) -> None:
        """`expected_ms`: before anything was learnt, more than 0."""
        window = _noted(self._took, start, took_ms, now_s, WINDOW)
        if len(window) >= LEAST:
            self._took_ms[start] = statistics.median(window)
            return  # one that is started all the time must not speak for the others
        window = _noted(self._off, path, min(max(took_ms / expected_ms, 1 / MOST_OFF), MOST_OFF), now_s, WINDOW_OFF)
        if len(window) >= LEAST_OFF:
            self._off_by[path] = statistics.median(window)

    def note_fetch(self, node_id: NodeId, fetched_bytes: int, took_ms: float, now_s: float) -> None:
        if fetched_bytes < LEAST_BYTES:
            return
        window = _noted(self._fetched, node_id, took_ms / fetched_bytes, now_s, WINDOW)
        if len(window) >= LEAST:
            self._ms_per_byte[node_id] = statistics.median(window)

    def forget(self, now_s: float) -> None:
        for start in _old(self._took, now_s):
            self._took_ms.pop(start, None)
        for path in _old(self._off, now_s):
            self._off_by.pop(path, None)
        for node_id in _old(self._fetched, now_s):
            self._ms_per_byte.pop(node_id, None)


def _noted(windows: Windows[KeyT], key: KeyT, value: float, now_s: float, most: int) -> deque[float]:
    _, window = windows.pop(key, (now_s, deque(maxlen=most)))
    window.append(value)
    windows[key] = (now_s, window)
    return window


def _old(windows: Windows[KeyT], now_s: float) -> Iterator[KeyT]:
    """Takes them out."""
    while windows and next(iter(windows.values()))[0] + FORGET_S <= now_s:
        yield windows.popitem(last=False)[0]
