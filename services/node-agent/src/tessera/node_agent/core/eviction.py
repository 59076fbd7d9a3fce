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


def freed_bytes(going: Iterable[Idle], holders: Mapping[str, frozenset[Digest]], sizes: Mapping[Digest, int], mine: Counter[Digest]) -> int:
    """Bytes that nobody holds any more once `going` are gone. `mine` counts per digest the live instances that map it; `holders` that
    are no runtimes (starts under way, jobs) keep theirs."""
    left: Counter[Digest] = Counter()
    for instance in going:
        left.update(instance.blobs)
    kept: frozenset[Digest] = frozenset().union(*holders.values())
    return sum(sizes.get(digest, 0) for digest, count in left.items() if count >= mine[digest] and digest not in kept)


def plan_eviction(
    idle: Sequence[Idle],
    needed_bytes: int,
    keep: frozenset[Digest],
    others: Mapping[str, frozenset[Digest]],
    sizes: Mapping[Digest, int],
    mine: Counter[Digest],
) -> tuple[Idle, ...] | None:
    """The instances to stop so that `needed_bytes` come free, or None when even all of them do not do.

    Args:
        idle: what may go, first to go first (`evictable`).
        needed_bytes: what the store lacks after it has reclaimed all that nobody holds.
        keep: digests that the start itself needs: to free them would be no gain.
        others: what holders that are no runtimes hold.
        sizes: bytes by digest of what is in the store.
        mine: per digest, how many live instances map it, the idle ones included.
    """
    held = {**others, "the start": keep}
    going: list[Idle] = []
    while freed_bytes(going, held, sizes, mine) < needed_bytes:
        if len(going) == len(idle):
            return None
        going.append(idle[len(going)])
    # Who came to be chosen on the way to a larger one may stay after all; the longest idle is asked last.
    for instance in reversed(tuple(going)):
        rest = [other for other in going if other is not instance]
        if freed_bytes(rest, held, sizes, mine) >= needed_bytes:
            going = rest
    return tuple(going)
