"""The messages that a client's calls answer with, for annotations. What stands in them: docs/cli.md lists the same under the same names."""

from __future__ import annotations

from tessera.api.batch.v1.batch_pb2 import BatchInfo
from tessera.api.common.v1.common_pb2 import Agreement, Span, StageTime, TensorSpec, VariantKey
from tessera.api.gateway.v1.gateway_pb2 import ExplainResponse, InstanceOption, ServiceStatus
from tessera.api.node.v1.node_pb2 import CheckStoresResponse, Instance, LatencyRow, NodeStatus, Runtime
from tessera.api.profiler.v1.profiler_pb2 import Fit, MetaCosts, Profile
from tessera.api.registry.v1.registry_pb2 import (
    AliasInfo,
    Comparison,
    JobEvent,
    ModelInfo,
    RegistrationResult,
    ShowPlanResponse,
    VariantInfo,
)

__all__ = [
    "Agreement",
    "AliasInfo",
    "BatchInfo",
    "CheckStoresResponse",
    "Comparison",
    "ExplainResponse",
    "Fit",
    "Instance",
    "InstanceOption",
    "JobEvent",
    "LatencyRow",
    "MetaCosts",
    "ModelInfo",
    "NodeStatus",
    "Profile",
    "RegistrationResult",
    "Runtime",
    "ServiceStatus",
    "ShowPlanResponse",
    "Span",
    "StageTime",
    "TensorSpec",
    "VariantInfo",
    "VariantKey",
]
