"""What a profile is worth beside its figures: the price of its class, its cost per request, how well its variant answers."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from tessera.domain.accuracy import Accuracy, accuracy_of
from tessera.domain.cost import usd_per_1000
from tessera.domain.fit import of_singles
from tessera.domain.records import ModelRecord, NodeRecord, ProfileRecord, VariantRecord


@dataclass(frozen=True, slots=True)
class Valued:
    """`usd_per_hour` 0 and `usd_per_1000` None: no node of the class says what it costs. `accuracy` None: the variant is gone."""

    record: ProfileRecord
    usd_per_hour: float = 0.0
    cpu_count: int = 0
    usd_per_1000: float | None = None
    accuracy: Accuracy | None = None
    withheld: str = ""


def valued(
    profiles: Iterable[ProfileRecord], variants: Iterable[VariantRecord], nodes: Iterable[NodeRecord], model: ModelRecord | None
) -> list[Valued]:
    """By variant and class. Of several nodes of a class the dearest counts: a cost that is promised must hold on each."""
    by_key = {variant.key: variant for variant in variants}
    nodes = tuple(nodes)
    found = []
    for record in sorted(profiles, key=lambda record: (record.variant, record.profile_class)):
        priced = [node for node in nodes if node.profile_class == record.profile_class and node.usd_per_hour > 0]
        dearest = max(priced, key=lambda node: node.usd_per_hour, default=None)
        variant = by_key.get(record.variant)
        singles = of_singles(record, variant is None or variant.joins)
        found.append(
            Valued(
                record,
                dearest.usd_per_hour if dearest is not None else 0.0,
                dearest.cpu_count if dearest is not None else 0,
                usd_per_1000(singles, dearest.usd_per_hour, dearest.cpu_count) if dearest is not None else None,
                accuracy_of(variant.agreement, model.accuracy if model is not None else None) if variant is not None else None,
                variant.withheld if variant is not None else "",
            )
        )
    return found
