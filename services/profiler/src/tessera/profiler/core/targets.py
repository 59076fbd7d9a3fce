"""What a run is about: each ready variant on each profile class that has a node to measure on."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from tessera.domain.errors import FailedPrecondition, VariantNotFound
from tessera.domain.ids import ProfileClass, VariantKey
from tessera.domain.records import NodeRecord, VariantRecord, VariantState
from tessera.profiler.core.grid import Cell, full_grid, quick_grid


@dataclass(frozen=True, slots=True)
class Target:
    """One record to fill. `nodes` are those of the class that may hold the variant, in the order in which they are tried."""

    variant: VariantRecord
    profile_class: ProfileClass
    nodes: tuple[NodeRecord, ...]

    @property
    def key(self) -> VariantKey:
        return self.variant.key

    def full_grid(self) -> tuple[Cell, ...]:
        return full_grid(self.variant.max_batch, min(node.cpu_count for node in self.nodes))

    def grid(self, quick: bool) -> tuple[Cell, ...]:
        return quick_grid(self.nodes[0].runtime_threads) if quick else self.full_grid()


def targets(
    version: str, variants: Sequence[VariantRecord], nodes: Iterable[NodeRecord], variant: str = "", profile_class: str = ""
) -> tuple[Target, ...]:
    """Targets in the order of variants and classes.

    Raises:
        VariantNotFound: `variant` is none of the version's.
        FailedPrecondition: nothing can be measured; every reason is counted.
    """
    wanted = [item for item in variants if not variant or item.key.variant == variant]
    if variant and not wanted:
        raise VariantNotFound(f"{version}/{variant}", ", ".join(sorted(item.key.variant for item in variants)))
    present = sorted((node for node in nodes if not profile_class or node.profile_class == profile_class), key=lambda node: node.node_id)
    if not present:
        what = f"no node of profile class {profile_class!r} is registered" if profile_class else "no node is registered"
        raise FailedPrecondition(f"{version} cannot be profiled: {what}")
    found: list[Target] = []
    reasons: list[str] = []
    for item in sorted(wanted, key=lambda record: record.key):
        if item.state is not VariantState.READY:
            reasons.append(f"{item.key} is {item.state}" + (f" ({item.reason})" if item.reason else ""))
            continue
        fitting = [node for node in present if item.build_class in (None, node.build_class) and item.flavour in node.flavours]
        if not fitting:
            reasons.append(f"{item.key} needs build class {item.build_class or 'any'} and {item.flavour} runtimes: no node has them")
        classes = sorted({node.profile_class for node in fitting})
        found += [Target(item, name, tuple(node for node in fitting if node.profile_class == name)) for name in classes]
    if not found:
        raise FailedPrecondition(f"{version} cannot be profiled: {'; '.join(reasons) or 'it has no variants'}")
    return tuple(found)
