"""The states of a variant (docs/states/variant.md), how variants are named, and which are still to be made."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

from tessera.domain.errors import FailedPrecondition
from tessera.domain.ids import BuildClass, Digest, VariantKey, VariantName, VersionKey
from tessera.domain.records import NodeRecord, VariantRecord, VariantState, VersionRecord

ATEN = VariantName("aten-fp32")
ORT = VariantName("ort-fp32")
IDENTITY = VariantName("identity-any")
_ORT_FLAVOUR = "ort"

_NEXT: dict[VariantState, frozenset[VariantState]] = {
    VariantState.PENDING: frozenset({VariantState.BUILDING, VariantState.FAILED}),
    VariantState.BUILDING: frozenset({VariantState.BUILDING, VariantState.READY, VariantState.FAILED}),
    VariantState.READY: frozenset(),
    VariantState.FAILED: frozenset({VariantState.BUILDING}),
}


def step(record: VariantRecord, then: VariantState, reason: str = "") -> VariantRecord:
    """The record in its next state.

    Raises:
        FailedPrecondition: there is no such transition.
    """
    if then not in _NEXT[record.state]:
        raise FailedPrecondition(f"variant {record.key} does not go from {record.state.value} to {then.value}")
    return replace(record, state=then, reason=reason)


def name_for(build_class: BuildClass, hasher: Callable[[bytes], Digest]) -> VariantName:
    """The name of `ort-fp32` for every build class but the first."""
    return VariantName(f"{ORT}.{hasher(build_class.encode())[:8]}")


@dataclass(frozen=True, slots=True)
class Bake:
    """Build `variant` from `export` on `node`."""

    variant: VariantRecord
    export: Digest
    node: NodeRecord


@dataclass(frozen=True, slots=True)
class VariantPlan:
    """`create`: variants that a build class lacks. `bake`: what can be built now. `waiting`: for a node; each with the reason."""

    create: tuple[VariantRecord, ...]
    bake: tuple[Bake, ...]
    waiting: tuple[tuple[VariantKey, str], ...]


def plan_variants(
    versions: Iterable[VersionRecord],
    variants: Iterable[VariantRecord],
    nodes: Iterable[NodeRecord],
    hasher: Callable[[bytes], Digest],
) -> VariantPlan:
    """What is to be done so that each build class among the nodes has its own `ort` variant of each version with an export.

    The first class to build keeps the short name; others get a variant of their own once the short one is ready or has failed.
    """
    by_class: dict[BuildClass, NodeRecord] = {}
    for node in sorted(nodes, key=lambda n: n.node_id):
        if _ORT_FLAVOUR in node.flavours:
            by_class.setdefault(node.build_class, node)
    of_version: dict[VersionKey, dict[VariantName, VariantRecord]] = {}
    for variant in variants:
        if variant.backend == "ort":
            of_version.setdefault(variant.key.version_key, {})[variant.key.variant] = variant
    create: list[VariantRecord] = []
    bake: list[Bake] = []
    waiting: list[tuple[VariantKey, str]] = []
    for version in versions:
        key = VersionKey(version.trust_domain, version.model, version.version)
        have = of_version.get(key, {})
        if not version.exports or ORT not in have:
            continue
        for variant in have.values():
            if variant.state not in (VariantState.PENDING, VariantState.BUILDING):
                continue
            chosen = _node_for(variant, by_class)
            if chosen is None:
                waiting.append((variant.key, _why_waiting(variant, by_class)))
            else:
                bake.append(Bake(variant, version.exports[0], chosen))
        short = have[ORT]
        if short.state not in (VariantState.READY, VariantState.FAILED):
            continue
        covered = {variant.build_class for variant in have.values()}
        for build_class in sorted(set(by_class) - covered):
            name = name_for(build_class, hasher)
            if name not in have:
                create.append(
                    VariantRecord(
                        key=VariantKey(key.trust_domain, key.model, key.version, name),
                        backend="ort",
                        flavour=_ORT_FLAVOUR,
                        precision=short.precision,
                        state=VariantState.PENDING,
                        max_batch=short.max_batch,
                        build_class=build_class,
                    )
                )
    return VariantPlan(tuple(create), tuple(bake), tuple(waiting))


def _node_for(variant: VariantRecord, by_class: dict[BuildClass, NodeRecord]) -> NodeRecord | None:
    if variant.build_class is not None and variant.build_class in by_class:
        return by_class[variant.build_class]
    if variant.key.variant == ORT:  # not ready yet, so any class may still become the first
        return next(iter(by_class.values()), None)
    return None


def _why_waiting(variant: VariantRecord, by_class: dict[BuildClass, NodeRecord]) -> str:
    wanted = (
        f"of build class {variant.build_class}" if variant.build_class and variant.key.variant != ORT else f"with flavour {_ORT_FLAVOUR}"
    )
    return f"no node {wanted} ({len(by_class)} build classes are there)"
