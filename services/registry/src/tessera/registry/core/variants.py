"""The states of a variant (docs/states/variant.md), how variants are named, and which are still to be made."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from tessera.domain.errors import FailedPrecondition
from tessera.domain.ids import BuildClass, Digest, VariantKey, VariantName, VersionKey
from tessera.domain.records import NodeRecord, VariantRecord, VariantState, VersionRecord
from tessera.registry.core.recipes import ATEN, BASE, ORT, names, recipe_named, recipe_of, wanted

_FLAVOUR = "ort"
OPEN = (VariantState.PENDING, VariantState.BUILDING)

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


def name_for(recipe: str, build_class: BuildClass, hasher: Callable[[bytes], Digest]) -> VariantName:
    """The name of a recipe's variant for every build class but the first."""
    return VariantName(f"{recipe}.{hasher(build_class.encode())[:8]}")


@dataclass(frozen=True, slots=True)
class Bake:
    """Build `variant` of `version` by `recipe` from the artifact `source` on `node`. `base`: somebody may be waiting for it."""

    variant: VariantRecord
    version: VersionRecord
    recipe: str
    source: Digest
    node: NodeRecord

    @property
    def base(self) -> bool:
        return self.recipe in BASE


@dataclass(frozen=True, slots=True)
class VariantPlan:
    """`create`: variants that a version or a build class lacks. `bake`: what can be built now, what is wanted first first. `waiting`: for
    a node or another variant; `fail`: what cannot be built any more; both with the reason."""

    create: tuple[VariantRecord, ...] = ()
    bake: tuple[Bake, ...] = ()
    waiting: tuple[tuple[VariantKey, str], ...] = ()
    fail: tuple[tuple[VariantKey, str], ...] = ()


@dataclass(slots=True)
class _Draft:
    create: list[VariantRecord] = field(default_factory=list)
    bake: list[Bake] = field(default_factory=list)
    waiting: list[tuple[VariantKey, str]] = field(default_factory=list)
    fail: list[tuple[VariantKey, str]] = field(default_factory=list)


def plan_variants(
    versions: Iterable[VersionRecord],
    variants: Iterable[VariantRecord],
    nodes: Iterable[NodeRecord],
    hasher: Callable[[bytes], Digest],
    recipes: Sequence[str] = (),
) -> VariantPlan:
    """What is to be done so that each build class among the nodes has its own variants of each version with an export.

    `ort-fp32` of any version goes before every other recipe: users wait for it. The first class to build it keeps the short names; others
    get variants of their own once the short one is ready or has failed. Other recipes follow on a class whose `ort-fp32` is ready; what
    ONNX Runtime cannot make fp32 of is not quantised. `recipes`: the registry's own list, for versions that name none.
    """
    known = sorted(nodes, key=lambda n: n.node_id)
    by_class = _first_of_class(known, _FLAVOUR)
    by_flavour = {flavour: _first_of_class(known, flavour) for node in known for flavour in node.flavours}
    of_version: dict[VersionKey, dict[VariantName, VariantRecord]] = {}
    flat: dict[VersionKey, Digest] = {}
    for variant in variants:
        if recipe_of(variant) != ATEN:
            of_version.setdefault(variant.key.version_key, {})[variant.key.variant] = variant
        elif variant.artifact is not None:
            flat[variant.key.version_key] = variant.artifact
    draft = _Draft()
    for version in versions:
        key = VersionKey(version.trust_domain, version.model, version.version)
        have = of_version.get(key, {})
        if version.exports and ORT in have:
            _plan_base(version, have, by_class, hasher, draft)
            _plan_further(version, have, by_flavour, flat.get(key), hasher, recipes, draft)
    order = {name: place for place, name in enumerate((ORT, *names()))}
    draft.bake.sort(key=lambda bake: order[bake.recipe])  # stable: versions keep their order
    return VariantPlan(tuple(draft.create), tuple(draft.bake), tuple(draft.waiting), tuple(draft.fail))


