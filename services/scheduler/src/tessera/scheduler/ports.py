"""What the scheduler needs from outside, as Protocols."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Protocol

from tessera.domain.artifact import Blob
from tessera.domain.ids import (
    Digest,
    Generation,
    InstanceId,
    ModelName,
    NodeId,
    ProfileClass,
    RequestId,
    Term,
    TrustDomain,
    VariantKey,
    VersionKey,
)
from tessera.domain.instance import StartPath
from tessera.domain.records import (
    AssignmentRecord,
    LoadRecord,
    MetaCostRecord,
    ModelRecord,
    NodeRecord,
    ProfileRecord,
    VariantRecord,
)
from tessera.domain.source import Source
from tessera.domain.transformation import StepSum
from tessera.scheduler.core.observed import ObservedInstance

RandomBytes = Callable[[int], bytes]
"""n -> n random bytes; instance ids and generations are drawn from it."""


@dataclass(frozen=True, slots=True)
class StartOrder:
    """A provisional assignment, as it is told to an agent. `expires_after_s`: how long it is kept without a record. `sources`: nodes that
    have bytes that this one lacks, best first."""

    term: Term
    node_id: NodeId
    instance_id: InstanceId
    generation: Generation
    variant: VariantKey
    artifact: Digest | None
    start_path: StartPath
    expires_after_s: float
    budget_s: float
    request_id: RequestId
    sources: tuple[Source, ...] = ()
    donor: InstanceId | None = None
    delta: bytes = b""
    donor_idle_s: float = 0.0
    """Of a start by transformation: what it is made of, how, and for how long nobody must have asked that when it begins."""


class Agents(Protocol):
    """The node agents, by address: starts at their `start_address`, the rest at their `agent_address`."""

    def expect(self, start_address: str) -> None:
        """Connects in the background, so that the first start on this node does not wait for it."""
        ...

    async def start(self, start_address: str, order: StartOrder) -> ObservedInstance:
        """Answers when the instance is ready.

        Raises:
            StaleTerm: the agent has seen a newer leader.
            Unavailable, DeadlineExceeded: no answer; the instance may exist all the same.
            TesseraError: the agent's own reason.
        """
        ...

    async def stop(self, address: str, term: Term, instance_id: InstanceId, budget_s: float) -> None:
        """Drains and ends an instance. Raises: as `start`; NotFound when the agent does not know it."""
        ...

    async def close(self) -> None: ...


class ArtifactBlobs(Protocol):
    """The blob list of artifacts, as far as it is known: never waits."""

    def blobs(self, artifact: Digest) -> tuple[Blob, ...] | None: ...

    def want(self, artifact: Digest) -> None:
        """Asks for the list to be fetched in the background."""
        ...


class Plans(Protocol):
    """Plans between flat programs, as far as they are made: never waits."""

    def steps(self, source: Digest, target: Digest) -> tuple[StepSum, ...] | None:
        """From one graph to another. None: there is no plan (yet); it is made behind where it can be."""
        ...

    def why_not(self, source: Digest, target: Digest) -> str:
        """Why `steps` has None, in words that follow on "but"."""
        ...

    def delta(self, source: Digest, target: Digest) -> bytes | None:
        """The plan as runtimes get it (docs/adr/0012). None: as above."""
        ...


class Records(Protocol):
    """etcd's records as far as they are known; while etcd is away, as they last were."""

    def variant(self, key: VariantKey) -> VariantRecord | None: ...

    def variants(self) -> Collection[VariantRecord]: ...

    def variants_of(self, version: VersionKey) -> Collection[VariantRecord]: ...

    def model(self, trust_domain: TrustDomain, name: ModelName) -> ModelRecord | None: ...

    def profiles(self) -> Mapping[tuple[VariantKey, ProfileClass], ProfileRecord]: ...

    def meta_costs(self, trust_domain: TrustDomain, profile_class: ProfileClass) -> MetaCostRecord | None:
        """Of dialect `aten`."""
        ...

    def nodes(self) -> Mapping[NodeId, tuple[NodeRecord, ...]]:
        """Of each node one record for each trust domain that it serves, at least one."""
        ...

    def assignments(self) -> Mapping[InstanceId, AssignmentRecord]: ...

    def loads(self) -> Mapping[InstanceId, LoadRecord]: ...


class NodeProvider(Protocol):
    """Where nodes come from when the pool grows. A node's agent registers by itself."""

    async def nodes(self) -> frozenset[NodeId]:
        """Those that it made and that live, whichever scheduler asked for them.

        Raises: TesseraError: why nobody knows.
        """
        ...

    async def add(self) -> NodeId:
        """Makes one more; its agent answers, and reports soon. Raises: TesseraError: why there is none."""
        ...

    async def remove(self, node_id: NodeId) -> None:
        """Takes it away with all that is its; returns when it is gone. Raises: TesseraError."""
        ...

    async def close(self) -> None:
        """Its nodes stay."""
        ...


class Meter(Protocol):
    """What is counted; times in seconds."""

    def started(self, path: StartPath, seconds: float) -> None: ...

    def refused(self, kind: str) -> None: ...

    def decided(self, seconds: float) -> None: ...

    def merged(self) -> None: ...

    def stopped(self, reason: str) -> None: ...

    def judged(self, state: str) -> None:
        """An instance entered a load state other than active."""
        ...

    def scaled(self, policy: str, added: int, removed: int) -> None: ...

    def pooled(self, how: str) -> None:
        """A node was added or removed."""
        ...

    def leading(self, yes: bool) -> None: ...
