"""Which programs runtimes of this node have opened without an error: what has worked is announced before it is open once more.

A program is a graph, or an artifact without one: siblings differ in their tensors, and what can go wrong is the graph's.
"""

from __future__ import annotations

from collections import OrderedDict

from tessera.domain.ids import Digest

MAX_PROGRAMS = 4096


class OpenedPrograms:
    """Bounded; what was not opened for longest is forgotten first."""

    def __init__(self, limit: int = MAX_PROGRAMS) -> None:
        self._limit = limit
        self._known: OrderedDict[tuple[str, Digest], None] = OrderedDict()

    def __len__(self) -> int:
        return len(self._known)

    def knows(self, flavour: str, program: Digest) -> bool:
        return (flavour, program) in self._known

    def opened(self, flavour: str, program: Digest) -> None:
        self._known[flavour, program] = None
        self._known.move_to_end((flavour, program))
        if len(self._known) > self._limit:
            self._known.popitem(last=False)

    def failed(self, flavour: str, program: Digest) -> None:
        self._known.pop((flavour, program), None)
