"""Records with sensible fields, so that a test writes only what it is about: `a_variant(model="digits", state=...)`."""

from __future__ import annotations

from typing import Any

from tessera.domain.artifact import Artifact, Blob, TensorRef
from tessera.domain.ids import (
    DEFAULT_TRUST_DOMAIN,
    BuildClass,
    Digest,
    Generation,
    InstanceId,
    JobId,
    ModelName,
    NodeId,
    ProfileClass,
    RuntimeId,
    Term,
    TrustDomain,
    VariantKey,
    VariantName,
    VersionKey,
    VersionNumber,
)
from tessera.domain.instance import InstanceState, Stage, StageTime, StartPath
from tessera.domain.records import (
    AliasRecord,
    BatchRecord,
    InstanceRecord,
    LatencyRow,
    LoadCost,
    MetaCostLine,
    MetaCostRecord,
    ModelRecord,
    NodeRecord,
    ProfileRecord,
    VariantRecord,
    VariantState,
    VersionRecord,
)
from tessera.domain.signature import Signature, TensorSpec
from tessera.domain.transformation import ATEN, MetaOperator

BUILD_CLASS = BuildClass("x86_64-avx512_vnni-ort1.32.0")
PROFILE_CLASS = ProfileClass("x86_64-avx512_vnni-ort1.32.0-test-cpu-2")
CREATED_UNIX_S = 1_700_000_000.0


def a_digest(number: int = 1) -> Digest:
    """A digest that is told from others by its number."""
    return Digest(f"{number:064x}")


def a_version_key(model: str = "digits", version: int = 1, trust_domain: str = DEFAULT_TRUST_DOMAIN) -> VersionKey:
    return VersionKey(TrustDomain(trust_domain), ModelName(model), VersionNumber(version))


def a_variant_key(
    model: str = "digits", version: int = 1, variant: str = "aten-fp32", trust_domain: str = DEFAULT_TRUST_DOMAIN
) -> VariantKey:
    return VariantKey(TrustDomain(trust_domain), ModelName(model), VersionNumber(version), VariantName(variant))


def a_signature(**fields: Any) -> Signature:
    """One image in, ten logits out, batched."""
    values: dict[str, Any] = {
        "inputs": (TensorSpec("image", "FP32", (-1, 1, 8, 8)),),
        "outputs": (TensorSpec("logits", "FP32", (-1, 10)),),
        "batched": True,
    }
    return Signature(**{**values, **fields})


def a_term(revision: int = 10, cluster_id: int = 1) -> Term:
    return Term(cluster_id, revision)


def a_model(name: str = "digits", **fields: Any) -> ModelRecord:
    values: dict[str, Any] = {
        "name": ModelName(name),
        "trust_domain": DEFAULT_TRUST_DOMAIN,
        "task": "digits",
        "dataset": "",
        "accuracy": None,
        "latest": VersionNumber(1),
        "created_unix_s": CREATED_UNIX_S,
    }
    return ModelRecord(**{**values, **fields})


def a_version(model: str = "digits", **fields: Any) -> VersionRecord:
    values: dict[str, Any] = {
        "model": ModelName(model),
        "trust_domain": DEFAULT_TRUST_DOMAIN,
        "version": VersionNumber(1),
        "signature": a_signature(),
        "source_kind": "pt2",
        "source_digest": a_digest(900),
        "created_unix_s": CREATED_UNIX_S,
    }
    return VersionRecord(**{**values, **fields})


def a_variant(model: str = "digits", variant: str = "aten-fp32", **fields: Any) -> VariantRecord:
    """A ready variant; its backend and flavour follow from its name's first part."""
    backend = variant.partition("-")[0]
    values: dict[str, Any] = {
        "key": a_variant_key(model, variant=variant),
        "backend": backend,
        "flavour": "aten" if backend == "aten" else "ort",
        "precision": "fp32",
        "state": VariantState.READY,
        "max_batch": 8,
        "build_class": BUILD_CLASS if backend == "ort" else None,
        "artifact": a_digest(1),
        "graph": a_digest(2),
        "tensor_bytes": 1 << 20,
        "tensor_count": 3,
    }
    return VariantRecord(**{**values, **fields})


def an_alias(alias: str = "live", model: str = "digits", version: int | None = 1, **fields: Any) -> AliasRecord:
    values: dict[str, Any] = {
        "alias": ModelName(alias),
        "trust_domain": DEFAULT_TRUST_DOMAIN,
        "model": ModelName(model),
        "version": None if version is None else VersionNumber(version),
        "since_unix_s": CREATED_UNIX_S,
        "reason": "set",
    }
    return AliasRecord(**{**values, **fields})


