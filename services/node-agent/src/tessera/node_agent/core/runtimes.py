"""Which runtime gets an instance, and how many warm ones wait.

Packed, not spread: instances of a trust domain share a process until it would come near its limit of mappings or of instances.
A variant that crashed a runtime gets one of its own.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum

from tessera.domain.ids import Digest, RuntimeId, TrustDomain, domain_tag
from tessera.domain.instance import StartPath
from tessera.node_agent.relay import DOMAIN_FOLDER, folder_of
from tessera.policy.pool.base import PoolDemand, PoolPolicy
from tessera.policy.pool.constant import ConstantPool


class Purpose(StrEnum):
    """What a runtime is for. It stands at the head of its id, so that a restarted agent knows it again."""

    SHARED = "rt"
    ISOLATED = "own"
    MEASURE = "measure"


def runtime_id_for(purpose: Purpose, flavour: str, trust_domain: TrustDomain, number: bytes) -> RuntimeId:
    """The id of a new runtime, `number` being random: purpose, flavour, the trust domain's tag, number. The tag leads to its folder and
    from its folder to it, so that no domain can pass a runtime of its own off as another's."""
    return RuntimeId(f"{purpose.value}-{flavour}-{domain_tag(trust_domain)}-{number.hex()}")


def domain_folder(trust_domain: TrustDomain) -> str:
    """The name of a trust domain's folder below the run folder."""
    return f"{DOMAIN_FOLDER}{domain_tag(trust_domain)}"


def domain_folder_of(runtime_id: RuntimeId) -> str:
    """The name of the folder that a runtime's folder lies in. Raises: ValueError when it is not an id of a runtime."""
    folder = folder_of(runtime_id)
    if folder is None:
        raise ValueError(f"{runtime_id!r} is not an id of a runtime")
    return folder


def purpose_of(runtime_id: RuntimeId) -> Purpose:
    head = runtime_id.partition("-")[0]
    return next((purpose for purpose in Purpose if purpose.value == head), Purpose.SHARED)


def adoption_patience_s(runtime_id: RuntimeId, load_timeout_s: float) -> float:
    """For how long a runtime of an earlier agent's life may go on loading before it says what it holds: nobody needs what is measured."""
    return 0.0 if purpose_of(runtime_id) is Purpose.MEASURE else load_timeout_s


@dataclass(frozen=True, slots=True)
class RuntimeView:
    """One live runtime as the choice sees it. `mappings` counts its memory mappings (an estimate between two samples)."""

    runtime_id: RuntimeId
    flavour: str
    trust_domain: TrustDomain
    threads: int
    instances: int
    mappings: int
    holds: frozenset[Digest] = frozenset()
    purpose: Purpose = Purpose.SHARED
    tainted: bool = False
    """It mapped bytes that turned out to be corrupted; nothing new goes into it."""
    idle_since_s: float = 0.0


@dataclass(frozen=True, slots=True)
class RuntimeLimits:
    """`max_mappings` is half of vm.max_map_count: beyond it a runtime takes no further instance. `warm`: empty ones
    of each flavour at least."""

    max_instances: int
    max_mappings: int
    warm: int
    surplus_idle_s: float
    pool: PoolPolicy = field(default_factory=ConstantPool)


@dataclass(frozen=True, slots=True)
class Wanted:
    flavour: str
    trust_domain: TrustDomain
    threads: int
    blobs: Mapping[Digest, int]
    """Digest -> size in bytes of what it will map."""
    start_path: StartPath
    isolated: bool = False


@dataclass(frozen=True, slots=True)
class RuntimeChoice:
    """`runtime_id` None: make a new one for `purpose`. `reason` names the losers."""

    runtime_id: RuntimeId | None
    purpose: Purpose
    reason: str


