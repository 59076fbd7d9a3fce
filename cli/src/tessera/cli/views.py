"""Answers as plain values: the JSON that the CLI prints. The field names are stable and listed in docs/cli.md."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tessera.domain.cost import usd_per_1000_at

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from tessera.sdk import types

Plain = dict[str, Any]

ROW_KEYS = (
    "batch", "threads", "concurrency", "repeats", "p50_ms", "p99_ms", "mean_ms", "spread", "items_per_s", "usd_per_1000",
    "peak_private_bytes",
)  # fmt: skip
"""Of a measured row of a profile."""


def key_text(key: types.VariantKey) -> str:
    return f"{key.model}@{key.version}/{key.variant}"


def stages(found: Iterable[types.StageTime]) -> Plain:
    """Milliseconds by stage, and their sum as `total`."""
    by_stage = {stage.stage: round(stage.ms, 3) for stage in found}
    return {**by_stage, "total": round(sum(by_stage.values()), 3)}


def _tensors(specs: Iterable[types.TensorSpec]) -> list[Plain]:
    return [{"name": spec.name, "datatype": spec.datatype, "shape": list(spec.shape)} for spec in specs]


def variant(info: types.VariantInfo) -> Plain:
    return {
        "name": info.key.variant,
        "backend": info.backend,
        "recipe": info.recipe,
        "precision": info.precision,
        "state": info.state,
        "reason": info.reason,
        "build_class": info.build_class,
        "max_batch": info.max_batch,
        "tensor_bytes": info.tensor_bytes,
        "tensor_bytes_shared": info.tensor_bytes_shared,
        "tensor_count": info.tensor_count,
        "artifact": info.artifact_digest,
        "graph": info.graph_digest,
        "agreement": agreement(info.agreement) if info.HasField("agreement") else None,
        "lossy": info.lossy,
        "withheld": info.withheld,
        "notes": info.notes,
        "progress": info.progress,
    }


def agreement(found: types.Agreement) -> Plain:
    return {
        "max_error": found.max_error,
        "cosine": found.cosine,
        "samples": found.samples,
        "metric": found.metric,
        "score": found.score if found.HasField("score") else None,
        "reference_score": found.reference_score if found.HasField("reference_score") else None,
    }


def model(info: types.ModelInfo) -> Plain:
    return {
        "name": info.name,
        "trust_domain": info.trust_domain,
        "task": info.task,
        "dataset": info.dataset,
        "accuracy": info.accuracy if info.HasField("accuracy") else None,
        "lossy": info.lossy,
        "aliases": [alias(each) for each in info.aliases],
        "versions": [
            {
                "version": version.version,
                "source_kind": version.source_kind,
                "source_digest": version.source_digest,
                "created_unix_s": version.created_unix_s,
                "metric": version.metric,
                "evaluation": version.evaluation_digest,
                "calibration": version.calibration_digest,
                "allow_loss": version.allow_loss,
                "batched": version.signature.batched,
                "inputs": _tensors(version.signature.inputs),
                "outputs": _tensors(version.signature.outputs),
                "variants": [variant(each) for each in version.variants],
            }
            for version in info.versions
        ],
    }


def alias(found: types.AliasInfo) -> Plain:
    """`version` None: it follows the model."""
    return {
        "alias": found.alias,
        "model": found.model,
        "version": found.version or None,
        "since_unix_s": found.since_unix_s,
        "reason": found.reason,
        "before": [
            {"model": step.model, "version": step.version, "since_unix_s": step.since_unix_s, "reason": step.reason}
            for step in found.before
        ],
    }


def comparison(found: types.Comparison) -> Plain:
    return {
        "measure": found.measure,
        "on": found.on,
        "current": found.current if found.HasField("current") else None,
        "candidate": found.candidate if found.HasField("candidate") else None,
        "words": found.words,
        "refused": found.refused,
    }


def registration(result: types.RegistrationResult) -> Plain:
    return {
        "model": result.model,
        "version": result.version,
        "unchanged": result.unchanged,
        "tensor_bytes": result.tensor_bytes,
        "tensor_bytes_already_stored": result.tensor_bytes_already_stored,
        "variants": [variant(each) for each in result.variants],
    }


def instance(node_id: str, found: types.Instance, runtimes: Mapping[str, types.Runtime]) -> Plain:
    """`runtimes`: those of its node by id; one that is not there any more shows as empty."""
    home = runtimes.get(found.runtime_id)
    return {
        "id": found.instance_id,
        "model": found.variant.model,
        "version": found.variant.version,
        "variant": found.variant.variant,
        "node": node_id,
        "runtime_id": found.runtime_id,
        "pid": found.pid,
        "state": found.state,
        "start_path": found.start_path,
        "fetched": found.fetched,
        "start_ms": stages(found.stages),
        "shared_bytes": found.shared_bytes,
        "private_bytes": found.private_bytes,
        "idle_s": round(found.idle_s, 3),
        "served": found.served,
        "queue": found.queue,
        "executing": found.executing,
        "requests_per_s": round(found.requests_per_s, 2),
        "run_p50_ms": round(found.run_p50_ms, 3),
        "run_p99_ms": round(found.run_p99_ms, 3),
        "parked": found.parked,
        "items_per_s": round(found.items_per_s, 2),
        "run_items": round(found.run_items, 2),
        "load": found.load_state,
        "load_reason": found.load_reason,
        "runtime": runtime(home) if home is not None else {},
        "error": found.error,
    }


def runtime(found: types.Runtime) -> Plain:
    return {
        "id": found.runtime_id,
        "kind": found.kind,
        "pid": found.pid,
        "flavour": found.flavour,
        "trust_domain": found.trust_domain,
        "threads": found.threads,
        "instances": found.instances,
        "cpu_cores": round(found.cpu_cores, 3),
        "private_bytes": found.private_bytes,
        "shared_bytes": found.shared_bytes,
        "proportional_bytes": found.proportional_bytes,
    }


def node(found: types.NodeStatus) -> Plain:
    return {
        "id": found.node_id,
        "address": found.agent_address,
        "cpu_count": found.cpu_count,
        "build_class": found.build_class,
        "profile_class": found.profile_class,
        "flavours": list(found.flavours),
        "instances": len(found.instances),
        "overloaded": sum(each.load_state == "overloaded" for each in found.instances),
        "interfered": sum(each.load_state == "interfered" for each in found.instances),
        "cpu_cores": round(found.cpu_cores, 3),
        "memory_bytes": found.memory_bytes,
        "memory_available_bytes": found.memory_available_bytes,
        "memory_pressure": round(found.memory_pressure, 4),
        "runtimes": [runtime(each) for each in found.runtimes],
        "stores": [
            {
                "trust_domain": store.trust_domain,
                "used_bytes": store.used_bytes,
                "budget_bytes": store.budget_bytes,
                "pinned_bytes": store.pinned_bytes,
                "unlinked_bytes": store.unlinked_bytes,
                "files": store.files,
                "huge_pages": store.huge_pages,
                "sharing": store.sharing,
                "fetched_bytes": store.fetched_bytes,
                "quarantined": store.quarantined,
            }
            for store in found.stores
        ],
    }


def profile(found: types.Profile) -> Plain:
    return {
        "variant": key_text(found.variant),
        "profile_class": found.profile_class,
        "quick": found.quick,
        "measured_unix_s": found.measured_unix_s,
        "accuracy": round(found.accuracy, 6) if found.HasField("accuracy") else None,
        "accuracy_source": found.accuracy_source,
        "withheld": found.withheld,
        "usd_per_hour": found.usd_per_hour or None,
        "usd_per_1000": found.usd_per_1000 if found.HasField("usd_per_1000") else None,
        "load": [
            {"start_path": cost.start_path, "ms": stages(cost.stages), "peak_private_bytes": cost.peak_private_bytes} for cost in found.load
        ],
        "fits": [_fit(each) for each in found.fits],
        "latency": [_row(row, found) for row in found.rows],
    }


def _fit(found: types.Fit) -> Plain:
    line = found.line if found.HasField("line") else None
    return {
        "threads": found.threads,
        "concurrency": found.concurrency,
        "slope_ms": round(line.slope_ms, 4) if line is not None else None,
        "intercept_ms": round(line.intercept_ms, 4) if line is not None else None,
        "error": round(line.error, 4) if line is not None else None,
        "saturation_items_per_s": round(found.saturation_items_per_s, 2),
    }


def _row(row: types.LatencyRow, of: types.Profile) -> Plain:
    items_per_s = 1000 * row.batch * row.concurrency / row.mean_ms if row.mean_ms > 0 else 0.0
    priced = usd_per_1000_at(items_per_s, row.threads * row.concurrency, of.usd_per_hour, of.cpu_count)
    return {
        "batch": row.batch,
        "threads": row.threads,
        "concurrency": row.concurrency,
        "repeats": row.repeats,
        "p50_ms": round(row.p50_ms, 4),
        "p99_ms": round(row.p99_ms, 4),
        "mean_ms": round(row.mean_ms, 4),
        "spread": round(row.spread, 5),
        "items_per_s": round(items_per_s, 2),
        "usd_per_1000": priced if of.usd_per_hour else None,
        "peak_private_bytes": row.peak_private_bytes,
    }


def batch(found: types.BatchInfo) -> Plain:
    asked = found.objectives
    return {
        "id": found.job_id,
        "trust_domain": found.trust_domain,
        "model": found.model,
        "input_url": found.input_url,
        "input_format": found.input_format,
        "output_url": found.output_url,
        "output_format": found.output_format,
        "batch_size": found.batch_size,
        "objectives": {field.name: value for field, value in asked.ListFields()},
        "max_errors": found.max_errors,
        "state": found.state,
        "cancelling": found.cancelling,
        "reason": found.reason,
        "rows": found.rows,
        "rows_done": found.rows_done,
        "rows_failed": found.rows_failed,
        "parts": found.parts,
        "submitted_unix_s": found.submitted_unix_s,
        "started_unix_s": found.started_unix_s or None,
        "ended_unix_s": found.ended_unix_s or None,
    }


def explanation(answer: types.ExplainResponse) -> Plain:
    return {
        "request_id": answer.request_id,
        "model": answer.model,
        "outcome": answer.outcome,
        "objectives": answer.objectives,
        "objective_missed": answer.objective_missed,
        "snapshot": answer.snapshot,
        "variant_policy": answer.variant_policy,
        "instance_policy": answer.instance_policy,
        "variants": [
            {
                "variant": key_text(option.variant),
                "expected_ms": _known(option.expected_ms),
                "latency_ms": _known(option.latency_ms),
                "load_ms": _known(option.load_ms),
                "accuracy": round(option.accuracy, 4),
                "by": option.accuracy_source,
                "usd_per_1000": _known(option.usd_per_1000),
                "work_ms": _known(option.work_ms),
                "load": option.load_state,
                "active_instances": option.active_instances,
                "instances": [_instance_option(each) for each in option.instances],
                "chosen": option.chosen,
                "reason": option.reason,
            }
            for option in answer.variants
        ],
        "node": answer.node_id,
        "instance": answer.instance_id,
        "start_path": answer.start_path,
        "start_policy": answer.start.policy,
        "start_options": [
            {
                "variant": key_text(option.variant),
                "node": option.node_id,
                "start_path": option.start_path,
                "expected_ms": round(option.expected_ms, 3),
                "bytes_to_fetch": option.bytes_to_fetch,
                "chosen": option.chosen,
                "reason": option.reason,
            }
            for option in answer.start.options
        ],
        "stages_ms": stages(answer.stages),
        "predicted_ms": round(answer.predicted_ms, 3),
        "actual_ms": round(answer.actual_ms, 3),
    }


def _instance_option(option: types.InstanceOption) -> Plain:
    return {
        "node": option.node_id,
        "instance": option.instance_id,
        "in_flight": option.in_flight,
        "expected_ms": _known(option.expected_ms),
        "load": option.load_state,
        "seen": "then" if option.then else "now",
        "chosen": option.chosen,
    }


def _known(value: float) -> float | None:
    """What nobody measured travels as -1."""
    return None if value < 0 else float(f"{value:.6g}")  # costs of small models are millionths


def span(found: types.Span) -> Plain:
    return {
        "name": found.name,
        "service": found.service,
        "span_id": found.span_id,
        "parent_span_id": found.parent_span_id,
        "start_unix_ns": found.start_unix_ns,
        "end_unix_ns": found.end_unix_ns,
        "ms": round((found.end_unix_ns - found.start_unix_ns) / 1e6, 3),
        "status": found.status,
        "attributes": dict(found.attributes),
    }


def service(found: types.ServiceStatus) -> Plain:
    return {"kind": found.kind, "id": found.id, "address": found.address, "ready": found.ready, "detail": found.detail}


def store_check(node_id: str, check: types.CheckStoresResponse) -> Plain:
    return {
        "node": node_id,
        "stores": check.stores,
        "blobs": check.blobs,
        "bytes": check.bytes,
        "unlinked_bytes": check.unlinked_bytes,
        "findings": [{"trust_domain": finding.trust_domain, "words": finding.words} for finding in check.findings],
    }
