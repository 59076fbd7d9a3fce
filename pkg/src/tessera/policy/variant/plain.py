"""The choice for a request without objectives: the fastest answer among the variants that agree with the registered model.

1. Only variants that agree (fp32 builds; any precision when the user named the variant), are ready, and can run on some node.
2. Active variants before inactive ones; among active ones the least profiled latency at batch 1 on the classes that serve it now,
   among inactive ones the least load + latency on any class that could.
3. Numbers decide only where every candidate of the tier has them. Otherwise the default order does, so that a variant is neither
   preferred nor punished for not having been measured.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from tessera.domain.ids import ProfileClass
from tessera.domain.records import ProfileRecord, VariantRecord, VariantState
from tessera.policy.variant.base import NodeClass, VariantOption, VariantPlan, VariantSnapshot

AGREEING_PRECISIONS = frozenset({"fp32", "any", ""})
"""Builds within `max|a-b| <= 1e-4 * max(1, max|b|)` of the registered model. "any" passes its input through (identity)."""

DEFAULT_ORDER = ("identity", "ort", "aten")
"""The order in which backends are tried where nothing was measured. An assumption: a profile of both overrules it."""


MAX_REMEMBERED = 65536

_NOT_MEASURED: Mapping[ProfileClass, ProfileRecord] = {}


@dataclass(frozen=True, slots=True)
class _Judged:
    """What holds of a variant whoever serves it now; valid as long as it was made of the same objects."""

    record: VariantRecord
    classes: Mapping[NodeClass, int]
    profiles: Mapping[ProfileClass, ProfileRecord]
    inactive: VariantOption
    forbidden: bool
    rank: int


class PlainVariantPolicy:
    """Remembers what it judged of each variant by itself, so that a plan after a change of instances costs a look-up per variant."""

    name = "plain"

    def __init__(self) -> None:
        self._judged: tuple[dict[int, _Judged], dict[int, _Judged]] = ({}, {})

    def choose(self, snapshot: VariantSnapshot) -> VariantPlan:
        named = snapshot.named
        ranked: list[tuple[int, float, int, str, VariantOption]] = []
        measured = [True, True, False]
        for record in snapshot.variants:
            key = record.key
            if named is not None and key.variant != named:
                ranked.append((2, 0.0, 0, key.variant, VariantOption(key, False, 0, "not the variant that was named")))
                continue
            judged = self._judge(record, snapshot, named is not None)
            option = judged.inactive
            active = snapshot.active.get(key.variant) if snapshot.active else None
            if active is not None and not judged.forbidden:
                latency = _least([_latency(judged.profiles, cls) for cls in active])
                option = VariantOption(key, True, sum(active.values()), "", latency)
            tier = 2 if not option.usable else 0 if option.active_instances else 1
            expected = option.expected_ms
            measured[tier] = measured[tier] and expected is not None
            ranked.append((tier, expected or 0.0, judged.rank, key.variant, option))
        # Numbers count only in a tier where every candidate has them.
        ranked.sort(key=lambda row: (row[0], row[1] if measured[row[0]] else 0.0, row[2], row[3]))
        return VariantPlan(self.name, tuple([row[4] for row in ranked]))

    def explain(self, plan: VariantPlan) -> tuple[VariantOption, ...]:
        best = plan.chosen
        if best is None:
            return plan.options
        tier = [option for option in plan.usable if bool(option.active_instances) == bool(best.active_instances)]
        by_number = all(option.expected_ms is not None for option in tier)
        return tuple(replace(one, reason=_reason(one, best, by_number)) if one.usable else one for one in plan.options)

    def _judge(self, record: VariantRecord, snapshot: VariantSnapshot, named: bool) -> _Judged:
        remembered = self._judged[named]
        profiles = snapshot.profiles.get(record.key.variant, _NOT_MEASURED)
        # By the object, not by its key: hashing a key of four names costs more than the rest of the look-up. What is remembered keeps
        # its record alive, so that no other one gets its address.
        known = remembered.get(id(record))
        if known is not None and known.record is record and known.classes is snapshot.classes and known.profiles is profiles:
            return known
        if len(remembered) >= MAX_REMEMBERED:
            remembered.clear()
        forbidden = _forbidden(record, named)
        option = VariantOption(record.key, False, 0, forbidden) if forbidden else _inactive(record, snapshot.classes, profiles)
        judged = _Judged(record, snapshot.classes, profiles, option, bool(forbidden), _default_rank(record.backend))
        remembered[id(record)] = judged
        return judged


def _forbidden(record: VariantRecord, named: bool) -> str:
    """Why it may not serve at all, also where it is active; "" when it may."""
    if record.state is not VariantState.READY:
        return f"{record.state.value}{': ' + record.reason if record.reason else ''}"
    if not named and record.precision not in AGREEING_PRECISIONS:
        return f"{record.precision} may differ from the registered model; it must be named to be used"
    return ""


def _inactive(record: VariantRecord, classes: Mapping[NodeClass, int], profiles: Mapping[ProfileClass, ProfileRecord]) -> VariantOption:
    """What starting it would cost on the best class that can run it."""
    key = record.key
    hosts = [cls for cls in classes if _can_run(record, cls)]
    if not hosts:
        return VariantOption(key, False, 0, _why_nowhere(record, classes))
    cheapest = min(
        (
            (load + latency, load, latency)
            for load, latency in (_cost(profiles, cls) for cls in hosts)
            if load is not None and latency is not None
        ),
        default=None,
    )
    if cheapest is None:
        return VariantOption(key, True, 0, "", _least(_latency(profiles, cls) for cls in hosts))
    return VariantOption(key, True, 0, "", cheapest[2], cheapest[1])


def _reason(option: VariantOption, best: VariantOption, by_number: bool) -> str:
    """Why it won, or what beat it."""
    basis = "least expected time" if by_number else "default order (not every candidate has a profile)"
    if option is best:
        return f"{'active' if best.active_instances else 'inactive'}, {basis}"
    if best.active_instances and not option.active_instances:
        return f"inactive, and {best.variant.variant} is active"
    if not by_number or option.expected_ms is None or best.expected_ms is None:
        return f"after {best.variant.variant} in the default order"
    return f"{option.expected_ms - best.expected_ms:.3g} ms slower than {best.variant.variant}"


def _can_run(record: VariantRecord, cls: NodeClass) -> bool:
    return (record.build_class is None or record.build_class == cls.build_class) and record.flavour in cls.flavours


def _why_nowhere(record: VariantRecord, classes: Mapping[NodeClass, int]) -> str:
    nodes = sum(classes.values())
    if not nodes:
        return "no node is there"
    other_class = sum(count for cls, count in classes.items() if record.build_class not in (None, cls.build_class))
    other_flavour = nodes - other_class
    parts = [f"{other_class} are not of build class {record.build_class}"] if other_class else []
    if other_flavour:
        parts.append(f"{other_flavour} run no {record.flavour} runtimes")
    return f"0 of {nodes} nodes: {', '.join(parts)}"


def _cost(profiles: Mapping[ProfileClass, ProfileRecord], cls: NodeClass) -> tuple[float | None, float | None]:
    profile = profiles.get(cls.profile_class)
    load = None if profile is None else _least(cost.total_ms for cost in profile.load)
    return load, _latency(profiles, cls)


def _latency(profiles: Mapping[ProfileClass, ProfileRecord], cls: NodeClass) -> float | None:
    """Median ms at batch 1 with the class's own threads, else with whatever thread count was measured."""
    profile = profiles.get(cls.profile_class)
    if profile is None:
        return None
    exact = profile.latency_ms(1, cls.threads)
    return exact if exact is not None else _least(row.p50_ms for row in profile.rows if row.batch == 1)


def _least(values: Iterable[float | None]) -> float | None:
    return min((value for value in values if value is not None), default=None)


def _default_rank(backend: str) -> int:
    return DEFAULT_ORDER.index(backend) if backend in DEFAULT_ORDER else len(DEFAULT_ORDER)
