"""Builders of the node agent's values, as one fixture (`make`)."""

from __future__ import annotations

from typing import Any

import pytest

from tessera.domain.ids import (
    Digest,
    Generation,
    InstanceId,
    ModelName,
    NodeId,
    RuntimeId,
    Term,
    TrustDomain,
    VariantKey,
    VariantName,
    VersionNumber,
)
from tessera.domain.instance import InstanceState, StartPath
from tessera.domain.records import AssignmentRecord
from tessera.node_agent.core.runtimes import RuntimeLimits, RuntimeView, Wanted
from tessera.node_agent.core.table import Instance

DOMAIN = TrustDomain("default")


class Make:
    """Values with sensible fields; keyword arguments replace them."""

    @staticmethod
    def digest(number: int) -> Digest:
        return Digest(f"{number:064x}")

    @staticmethod
    def variant(name: str = "m", build: str = "ort-fp32") -> VariantKey:
        return VariantKey(DOMAIN, ModelName(name), VersionNumber(1), VariantName(build))

    @staticmethod
    def generation(name: str) -> Generation:
        return Generation(int.from_bytes(name.encode()[-8:], "little"))

    def instance(self, name: str = "i1", **changes: Any) -> Instance:
        fields: dict[str, Any] = {
            "instance_id": InstanceId(name),
            "variant": self.variant(),
            "artifact": self.digest(1),
            "generation": self.generation(name),
            "state": InstanceState.ACCEPTED,
            "since_s": 0.0,
            "expires_at_s": 30.0,
            "start_path": StartPath.BIND,
        }
        return Instance(**(fields | changes))

    def assignment(self, name: str = "i1", **changes: Any) -> AssignmentRecord:
        fields: dict[str, Any] = {
            "instance_id": InstanceId(name),
            "node_id": NodeId("n1"),
            "variant": self.variant(),
            "artifact": self.digest(1),
            "generation": self.generation(name),
            "start_path": StartPath.BIND,
            "term": Term(1, 1),
        }
        return AssignmentRecord(**(fields | changes))

    @staticmethod
    def runtime(name: str = "rt-1", **changes: Any) -> RuntimeView:
        fields: dict[str, Any] = {
            "runtime_id": RuntimeId(name),
            "flavour": "ort",
            "trust_domain": DOMAIN,
            "threads": 1,
            "instances": 0,
            "mappings": 500,
        }
        return RuntimeView(**(fields | changes))

    @staticmethod
    def wanted(**changes: Any) -> Wanted:
        fields: dict[str, Any] = {"flavour": "ort", "trust_domain": DOMAIN, "threads": 1, "blobs": {}, "start_path": StartPath.BIND}
        return Wanted(**(fields | changes))


@pytest.fixture(scope="session")
def make() -> Make:
    return Make()


@pytest.fixture(scope="session")
def limits() -> RuntimeLimits:
    return RuntimeLimits(max_instances=4, max_mappings=1000, warm=1, surplus_idle_s=60.0)
