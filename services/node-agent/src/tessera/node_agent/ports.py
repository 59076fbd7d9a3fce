"""What the node agent needs from outside, as Protocols."""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from tessera.domain.artifact import Artifact, Blob
from tessera.domain.ids import Digest, Generation, InstanceId, RuntimeId, Term, TrustDomain, VariantKey
from tessera.domain.instance import StageTime, StartPath
from tessera.domain.records import AssignmentRecord, InstanceRecord
from tessera.domain.source import Source
from tessera.node_agent.core.fsck import Declaration
from tessera.node_agent.core.pressure import MemoryReading
from tessera.node_agent.core.slices import Slice
from tessera.program import Stop
from tessera.repository.fetch import Fetched, Progress

RandomBytes = Callable[[int], bytes]
"""n -> n random bytes; runtime ids are drawn from it."""


@dataclass(frozen=True, slots=True)
class StartOrder:
    """A provisional assignment, as the scheduler's leader tells it. `budget_s`: how long the caller waits for the answer. `sources`: who
    has bytes of it, best first."""

    term: Term
    instance_id: InstanceId
    generation: Generation
    variant: VariantKey
    artifact: Digest | None
    start_path: StartPath
    expires_after_s: float
    budget_s: float
    request_id: str = ""
    sources: tuple[Source, ...] = ()
    donor: InstanceId | None = None
    delta: bytes = b""
    donor_idle_s: float = 0.0
    """Of a start by transformation: what it is made of, how (empty where that is still to be planned), and for how long nobody must have
    asked that."""


@dataclass(frozen=True, slots=True)
class HeldInstance:
    """An instance as its runtime names it when an agent says hello. `variant` is MODEL@VERSION/VARIANT."""

    instance_id: InstanceId
    generation: Generation
    artifact: Digest | None
    variant: str


@dataclass(frozen=True, slots=True)
class Hello:
    runtime_id: RuntimeId
    pid: int
    flavour: str
    threads: int
    holds: frozenset[Digest]
    instances: tuple[HeldInstance, ...]


@dataclass(frozen=True, slots=True)
class LoadReport:
    """What a runtime says after a load: stages `map` and `load` or `transform` in ms, bytes mapped, growth of its private memory."""

    stages: tuple[StageTime, ...]
    mapped_bytes: int
    private_bytes: int


@dataclass(frozen=True, slots=True)
class InstanceActivity:
    """`run_p50_ms`, `run_p99_ms`, `run_items`: of the runs that ended in the window that was asked for, 0 when none did. `items`: batch
    items answered, as `served` counts requests."""

    instance_id: InstanceId
    queue: int
    executing: int
    served: int
    idle_s: float
    run_p50_ms: float = 0.0
    run_p99_ms: float = 0.0
    parked: bool = False
    items: int = 0
    run_items: float = 0.0


@dataclass(frozen=True, slots=True)
class RuntimeActivity:
    """`shared_bytes`: resident pages of store files; `private_bytes` leaves them out. `cpu_s`: CPU seconds since the process began."""

    instances: tuple[InstanceActivity, ...]
    private_bytes: int
    shared_bytes: int
    proportional_bytes: int
    cpu_s: float


@dataclass(frozen=True, slots=True)
class MachineUse:
    """`cpu_s`: CPU seconds that everything on the machine has used since it began. `memory_pressure`: share (0..1) of the last 10 s in
    which somebody waited for memory (PSI `some avg10`)."""

    cpu_s: float
    memory_bytes: int
    memory_available_bytes: int
    memory_pressure: float


class Machine(Protocol):
    """The machine that the agent runs on."""

    def use(self) -> MachineUse:
        """Now; blocks for some hundred microseconds."""
        ...


@dataclass(frozen=True, slots=True)
class Becoming:
    """Of a load by transformation: the idle instance of the same runtime that ends with it, the delta between the two graphs, and for how
    long nobody must have asked the instance."""

    donor: InstanceId
    delta: bytes
    idle_s: float = 0.0


