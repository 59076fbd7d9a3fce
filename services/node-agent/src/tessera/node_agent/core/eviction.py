"""Which idle instances go when a start needs the room of what they hold.

The least recently used go first, as few as it takes; one whose blobs the others hold anyway frees nothing and stays. An instance that
serves, or served a moment ago, is not proposed: two models that are both in use and do not fit together would chase each other out.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from tessera.domain.ids import Digest, InstanceId


@dataclass(frozen=True, slots=True)
class Idle:
    """An instance without a request since `idle_s` seconds, and the blobs that it maps."""

    instance_id: InstanceId
    idle_s: float
    blobs: frozenset[Digest]


def evictable(instances: Iterable[Idle], least_idle_s: float) -> list[Idle]:
    """Those that may go, the longest idle first; equal ones by id."""
    found = [instance for instance in instances if instance.idle_s >= least_idle_s]
    return sorted(found, key=lambda instance: (-instance.idle_s, instance.instance_id))


class _Going:
    """Instances on their way out, and the bytes that nobody holds any more once they are gone. `mine` counts per digest the live
    instances that map it; `holders` that are no runtimes (starts under way, jobs) keep theirs."""

    def __init__(self, holders: Mapping[str, frozenset[Digest]], sizes: Mapping[Digest, int], mine: Counter[Digest]) -> None:
        self._kept: frozenset[Digest] = frozenset().union(*holders.values())
        self._sizes = sizes
        self._mine = mine
        self._left: Counter[Digest] = Counter()
        self.freed_bytes = 0

    def add(self, instance: Idle) -> None:
        self._left.update(instance.blobs)
        self.freed_bytes += self._last_of(instance)

    def remove(self, instance: Idle) -> None:
        self.freed_bytes -= self._last_of(instance)
        self._left.subtract(instance.blobs)

    def _last_of(self, instance: Idle) -> int:
        """Bytes of its blobs that every instance which maps them is giving up."""
        free = (digest for digest in instance.blobs if self._left[digest] == self._mine[digest] and digest not in self._kept)
        return sum(self._sizes.get(digest, 0) for digest in free)


def freed_bytes(going: Iterable[Idle], holders: Mapping[str, frozenset[Digest]], sizes: Mapping[Digest, int], mine: Counter[Digest]) -> int:
    """What comes free when all of `going` go; see `plan_eviction` for the arguments."""
    tally = _Going(holders, sizes, mine)
    for instance in going:
        tally.add(instance)
    return tally.freed_bytes


def plan_eviction(
    idle: Sequence[Idle],
    needed_bytes: int,
    keep: frozenset[Digest],
    others: Mapping[str, frozenset[Digest]],
    sizes: Mapping[Digest, int],
    mine: Counter[Digest],
) -> tuple[Idle, ...] | None:
    """The instances to stop so that `needed_bytes` come free, or None when even all of them do not do. Takes time linear in the blobs
    that the idle instances map.

    Args:
        idle: what may go, first to go first (`evictable`).
        needed_bytes: what the store lacks after it has reclaimed all that nobody holds.
        keep: digests that the start itself needs: to free them would be no gain.
        others: what holders that are no runtimes hold.
        sizes: bytes by digest of what is in the store.
        mine: per digest, how many live instances map it, the idle ones included.
    """
    tally = _Going({**others, "the start": keep}, sizes, mine)
    going: list[Idle] = []
    for instance in idle:
        if tally.freed_bytes >= needed_bytes:
            break
        tally.add(instance)
        going.append(instance)
    if tally.freed_bytes < needed_bytes:
        return None
    # Who came to be chosen on the way to a larger one may stay after all; the longest idle is asked last.
    needed: list[Idle] = []
    for instance in reversed(going):
        tally.remove(instance)
        if tally.freed_bytes < needed_bytes:
            tally.add(instance)
            needed.append(instance)
    return tuple(reversed(needed))
