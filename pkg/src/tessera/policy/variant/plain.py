"""The choice for a request without objectives: the fastest answer among the variants that agree with the registered model.

1. Only variants that agree (fp32 builds; any precision when the user named the variant), are ready, and can run on some node.
2. Active variants before inactive ones; among active ones the least profiled latency at batch 1 on the classes that serve it now,
   among inactive ones the least load + latency on any class that could.
3. Numbers decide only where every candidate of the tier has them. Otherwise the default order does, so that a variant is neither
   preferred nor punished for not having been measured.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from tessera.domain.ids import ProfileClass
from tessera.domain.records import ProfileRecord, VariantRecord, VariantState
from tessera.policy.variant.base import NodeClass, VariantOption, VariantPlan, VariantSnapshot

AGREEING_PRECISIONS = frozenset({"fp32", "any", ""})
"""Builds within `max|a-b| <= 1e-4 * max(1, max|b|)` of the registered model. "any" passes its input through (identity)."""

DEFAULT_ORDER = ("identity", "ort", "aten")
"""Backends without numbers: `ort` opens faster and runs faster on every CPU measured so far (docs/performance.md)."""


class PlainVariantPolicy:
    name = "plain"

    def choose(self, snapshot: VariantSnapshot) -> VariantPlan:
        options = [_judge(record, snapshot) for record in snapshot.variants]
        backends = {record.key: record.backend for record in snapshot.variants}

        def tier(option: VariantOption) -> int:
            return 2 if not option.usable else 0 if option.active_instances else 1

        measured = {number: all(option.expected_ms is not None for option in options if tier(option) == number) for number in (0, 1)}

        def rank(option: VariantOption) -> tuple[int, float, int, str]:
            number = tier(option)
            expected = option.expected_ms if measured.get(number) else None
            return number, expected or 0.0, _default_rank(backends[option.variant]), option.variant.variant

        options.sort(key=rank)
        return VariantPlan(self.name, tuple(_explained(options, measured)))


def _judge(record: VariantRecord, snapshot: VariantSnapshot) -> VariantOption:
    """One variant by itself: is it allowed, where could it run, and what does that cost."""
    key = record.key
    active = snapshot.active.get(key, {})
    instances = sum(active.values())

    def refused(reason: str) -> VariantOption:
        return VariantOption(key, False, instances, reason)

    if snapshot.named is not None and key.variant != snapshot.named:
        return refused("not the variant that was named")
    if record.state is not VariantState.READY:
        return refused(f"{record.state.value}{': ' + record.reason if record.reason else ''}")
    if snapshot.named is None and record.precision not in AGREEING_PRECISIONS:
        return refused(f"{record.precision} may differ from the registered model; it must be named to be used")
    hosts = [cls for cls in snapshot.classes if _can_run(record, cls)]
    if not hosts and not active:
        return refused(_why_nowhere(record, snapshot.classes))
    profiles = snapshot.profiles.get(key, {})
    if active:
        return VariantOption(key, True, instances, "", _least(_latency(profiles, cls) for cls in active))
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


def _explained(options: list[VariantOption], measured: Mapping[int, bool]) -> Iterable[VariantOption]:
    """Adds to every usable option why it won, or what beat it."""
    best = options[0] if options and options[0].usable else None
    for option in options:
        if not option.usable or best is None:
            yield option
            continue
        yield VariantOption(
            option.variant, True, option.active_instances, _reason(option, best, measured), option.latency_ms, option.load_ms
        )


def _reason(option: VariantOption, best: VariantOption, measured: Mapping[int, bool]) -> str:
    by_number = measured[0 if best.active_instances else 1]
    basis = "least expected time" if by_number else "default order (not every candidate has a profile)"
    state = "active" if best.active_instances else "inactive"
    if option is best:
        return f"{state}, {basis}"
    if best.active_instances and not option.active_instances:
        return f"inactive, and {best.variant.variant} is active"
    if not by_number:
        return f"after {best.variant.variant} in the default order"
    assert option.expected_ms is not None
    assert best.expected_ms is not None
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
