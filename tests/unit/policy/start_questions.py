"""Questions to the start policy, and who answers them."""

from __future__ import annotations

from tessera.domain.artifact import Blob
from tessera.domain.ids import (
    BuildClass,
    Digest,
    Generation,
    InstanceId,
    ModelName,
    NodeId,
    ProfileClass,
    RuntimeId,
    TrustDomain,
    VariantKey,
    VariantName,
    VersionNumber,
)
from tessera.domain.instance import InstanceState, Stage, StageTime, StartPath
from tessera.domain.records import LoadCost, ProfileRecord, VariantRecord, VariantState
from tessera.policy.placement.bytes_present import BytesPresentPlacement
from tessera.policy.placement.homes import HomesPlacement
from tessera.policy.start.base import StartDecision, StartQuestion
from tessera.policy.start.cheapest import CheapestStart
from tessera.policy.view import Candidate, InstanceView, NodeView, RuntimeView, StoreView

DOMAIN = TrustDomain("default")
POLICY = CheapestStart()


def key(variant: str = "ort-fp32") -> VariantKey:
    return VariantKey(DOMAIN, ModelName("m"), VersionNumber(1), VariantName(variant))


def candidate(variant: str = "ort-fp32", size_bytes: int = 0, *, backend: str = "ort", build_class: str | None = "a") -> Candidate:
    record = VariantRecord(
        key(variant), backend, backend, "fp32", VariantState.READY, 8, BuildClass(build_class) if build_class else None, Digest("f" * 64)
    )
    return Candidate(record, (Blob(Digest("1" * 64), size_bytes),) if size_bytes else ())


def runtime(flavour: str = "ort", domain: TrustDomain = DOMAIN) -> RuntimeView:
    return RuntimeView(RuntimeId(f"r-{flavour}"), flavour, domain, 0)


def instance(variant: str = "ort-fp32", state: InstanceState = InstanceState.READY) -> InstanceView:
    return InstanceView(InstanceId("i-1"), key(variant), Generation(1), state, 3.0)


def node(name: str = "n1", **changes: object) -> NodeView:
    values: dict[str, object] = {"flavours": ("ort", "aten"), "runtimes": (runtime(),), **changes}
    build_class = BuildClass(str(values.pop("build_class", "a")))
    store = StoreView(values.pop("store_budget_bytes", 1 << 40), 0, values.pop("digests", frozenset()))  # type: ignore[arg-type]
    return NodeView(NodeId(name), build_class, ProfileClass("p"), {values.pop("trust_domain", DOMAIN): store}, **values)  # type: ignore[arg-type,dict-item]


def decide(candidates: list[Candidate], nodes: list[NodeView], **more: object) -> StartDecision:
    return POLICY.decide(StartQuestion(tuple(candidates), tuple(nodes), **more))  # type: ignore[arg-type]


def profile(path: StartPath, ms: float, fetch_ms: float = 0.0, variant: str = "ort-fp32") -> ProfileRecord:
    stages = (StageTime(Stage.FETCH, fetch_ms), StageTime(Stage.LOAD, ms))
    return ProfileRecord(key(variant), ProfileClass("p"), (LoadCost(path, stages),), (), 0.0)


def at_home(home: str) -> CheapestStart:
    return CheapestStart(HomesPlacement(BytesPresentPlacement(), lambda variant: NodeId(home)))