class Runtime(Protocol):
    """One live runtime. Every call raises `Unavailable` when its process is gone or does not answer in time."""

    @property
    def hello(self) -> Hello:
        """What it said when it was reached."""
        ...

    @property
    def alive(self) -> bool: ...

    @property
    def container_id(self) -> str:
        """The container in which it runs alone; empty for a process."""
        ...

    async def load(
        self,
        instance_id: InstanceId,
        generation: Generation,
        variant: VariantKey,
        artifact: Digest | None,
        verify: bool,
        timeout_s: float,
        mapped: Callable[[LoadReport], None] | None = None,
        becoming: Becoming | None = None,
    ) -> LoadReport:
        """It holds the artifact's blobs from here on; they are pinned for it before. `mapped` is told, of what is known by then, when the
        instance takes requests, which is before it is open.

        Raises: DataCorrupted, Unsupported, InvalidInput, Internal: the runtime's own reasons; a donor may be gone then. FailedPrecondition,
        NotFound: of a donor too; it is as it was then, as with Conflict: it is not idle.
        """
        ...

    async def unload(self, instance_id: InstanceId, drain_ms: int) -> frozenset[Digest]:
        """The digests that nothing in it maps any more. Loads that are under way there may come first, each of which may take its time."""
        ...

    async def declare(self) -> Declaration:
        """What it holds and maps now."""
        ...

    async def trim(self, digests: Collection[Digest] | None = None) -> None:
        """Lets go of blobs that it maps for no instance: of all of them, or of the kept artifacts that map one of `digests`."""
        ...

    async def measure(self, instance_ids: Sequence[InstanceId], batch: int, seconds: float, min_repeats: int, spread: float) -> Slice:
        """Runs these instances of one artifact at the same time, until their spread is at most `spread` or `seconds` are over."""
        ...

    async def activity(self, window_s: float, memory_age_s: float) -> RuntimeActivity:
        """What it does now: percentiles over the last `window_s` seconds, memory from a look that is at most `memory_age_s` old."""
        ...

    def mappings(self) -> int:
        """Memory mappings of the process now; 0 when it is gone."""
        ...

    def slow_down(self) -> None:
        """Lowers the priority of all its threads."""
        ...

    async def end(self, drain_ms: int) -> None:
        """Asks it to end and waits; kills it when it does not. Its run folder is gone afterwards."""
        ...

    def kill(self) -> None: ...

    async def cause(self) -> str:
        """Why it ended unasked, in words; empty when that is not known within a second."""
        ...


class Runtimes(Protocol):
    """Where the runtimes of one trust domain come from."""

    @property
    def start_path(self) -> StartPath:
        """How a new one comes to be: fork or container."""
        ...

    async def adopt(self) -> tuple[Runtime, ...]:
        """Reaches the runtimes that live from before, and removes what dead ones left behind."""
        ...

    async def prepare(self, flavours: Iterable[str]) -> None:
        """Makes sure that runtimes of these flavours can be made, and that nothing is left of dead ones.

        Raises:
            FailedPrecondition: they cannot; with the reason (the end of a zygote's log, an image that is not there).
            Unavailable: not now (no engine answers).
        """
        ...

    async def create(self, flavour: str, runtime_id: RuntimeId, threads: int) -> Runtime:
        """Raises: Unavailable when whoever makes it (zygote, engine) does not answer; the next call tries anew. FailedPrecondition when it
        does not come up; with its last words."""
        ...

    def on_lost(self, callback: Callable[[RuntimeId], None]) -> None:
        """`callback` is told of each runtime whose process ended."""
        ...

    async def end(self) -> None:
        """Ends whatever makes runtimes; called when there are none left."""
        ...

    async def leave(self) -> None:
        """Lets go of all, which live on."""
        ...