def _plan_base(
    version: VersionRecord,
    have: Mapping[VariantName, VariantRecord],
    by_class: Mapping[BuildClass, NodeRecord],
    hasher: Callable[[bytes], Digest],
    draft: _Draft,
) -> None:
    builds = [variant for variant in have.values() if recipe_of(variant) == ORT]
    for variant in builds:
        if variant.state not in OPEN:
            continue
        chosen = _node_for(variant, by_class)
        if chosen is None:
            draft.waiting.append((variant.key, _why_waiting(variant, by_class)))
        else:
            draft.bake.append(Bake(variant, version, ORT, version.exports[0], chosen))
    short = have[ORT]
    if short.state in OPEN:
        return
    covered = {variant.build_class for variant in builds}
    for build_class in sorted(set(by_class) - covered):
        name = name_for(ORT, build_class, hasher)
        if name not in have:
            draft.create.append(_wanted(short, ORT, name, build_class))


def _plan_further(
    version: VersionRecord,
    have: Mapping[VariantName, VariantRecord],
    by_flavour: Mapping[str, Mapping[BuildClass, NodeRecord]],
    flat: Digest | None,
    hasher: Callable[[bytes], Digest],
    recipes: Sequence[str],
    draft: _Draft,
) -> None:
    short = have[ORT]
    others = {variant.build_class: variant for variant in have.values() if recipe_of(variant) == ORT and variant is not short}
    for variant in have.values():
        recipe = recipe_of(variant)
        if recipe == ORT or variant.state not in OPEN:
            continue
        if recipe not in names():
            draft.fail.append((variant.key, f"no installed package offers recipe {recipe}"))
            continue
        made = recipe_named(recipe)
        by_class = by_flavour.get(made.flavour, {})
        source = version.exports[0] if made.flavour == _FLAVOUR else flat
        base = short if "." not in variant.key.variant else others.get(variant.build_class)
        if base is None or base.state is VariantState.FAILED:
            reason = f"{base.key.variant} failed: {base.reason}" if base else f"there is no {ORT} of build class {variant.build_class}"
            draft.fail.append((variant.key, reason))
        elif source is None:
            draft.fail.append((variant.key, f"{recipe} is made of the flat program, and there is none of this version"))
        elif base.state is not VariantState.READY or base.build_class is None:
            draft.waiting.append((variant.key, f"{base.key.variant} comes first"))
        elif base.build_class not in by_class:
            words = f"no node of build class {base.build_class} with flavour {made.flavour} ({len(by_class)} build classes are there)"
            draft.waiting.append((variant.key, words))
        else:
            draft.bake.append(Bake(variant, version, recipe, source, by_class[base.build_class]))
    for base in (short, *others.values()):
        build_class = base.build_class
        if base.state is not VariantState.READY or build_class is None:
            continue
        for recipe in wanted(version, recipes, build_class):
            if build_class not in by_flavour.get(recipe_named(recipe).flavour, {}):
                continue
            name = VariantName(recipe) if base is short else name_for(recipe, build_class, hasher)
            if name not in have:
                draft.create.append(_wanted(base, recipe, name, build_class))


def _wanted(like: VariantRecord, recipe: str, name: VariantName, build_class: BuildClass) -> VariantRecord:
    key, made = like.key, None if recipe in BASE else recipe_named(recipe)
    return VariantRecord(
        key=VariantKey(key.trust_domain, key.model, key.version, name),
        backend=made.backend if made else like.backend,
        flavour=made.flavour if made else like.flavour,
        precision=made.precision if made else like.precision,
        state=VariantState.PENDING,
        max_batch=like.max_batch,
        build_class=build_class,
        recipe=recipe,
    )


def _first_of_class(nodes: Sequence[NodeRecord], flavour: str) -> dict[BuildClass, NodeRecord]:
    """The first of the nodes of each build class that run the flavour."""
    found: dict[BuildClass, NodeRecord] = {}
    for node in nodes:
        if flavour in node.flavours:
            found.setdefault(node.build_class, node)
    return found


def _node_for(variant: VariantRecord, by_class: Mapping[BuildClass, NodeRecord]) -> NodeRecord | None:
    if variant.build_class is not None and variant.build_class in by_class:
        return by_class[variant.build_class]
    if variant.key.variant == ORT:  # not ready yet, so any class may still become the first
        return next(iter(by_class.values()), None)
    return None


def _why_waiting(variant: VariantRecord, by_class: Mapping[BuildClass, NodeRecord]) -> str:
    wanted_class = (
        f"of build class {variant.build_class}" if variant.build_class and variant.key.variant != ORT else f"with flavour {_FLAVOUR}"
    )
    return f"no node {wanted_class} ({len(by_class)} build classes are there)"
