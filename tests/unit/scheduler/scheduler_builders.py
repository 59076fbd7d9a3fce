"""Values of the scheduler's core, with defaults: say what matters."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from typing import Any

from tessera.domain.ids import (
    BuildClass,
    Digest,
    Generation,
    InstanceId,
    ModelName,
    NodeId,
    ProfileClass,
    RuntimeId,
    Term,
    TrustDomain,
    VariantKey,
    VariantName,
    VersionNumber,
)
from tessera.domain.instance import InstanceState, Stage, StageTime, StartPath
from tessera.domain.records import AssignmentRecord, NodeRecord, VariantRecord, VariantState
from tessera.policy.view import RuntimeView
from tessera.scheduler.core.observed import NodeReport, ObservedInstance, ObservedNode, StoreReport, fold

DOMAIN = TrustDomain("default")
TERM = Term(7, 100)


def key(variant: str = "ort-fp32", model: str = "m") -> VariantKey:
    return VariantKey(DOMAIN, ModelName(model), VersionNumber(1), VariantName(variant))


def variant(name: str = "ort-fp32", **changes: Any) -> VariantRecord:
    values: dict[str, Any] = {
        "key": key(name), "backend": "ort", "flavour": "ort", "precision": "fp32", "state": VariantState.READY, "max_batch": 8,
        "build_class": BuildClass("a"), "artifact": Digest("f" * 64), "graph": Digest("e" * 64), "tensor_bytes": 1000,
    }  # fmt: skip
    return VariantRecord(**{**values, **changes})


def instance(name: str = "i-1", node: str = "n1", state: InstanceState = InstanceState.READY, **changes: Any) -> ObservedInstance:
    values: dict[str, Any] = {
        "instance_id": InstanceId(name), "node_id": NodeId(node), "variant": key(), "generation": Generation(42),
        "runtime_id": RuntimeId("r-1"), "state": state, "start_path": StartPath.BIND, "fetched": False,
        "stages": (StageTime(Stage.LOAD, 3.0),), "host_id": "h", "unix_path": "/run/r-1", "relay_address": "127.0.0.1:1", "idle_s": 1.0,
        "artifact": Digest("f" * 64),
    }  # fmt: skip
    return ObservedInstance(**{**values, **changes})


def report(node: str = "n1", instances: Iterable[ObservedInstance] = (), **changes: Any) -> NodeReport:
    values: dict[str, Any] = {
        "node_id": NodeId(node), "build_class": BuildClass("a"), "profile_class": ProfileClass("p"),
        "agent_address": f"{node}:1", "start_address": f"{node}:3",
        "flavours": ("ort", "aten"), "cpu_count": 2, "instances": tuple(instances),
        "runtimes": (RuntimeView(RuntimeId("r-1"), "ort", DOMAIN, 0),), "full": True, **changes,
    }  # fmt: skip
    values.setdefault("stores", {DOMAIN: StoreReport(1 << 30, 0, values.pop("added", frozenset()), values.pop("removed", frozenset()))})
    return NodeReport(**values)


def node(
    name: str = "n1", instances: Iterable[ObservedInstance] = (), *, stream: int = 1, at_s: float = 0.0, **changes: Any
) -> ObservedNode:
    return fold(None, report(name, instances, **changes), stream, at_s)


def node_record(name: str = "n1", **changes: Any) -> NodeRecord:
    values: dict[str, Any] = {
        "node_id": NodeId(name), "host_id": "h", "agent_address": f"{name}:1", "start_address": f"{name}:3",
        "relay_address": f"{name}:2", "build_class": BuildClass("a"),
        "profile_class": ProfileClass("p"), "flavours": ("ort", "aten"), "cpu_count": 2, "store_budget_bytes": 1 << 30,
        "trust_domain": DOMAIN,
    }  # fmt: skip
    return NodeRecord(**{**values, **changes})


def assignment(name: str = "i-1", node: str = "n1", **changes: Any) -> AssignmentRecord:
    values: dict[str, Any] = {
        "instance_id": InstanceId(name), "node_id": NodeId(node), "variant": key(), "artifact": Digest("f" * 64),
        "generation": Generation(42), "start_path": StartPath.BIND, "term": TERM,
    }  # fmt: skip
    return AssignmentRecord(**{**values, **changes})


async def eventually(condition: Callable[[], bool], within_s: float = 10.0) -> None:
    """Waits in real time. Raises: AssertionError when it does not come true."""
    for _ in range(int(within_s / 0.01)):
        if condition():
            return
        await asyncio.sleep(0.01)
    raise AssertionError("it did not come true in time")
