"""Container runtimes as values: how the engine sees the agent's own paths, what a container is made of, which one is a stray, why one
ended. Decides only; adapters.engine carries out."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Literal

from tessera.domain.errors import FailedPrecondition
from tessera.domain.ids import RuntimeId, TrustDomain
from tessera.domain.labels import RUNTIME_LABEL

NODE_LABEL = "tessera.node"
RUN_LABEL = "tessera.run"
DOMAIN_LABEL = "tessera.trust-domain"
FLAVOUR_LABEL = "tessera.flavour"
STORE_LABEL = "tessera.store"

_OWN_FILES = ("/etc/hostname", "/etc/hosts", "/etc/resolv.conf")
_CONTAINER_ID = re.compile(r"(?:^|/)(?:docker[-/]|containers/)?([0-9a-f]{64})(?:\.scope)?(?:/|$)")
_MEBIBYTE = 1 << 20


@dataclass(frozen=True, slots=True)
class Mount:
    """What the engine has mounted into a container: `source` is a path of the engine's machine, `name` that of a volume."""

    kind: Literal["bind", "volume", "tmpfs"]
    source: str
    destination: str
    name: str = ""


@dataclass(frozen=True, slots=True)
class EngineSource:
    """What to name in a request to the engine: a path on its machine, or a volume as a whole."""

    kind: Literal["bind", "volume"]
    source: str


def own_container_id(mountinfo: str, cgroup: str) -> str | None:
    """The id of the container in which this process runs, from /proc/self/mountinfo and /proc/self/cgroup; None outside of one.

    The engine's own machine shows containers' mounts too: only what is mounted over this process's own files counts.
    """
    for line in mountinfo.splitlines():
        fields = line.split()
        if len(fields) > 4 and fields[4] in _OWN_FILES and (found := _CONTAINER_ID.search(fields[3])):
            return found[1]
    for line in cgroup.splitlines():
        if found := _CONTAINER_ID.search(line.rpartition(":")[2]):
            return found[1]
    return None


def mount_of(path: str, mounts: Sequence[Mount]) -> Mount | None:
    """The innermost mount on which `path` lies; None: the container's own file system."""
    above = [mount for mount in mounts if PurePosixPath(path).is_relative_to(mount.destination)]
    return max(above, key=lambda mount: len(PurePosixPath(mount.destination).parts), default=None)


def engine_path(path: str, mounts: Sequence[Mount] | None) -> EngineSource:
    """How the engine names `path` of the agent's. `mounts` are those of the agent's own container, None when it runs in none.

    A volume that is wanted as a whole is named as one: the engine keeps it mounted for as long as any container has it, so that a store on
    a tmpfs volume outlives the agent's container.

    Raises:
        FailedPrecondition: it lies on nothing that the engine could give to another container.
    """
    if mounts is None:
        return EngineSource("bind", path)
    found = mount_of(path, mounts)
    if found is None or found.kind == "tmpfs" or not found.source:
        where = "in its own file system" if found is None else f"on a tmpfs of its own at {found.destination}"
        raise FailedPrecondition(f"{path} lies in the agent's container {where}, which no other container can have: mount a volume there")
    rest = PurePosixPath(path).relative_to(found.destination)
    if found.kind == "volume" and not rest.parts:
        return EngineSource("volume", found.name)
    return EngineSource("bind", str(PurePosixPath(found.source) / rest))


@dataclass(frozen=True, slots=True)
class Limits:
    """Of one container: bytes of memory (swap is not had beyond it), CPUs, processes and threads together."""

    memory_bytes: int
    cpus: float
    pids: int


@dataclass(frozen=True, slots=True)
class ContainerSpec:
    """A container to be made. `user` is UID:GID; paths inside it are fixed by whoever makes the spec."""

    name: str
    image: str
    command: tuple[str, ...]
    user: str
    environment: Mapping[str, str]
    labels: Mapping[str, str]
    store: EngineSource
    store_target: str
    folder: EngineSource
    folder_target: str
    limits: Limits
    gpus: bool = False


@dataclass(frozen=True, slots=True)
class ContainerState:
    """As the engine tells it. `error` is what kept it from starting."""

    running: bool
    exit_code: int = 0
    oom_killed: bool = False
    error: str = ""


def words_of_end(state: ContainerState | None, limits: Limits) -> str:
    """Why a container ended; None: the engine does not know it any more."""
    if state is None:
        return "its container was removed"
    if state.oom_killed:
        return f"out of memory: killed at its limit of {limits.memory_bytes // _MEBIBYTE} MiB (runtime_memory_bytes)"
    if state.error:
        return state.error
    if state.exit_code > 128:
        return f"killed by signal {state.exit_code - 128}"
    return f"exit code {state.exit_code}"


@dataclass(frozen=True, slots=True)
class FoundContainer:
    container_id: str
    running: bool
    labels: Mapping[str, str] = field(default_factory=dict)

    @property
    def runtime_id(self) -> RuntimeId:
        return RuntimeId(self.labels.get(RUNTIME_LABEL, ""))


@dataclass(frozen=True, slots=True)
class Owner:
    """Whose containers are looked at: one node's runtimes of one trust domain, on one store. `served` are all domains of the node."""

    node_id: str
    run: str
    trust_domain: TrustDomain
    store: str
    served: frozenset[TrustDomain]

    def labels(self, flavour: str, runtime_id: RuntimeId) -> dict[str, str]:
        return {
            NODE_LABEL: self.node_id,
            RUN_LABEL: self.run,
            DOMAIN_LABEL: self.trust_domain,
            FLAVOUR_LABEL: flavour,
            RUNTIME_LABEL: runtime_id,
            STORE_LABEL: self.store,
        }


def adoptable(owner: Owner, found: Iterable[FoundContainer]) -> tuple[FoundContainer, ...]:
    """Running ones of this owner that have its present store."""
    return tuple(item for item in found if item.running and _belongs(owner, item) and item.labels.get(STORE_LABEL) == owner.store)


def strays(owner: Owner, found: Iterable[FoundContainer], known: Iterable[RuntimeId]) -> tuple[tuple[FoundContainer, str], ...]:
    """What is to be removed, with the reason. `known`: runtimes that live or are being made. Another agent's containers on the same engine,
    one of the same name in another run folder included, are left alone as long as they run."""
    kept = set(known)
    gone = []
    for item in found:
        if item.labels.get(NODE_LABEL) != owner.node_id or item.runtime_id in kept:
            continue
        if _belongs(owner, item):
            if not item.running:
                gone.append((item, "it has ended"))
            elif item.labels.get(STORE_LABEL) != owner.store:
                gone.append((item, "it holds an older store"))
            else:
                gone.append((item, "no runtime answers in it"))
        elif item.labels.get(RUN_LABEL) == owner.run and item.labels.get(DOMAIN_LABEL) not in owner.served:
            gone.append((item, f"trust domain {item.labels.get(DOMAIN_LABEL)!r} is not served any more"))
        elif item.labels.get(RUN_LABEL) != owner.run and not item.running:
            gone.append((item, "it has ended, and so has its agent's run folder"))
    return tuple(gone)


def _belongs(owner: Owner, item: FoundContainer) -> bool:
    labels = item.labels
    return (labels.get(NODE_LABEL), labels.get(RUN_LABEL), labels.get(DOMAIN_LABEL)) == (owner.node_id, owner.run, owner.trust_domain)