def a_latency_row(batch: int = 1, threads: int = 1, p50_ms: float = 2.0, **fields: Any) -> LatencyRow:
    values: dict[str, Any] = {
        "batch": batch, "threads": threads, "repeats": 100, "p50_ms": p50_ms, "p99_ms": p50_ms * 1.5, "mean_ms": p50_ms * 1.1,
        "peak_private_bytes": 1 << 20,
    }  # fmt: skip
    return LatencyRow(**{**values, **fields})


def a_load_cost(start_path: StartPath = StartPath.BIND, load_ms: float = 3.0, **fields: Any) -> LoadCost:
    stages: tuple[StageTime, ...] = (StageTime(Stage.MAP, 1.0), StageTime(Stage.LOAD, load_ms))
    if start_path is StartPath.FORK:
        stages = (StageTime(Stage.FORK, 9.0), *stages)
    values: dict[str, Any] = {"start_path": start_path, "stages": stages, "peak_private_bytes": 2 << 20}
    return LoadCost(**{**values, **fields})


def a_profile(variant: VariantKey | None = None, **fields: Any) -> ProfileRecord:
    values: dict[str, Any] = {
        "variant": variant or a_variant_key(),
        "profile_class": PROFILE_CLASS,
        "load": (a_load_cost(), a_load_cost(StartPath.FORK)),
        "rows": (a_latency_row(), a_latency_row(batch=2, p50_ms=3.0)),
        "measured_unix_s": CREATED_UNIX_S,
    }
    return ProfileRecord(**{**values, **fields})


def a_meta_cost_record(**fields: Any) -> MetaCostRecord:
    values: dict[str, Any] = {
        "trust_domain": DEFAULT_TRUST_DOMAIN,
        "profile_class": PROFILE_CLASS,
        "dialect": ATEN,
        "base_ms": 1.5,
        "lines": (MetaCostLine(MetaOperator.ADD, "", 0.03), MetaCostLine(MetaOperator.ADD, "aten.linear.default", 0.05, 0.1)),
        "error": 0.1,
        "observations": 60,
        "measured_unix_s": CREATED_UNIX_S,
    }
    return MetaCostRecord(**{**values, **fields})


def a_batch(job_id: str = "b1", **fields: Any) -> BatchRecord:
    """A queued job that takes npz to npz."""
    values: dict[str, Any] = {
        "job_id": JobId(job_id),
        "trust_domain": DEFAULT_TRUST_DOMAIN,
        "model": "digits",
        "input_url": "file:///srv/batch/in.npz",
        "output_url": "file:///srv/batch/out.npz",
        "input_format": "npz",
        "output_format": "npz",
        "batch_size": 4,
        "max_errors": 100,
        "submitted_unix_s": CREATED_UNIX_S,
    }
    return BatchRecord(**{**values, **fields})


def a_node(node_id: str = "node-0", **fields: Any) -> NodeRecord:
    values: dict[str, Any] = {
        "node_id": NodeId(node_id),
        "host_id": "host-0",
        "agent_address": "127.0.0.1:8020",
        "start_address": "127.0.0.1:8060",
        "relay_address": "127.0.0.1:8021",
        "build_class": BUILD_CLASS,
        "profile_class": PROFILE_CLASS,
        "flavours": ("aten", "ort"),
        "cpu_count": 2,
        "store_budget_bytes": 1 << 30,
        "trust_domain": DEFAULT_TRUST_DOMAIN,
    }
    return NodeRecord(**{**values, **fields})


def an_instance(instance_id: str = "instance-0", node_id: str = "node-0", **fields: Any) -> InstanceRecord:
    values: dict[str, Any] = {
        "instance_id": InstanceId(instance_id),
        "node_id": NodeId(node_id),
        "runtime_id": RuntimeId("runtime-0"),
        "variant": a_variant_key(),
        "generation": Generation(0x1234_5678_9ABC_DEF0),
        "state": InstanceState.READY,
        "start_path": StartPath.BIND,
        "fetched": False,
        "host_id": "host-0",
        "unix_path": "/run/tessera/runtime-0/data.sock",
        "relay_address": "127.0.0.1:8021",
        "max_batch": 8,
        "stages": (StageTime(Stage.MAP, 1.0), StageTime(Stage.LOAD, 3.0)),
    }
    return InstanceRecord(**{**values, **fields})


def an_artifact(tensors: int = 2, **fields: Any) -> Artifact:
    """An `aten` artifact with `tensors` large tensors of 8 KiB and one small one in its pack."""
    large = tuple(TensorRef(f"w{n}", "FP32", (2048,), a_digest(100 + n), 8192) for n in range(tensors))
    values: dict[str, Any] = {
        "backend": "aten",
        "precision": "fp32",
        "dialect": "aten",
        "graph": Blob(a_digest(2), 500),
        "pack": Blob(a_digest(3), 64),
        "tensors": (*large, TensorRef("bias", "FP32", (16,), a_digest(4), 64, pack_offset=0)),
        "signature": a_signature(),
        "build_class": None,
        "max_batch": 8,
    }
    return Artifact(**{**values, **fields})
