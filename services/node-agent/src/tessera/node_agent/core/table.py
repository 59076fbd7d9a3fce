"""The instances of this node and where each stands.

Invariants: a state moves only by `tessera.domain.instance.step`; an instance id and a generation name one instance for as long as
the table remembers it; every move leaves a line in the instance's story. The table decides nothing: it refuses what is impossible.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any

from tessera.domain.errors import AlreadyExists, NotFound, TesseraError
from tessera.domain.ids import Digest, Generation, InstanceId, RuntimeId, VariantKey
from tessera.domain.instance import TERMINAL, InstanceState, StageTime, StartPath, step
from tessera.domain.records import AssignmentRecord

STORY_LINES = 64
"""Lines of an instance's story that are kept; the oldest go first."""


@dataclass(frozen=True, slots=True)
class Instance:
    """A variant on its way into a runtime, in it, or on its way out.

    `expires_at_s` (monotonic) is the end of a provisional assignment; None once a record in etcd has confirmed it. Sizes in bytes,
    `stages` in milliseconds; while it is FETCHING, `fetch_done_bytes` of `fetch_total_bytes` are here. `fetched_bytes`: what its fetch
    stage was for, 0 where some of that was waiting. `opening`: its runtime opens it while it is READY already. `donor`: what it is made of.
    `error` says why it failed.
    """

    instance_id: InstanceId
    variant: VariantKey
    artifact: Digest | None
    generation: Generation
    state: InstanceState
    since_s: float
    expires_at_s: float | None
    start_path: StartPath
    donor: InstanceId | None = None
    runtime_id: RuntimeId | None = None
    fetched: bool = False
    stages: tuple[StageTime, ...] = ()
    blobs: frozenset[Digest] = frozenset()
    shared_bytes: int = 0
    private_bytes: int = 0
    max_batch: int = 1
    fetch_done_bytes: int = 0
    fetch_total_bytes: int = 0
    fetched_bytes: int = 0
    fetched_from_peers_bytes: int = 0
    idle_s: float = 0.0
    served: int = 0
    queue: int = 0
    executing: int = 0
    requests_per_s: float = 0.0
    run_p50_ms: float = 0.0
    run_p99_ms: float = 0.0
    parked: bool = False
    opening: bool = False
    items_per_s: float = 0.0
    run_items: float = 0.0
    error: TesseraError | None = field(default=None, compare=False)

    @property
    def alive(self) -> bool:
        return self.state not in TERMINAL

    @property
    def loading(self) -> bool:
        """Its runtime is loading it, whether requests may wait there already or not."""
        return self.state is InstanceState.LOADING or (self.alive and self.opening)

    @property
    def whereabouts(self) -> str:
        """Its state in words, with how far its bytes are."""
        if self.state is InstanceState.FETCHING and self.fetch_total_bytes:
            return f"{self.state} ({self.fetch_done_bytes} of {self.fetch_total_bytes} bytes)"
        return str(self.state)

    @property
    def provisional(self) -> bool:
        return self.expires_at_s is not None


def accepted(record: AssignmentRecord, now_s: float) -> Instance:
    """What a record in etcd assigns, not begun yet."""
    return Instance(
        record.instance_id, record.variant, record.artifact, record.generation, InstanceState.ACCEPTED, now_s, None, record.start_path.again
    )


@dataclass(frozen=True, slots=True)
class StoryLine:
    at_s: float
    words: str


class InstanceTable:
    """Instances by id, with their stories."""

    def __init__(self) -> None:
        self._instances: dict[InstanceId, Instance] = {}
        self._generations: dict[Generation, InstanceId] = {}
        self._stories: dict[InstanceId, deque[StoryLine]] = {}

    def __iter__(self) -> Iterator[Instance]:
        return iter(tuple(self._instances.values()))

    def __len__(self) -> int:
        return len(self._instances)

    def find(self, instance_id: InstanceId) -> Instance | None:
        return self._instances.get(instance_id)

    def get(self, instance_id: InstanceId) -> Instance:
        """Raises: NotFound when this node does not know the instance."""
        found = self._instances.get(instance_id)
        if found is None:
            raise NotFound(f"instance {instance_id!r} is not on this node")
        return found

    def add(self, instance: Instance, why: str) -> Instance:
        """Takes in a new instance: ACCEPTED, or READY when it is adopted from a live runtime.

        Raises:
            AlreadyExists: the id or the generation belongs to an instance that the table knows.
            ValueError: another state than these two.
        """
        if instance.state not in (InstanceState.ACCEPTED, InstanceState.READY):
            raise ValueError(f"an instance does not begin as {instance.state}")
        if instance.instance_id in self._instances:
            raise AlreadyExists(f"instance {instance.instance_id!r} is on this node already")
        holder = self._generations.get(instance.generation)
        if holder is not None:
            raise AlreadyExists(f"generation {instance.generation:016x} belongs to instance {holder!r}")
        self._instances[instance.instance_id] = instance
        self._generations[instance.generation] = instance.instance_id
        self._stories[instance.instance_id] = deque(maxlen=STORY_LINES)
        self.tell(instance.instance_id, instance.since_s, f"{instance.state}: {why}")
        return instance

    def move(self, instance_id: InstanceId, to: InstanceState, now_s: float, why: str, **changes: Any) -> Instance:
        """One step forward; `changes` are further fields of `Instance`.

        Raises:
            NotFound: no such instance.
            ValueError: `to` does not follow its state.
        """
        old = self.get(instance_id)
        new = replace(old, state=step(old.state, to), since_s=now_s, **changes)
        self._instances[instance_id] = new
        self.tell(instance_id, now_s, f"{to}: {why}")
        return new

    def note(self, instance_id: InstanceId, **changes: Any) -> Instance:
        """Sets fields other than the state.

        Raises:
            NotFound: no such instance.
            ValueError: the state (or what names the instance) is among the changes.
        """
        if changes.keys() & {"state", "instance_id", "generation"}:
            raise ValueError("a state changes by move(), a name never")
        new = replace(self.get(instance_id), **changes)
        self._instances[instance_id] = new
        return new

    def tell(self, instance_id: InstanceId, now_s: float, words: str) -> None:
        self._stories[instance_id].append(StoryLine(now_s, words))

    def story(self, instance_id: InstanceId) -> tuple[StoryLine, ...]:
        """What happened to it, oldest first. Raises: NotFound."""
        self.get(instance_id)
        return tuple(self._stories[instance_id])

    def forget(self, instance_id: InstanceId) -> None:
        """Drops a terminal instance and frees its id.

        Raises:
            NotFound: no such instance.
            ValueError: it is not terminal.
        """
        instance = self.get(instance_id)
        if instance.alive:
            raise ValueError(f"instance {instance_id!r} is {instance.state}, not over")
        del self._instances[instance_id]
        del self._stories[instance_id]
        del self._generations[instance.generation]

    def in_runtime(self, runtime_id: RuntimeId) -> tuple[Instance, ...]:
        """Live instances that this runtime holds or is about to hold."""
        return tuple(i for i in self._instances.values() if i.runtime_id == runtime_id and i.alive)