def choose_runtime(wanted: Wanted, runtimes: Iterable[RuntimeView], limits: RuntimeLimits) -> RuntimeChoice:
    """Picks the fullest runtime that may take it, most of its bytes mapped already first; a new one where none may.

    An isolated one never gets a warm one: that would no longer be counted as pool.
    """
    if wanted.isolated:
        return RuntimeChoice(None, Purpose.ISOLATED, "its variant crashed a runtime before: one of its own")
    if wanted.start_path is not StartPath.BIND:
        return RuntimeChoice(None, Purpose.SHARED, f"the plan says {wanted.start_path}")
    refused: dict[str, int] = {}
    fitting: list[RuntimeView] = []
    for view in runtimes:
        reason = _refusal(view, wanted, limits)
        if reason:
            refused[reason] = refused.get(reason, 0) + 1
        else:
            fitting.append(view)
    losers = ", ".join(f"{count} {reason}" for reason, count in sorted(refused.items()))
    if not fitting:
        return RuntimeChoice(None, Purpose.SHARED, f"no runtime to bind into{': ' + losers if losers else ''}")
    best = min(fitting, key=lambda view: (-_mapped_bytes(view, wanted), -view.instances, view.runtime_id))
    why = f"best of {len(fitting)}, {best.instances} instances in it, {_mapped_bytes(best, wanted)} bytes mapped already"
    return RuntimeChoice(best.runtime_id, Purpose.SHARED, f"{why}{'; not ' + losers if losers else ''}")


def _refusal(view: RuntimeView, wanted: Wanted, limits: RuntimeLimits) -> str:
    if view.purpose is not Purpose.SHARED:
        return f"kept for {view.purpose.name.lower()} use"
    if view.tainted:
        return "mapped corrupted bytes"
    if view.flavour != wanted.flavour:
        return f"of flavour {view.flavour}"
    if view.trust_domain != wanted.trust_domain:
        return "of another trust domain"
    if view.threads != wanted.threads:
        return f"with {view.threads} threads"
    if view.instances >= limits.max_instances:
        return f"full ({limits.max_instances} instances)"
    added = sum(1 for digest in wanted.blobs if digest not in view.holds)
    if view.mappings + added > limits.max_mappings:
        return f"near its limit of {limits.max_mappings} mappings"
    return ""


def _mapped_bytes(view: RuntimeView, wanted: Wanted) -> int:
    return sum(size for digest, size in wanted.blobs.items() if digest in view.holds)


@dataclass(frozen=True, slots=True)
class PoolPlan:
    """`fork`: flavours to fork a warm runtime of, one entry each. `retire`: runtimes that nothing needs."""

    fork: tuple[str, ...]
    retire: tuple[RuntimeId, ...]


def plan_pool(
    runtimes: Iterable[RuntimeView],
    forking: Mapping[str, int],
    flavours: Iterable[str],
    limits: RuntimeLimits,
    now_s: float,
    demands: Sequence[PoolDemand] = (),
) -> PoolPlan:
    """Keeps as many empty shared runtimes of each flavour as the pool policy wants, `warm` where nothing is known of its demand. An empty
    one beyond that goes after `surplus_idle_s`; one that is tainted or had a purpose of its own goes as soon as it is empty."""
    views = sorted(runtimes, key=lambda view: (view.idle_since_s, view.runtime_id))
    empty = [view for view in views if view.instances == 0 and view.purpose is not Purpose.MEASURE]
    retire = [view.runtime_id for view in empty if view.tainted or view.purpose is Purpose.ISOLATED]
    sizes = limits.pool.sizes(demands, limits.warm)
    fork: list[str] = []
    for flavour in flavours:
        warm = sizes.get(flavour, limits.warm)
        pool = [view for view in empty if view.flavour == flavour and view.purpose is Purpose.SHARED and not view.tainted]
        fork += [flavour] * max(0, warm - len(pool) - forking.get(flavour, 0))
        surplus = pool[: max(0, len(pool) - warm)]
        retire += [view.runtime_id for view in surplus if now_s - view.idle_since_s >= limits.surplus_idle_s]
    return PoolPlan(tuple(fork), tuple(retire))
