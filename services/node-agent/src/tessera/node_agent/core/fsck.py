"""What a node's store says, what its runtimes say, and what the kernel shows: do they agree? Pure; findings in words.

Three views of one thing. The store says who holds what (nothing that is held is reclaimed). A runtime says what it holds and maps. The
kernel shows what is mapped. Each claim of one must have its ground in the next.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass

from tessera.domain.ids import Digest, RuntimeId
from tessera.tensorstore.interface import MappedFile

SHOWN = 4


@dataclass(frozen=True, slots=True)
class Declaration:
    """What a runtime says that it holds (for instances) and what it maps (held, or kept for a later load)."""

    holds: frozenset[Digest]
    mapped: frozenset[Digest]


@dataclass(frozen=True, slots=True)
class Occupant:
    """A runtime that the agent knows. `declared` None: it did not answer. `unmapped`: what is held for it though it declares no hold on
    it, because it reads but does not map it (artifacts)."""

    runtime_id: RuntimeId
    pid: int
    alive: bool
    declared: Declaration | None
    unmapped: frozenset[Digest]


@dataclass(frozen=True, slots=True)
class Seen:
    """One look. `own_holders`: who holds for the agent itself (starts and jobs under way, peers being served); `own_pids`: the agent's
    process and those that it started for itself, which read the store without being runtimes."""

    holders: Mapping[str, frozenset[Digest]]
    occupants: Collection[Occupant]
    own_holders: Collection[str]
    own_pids: Collection[int]
    mappings: Iterable[MappedFile]


def compare(seen: Seen) -> list[str]:
    """Everything that does not agree, sorted."""
    known = {str(occupant.runtime_id) for occupant in seen.occupants} | set(seen.own_holders)
    findings = [
        f"{holder} holds {_some(held)}, and nothing of that name lives" for holder, held in seen.holders.items() if holder not in known
    ]
    for occupant in seen.occupants:
        findings += _occupant(occupant, seen.holders.get(occupant.runtime_id, frozenset()))
    findings += _mappings(seen)
    return sorted(findings)


def _occupant(occupant: Occupant, pinned: frozenset[Digest]) -> Iterable[str]:
    name = f"runtime {occupant.runtime_id} (pid {occupant.pid})"
    if not occupant.alive:
        yield f"{name} has ended and is kept as if it lived, with {len(pinned)} holds"
        return
    if occupant.declared is None:
        yield f"{name} does not say what it holds"
        return
    unpinned = occupant.declared.holds - pinned
    if unpinned:
        yield f"{name} uses {_some(unpinned)} without a hold in the store"
    undeclared = pinned - occupant.declared.holds - occupant.unmapped
    if undeclared:
        yield f"{name} is held {_some(undeclared)}, which it does not use"


def _mappings(seen: Seen) -> Iterable[str]:
    by_pid: dict[int, set[Digest]] = {}
    for file in seen.mappings:
        by_pid.setdefault(file.pid, set()).add(Digest(file.name))
    occupants = {occupant.pid: occupant for occupant in seen.occupants}
    for pid, mapped in by_pid.items():
        occupant = occupants.get(pid)
        if occupant is not None:
            hidden = mapped - occupant.declared.mapped if occupant.declared is not None else frozenset()
            if hidden:
                yield f"runtime {occupant.runtime_id} (pid {pid}) maps {_some(hidden)} and does not say so"
        elif pid not in seen.own_pids:
            yield f"process {pid} maps {_some(mapped)} and is no runtime of this node"


def _some(digests: Collection[Digest]) -> str:
    shown = ", ".join(sorted(digests)[:SHOWN])
    return f"{shown} and {len(digests) - SHOWN} more" if len(digests) > SHOWN else shown