class Blobs(Protocol):
    """Brings blobs into the store, from `sources` in their order, those of `neighbours` that have them, and then the repository; blocks, so
    it runs in a thread."""

    def fetch_artifact(
        self,
        artifact: Digest,
        holder: str,
        progress: Progress | None = None,
        cancel: threading.Event | None = None,
        sources: Iterable[Source] = (),
        neighbours: Iterable[Source] = (),
    ) -> tuple[Artifact, Fetched]:
        """Everything that the artifact needs is in the store and held by `holder` afterwards. Raises: NotFound, DataCorrupted,
        ResourceExhausted, Unavailable; Cancelled when `cancel` is set meanwhile."""
        ...

    def fetch(
        self,
        blobs: Iterable[Blob],
        holder: str,
        progress: Progress | None = None,
        cancel: threading.Event | None = None,
        sources: Iterable[Source] = (),
        neighbours: Iterable[Source] = (),
    ) -> Fetched:
        """As `fetch_artifact`, for blobs that no artifact names."""
        ...


class Records(Protocol):
    """This node's part of etcd."""

    def assignments(self) -> Mapping[InstanceId, AssignmentRecord] | None:
        """As last seen; None before they were seen for the first time."""
        ...

    async def read_assignments(self) -> Mapping[InstanceId, AssignmentRecord]:
        """Read now. Raises: Unavailable."""
        ...

    def publish(self, record: InstanceRecord) -> None:
        """Written behind, under the agent's lease; as long as etcd is away it waits."""
        ...

    def withdraw(self, trust_domain: TrustDomain, instance_id: InstanceId) -> None: ...


class Terms(Protocol):
    """The newest term, on disk."""

    def load(self) -> Term | None: ...

    def save(self, term: Term) -> None:
        """Durable when it returns; blocks."""
        ...


class Notes(Protocol):
    """What a restarted agent cannot learn from a runtime: how an instance came to be. Lost with its runtime."""

    def write(self, record: InstanceRecord, shared_bytes: int, private_bytes: int) -> None: ...

    def read(self, runtime_id: RuntimeId, instance_id: InstanceId) -> tuple[InstanceRecord, int, int] | None: ...

    def remove(self, runtime_id: RuntimeId, instance_id: InstanceId) -> None: ...

    def forget(self, runtime_id: RuntimeId) -> None:
        """The runtime is gone."""
        ...

    def keep(self, runtime_ids: Iterable[RuntimeId]) -> None:
        """Forgets every other runtime."""
        ...


class Variants(Protocol):
    """The registered variants of one trust domain."""

    @property
    def synced(self) -> bool:
        """Whether they were seen for the first time."""
        ...

    def on_change(self, callback: Callable[[str, Digest | None], None]) -> None:
        """`callback(key, artifact)` for each difference; None: the variant is gone, or has no artifact."""
        ...

    async def watch(self, stop: Stop) -> None:
        """Follows them until `stop`."""
        ...


class Memory(Protocol):
    """The memory of the machine and of this agent's control groups."""

    def read(self) -> MemoryReading:
        """Reads files of the kernel; in a thread."""
        ...


class Meter(Protocol):
    """What is counted; times in milliseconds."""

    def started(self, path: StartPath, stages: tuple[StageTime, ...]) -> None: ...

    def failed(self, kind: str) -> None: ...

    def runtime_lost(self) -> None: ...

    def store(
        self, trust_domain: TrustDomain, used_bytes: int, pinned_bytes: int, unlinked_bytes: int, fetched_bytes: int, peer_bytes: int
    ) -> None: ...

    def reclaimed(self, trust_domain: TrustDomain, reason: str, total_bytes: int) -> None:
        """Since the store was opened, because of `reason`: "room", "expired" or "pressure"."""
        ...

    def runtimes(self, flavour: str, count: int, known: Sequence[RuntimeActivity], cpu_cores: float) -> None:
        """The runtimes of a flavour together; `known`: of those that have told what they do."""
        ...

    def machine(self, use: MachineUse, cpu_cores: float) -> None: ...
