"""The runtime's claim on digests: what loaded instances use, and what the agent declared for loads that are to come.

Thread-safe: the event loop declares and ends, the loader uses.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterable

from tessera.domain.ids import Digest, InstanceId


class Holds:
    """A digest is held while a load that was announced with it is outstanding, or an instance uses it."""

    def __init__(self) -> None:
        self._declared: Counter[Digest] = Counter()
        self._used: dict[InstanceId, frozenset[Digest]] = {}
        self._lock = threading.Lock()

    def declare(self, digests: Iterable[Digest]) -> None:
        """Announces one load that needs `digests`."""
        with self._lock:
            self._declared.update(set(digests))

    def withdraw(self, digests: Iterable[Digest]) -> list[Digest]:
        """Takes one announcement back (its load will not come). Returns what nobody holds any more."""
        wanted = set(digests)
        with self._lock:
            self._take_declared(wanted)
            held = self._held()
        return sorted(wanted - held)

    def missing(self, digests: Iterable[Digest]) -> list[Digest]:
        """Those that are not held."""
        with self._lock:
            rest = [digest for digest in digests if digest not in self._declared]
            held = self._held() if rest else set()
        return [digest for digest in rest if digest not in held]

    def use(self, instance_id: InstanceId, digests: Iterable[Digest]) -> None:
        """The announced load of `instance_id` begins: what was declared for it is now used by it."""
        wanted = frozenset(digests)
        with self._lock:
            self._used[instance_id] = wanted
            self._take_declared(wanted)

    def end(self, instance_id: InstanceId) -> list[Digest]:
        """The instance is gone, or its load failed. Returns what nobody holds any more."""
        with self._lock:
            wanted = self._used.pop(instance_id, frozenset())
            return sorted(wanted - self._held())

    def held(self) -> set[Digest]:
        with self._lock:
            return self._held()

    def _held(self) -> set[Digest]:
        return set(self._declared).union(*self._used.values())

    def _take_declared(self, digests: Iterable[Digest]) -> None:
        for digest in digests:
            if self._declared[digest] > 1:
                self._declared[digest] -= 1
            else:
                del self._declared[digest]
