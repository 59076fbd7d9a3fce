"""A variant's figures for the policy, from its record, its model, its profiles and the classes of nodes that are there."""

from __future__ import annotations

from collections.abc import Mapping

from tessera.domain.accuracy import accuracy_of
from tessera.domain.cost import usd_per_1000
from tessera.domain.fit import of_singles
from tessera.domain.ids import ProfileClass
from tessera.domain.records import ModelRecord, NodeRecord, ProfileRecord, VariantRecord
from tessera.policy.instance.profiled import ProfiledLatency
from tessera.policy.variant.answering import can_run
from tessera.policy.variant.base import Activity, Candidate, Classes, NodeClass
from tessera.policy.variant.permitted import is_plain, never


def node_class(node: NodeRecord) -> NodeClass:
    return NodeClass(node.build_class, node.profile_class, node.flavours, node.runtime_threads, node.cpu_count, node.usd_per_hour)


class Row:
    """One variant: what the records say, and the candidate made of it. `profiles` is shared with who keeps them."""

    __slots__ = ("_latencies", "activity", "profiles", "record")

    def __init__(self, record: VariantRecord, activity: Activity, profiles: Mapping[ProfileClass, ProfileRecord]) -> None:
        self.record = record
        self.activity = activity
        self.profiles = profiles
        self._latencies: dict[NodeClass, ProfiledLatency | None] = {}

    def latency(self, cls: NodeClass) -> ProfiledLatency | None:
        """By batch, on nodes of a class; the same object until a profile changes."""
        if cls not in self._latencies:
            self._latencies[cls] = ProfiledLatency.of(self.profiles.get(cls.profile_class), cls.threads)
        return self._latencies[cls]

    def _singles(self, cls: NodeClass) -> ProfileRecord | None:
        profile = self.profiles.get(cls.profile_class)
        return of_singles(profile, self.record.joins) if profile is not None else None

    def profiles_changed(self) -> None:
        self._latencies.clear()

    def judge(self, model: ModelRecord | None, classes: Classes) -> Candidate:
        """The candidate, as things are now."""
        record = self.record
        hosts = [cls for cls in classes if can_run(record, cls)]
        profiled = {cls: latency for cls in hosts if (latency := self.latency(cls)) is not None}
        latencies = {cls: latency.one_ms for cls, latency in profiled.items()}
        loads = {cls: load for cls in hosts if (load := _load_ms(self.profiles.get(cls.profile_class))) is not None}
        start_ms, load_ms = min(((loads[cls] + ms, loads[cls]) for cls, ms in latencies.items() if cls in loads), default=(None, None))
        return Candidate(
            key=record.key,
            record=record,
            activity=self.activity,
            accuracy=accuracy_of(record.agreement, model.accuracy if model is not None else None),
            dataset=model.dataset if model is not None else "",
            plain=is_plain(record, model),
            refusal=never(record),
            nowhere="" if hosts else why_nowhere(record, classes),
            latency_ms=min(latencies.values(), default=None),
            load_ms=load_ms,
            start_ms=start_ms,
            work_ms=min((ms for cls in hosts if (ms := _work_ms(self._singles(cls))) is not None), default=None),
            usd_per_1000=min((usd for cls in hosts if (usd := _usd(self._singles(cls), cls)) is not None), default=None),
            priced=all(cls.usd_per_hour for cls in classes),
            latency=min(profiled.values(), key=lambda latency: latency.one_ms, default=None),
        )


def why_nowhere(record: VariantRecord, classes: Classes) -> str:
    """Why no node can run it: how many there are, and what each lacks."""
    nodes = sum(classes.values())
    if not nodes:
        return "no node is there"
    other_class = sum(count for cls, count in classes.items() if record.build_class not in (None, cls.build_class))
    other_flavour = nodes - other_class
    parts = [f"{other_class} are not of build class {record.build_class}"] if other_class else []
    if other_flavour:
        parts.append(f"{other_flavour} run no {record.flavour} runtimes")
    return f"0 of {nodes} nodes: {', '.join(parts)}"


def _load_ms(profile: ProfileRecord | None) -> float | None:
    """By the cheapest start path that was measured."""
    return min((cost.total_ms for cost in profile.load), default=None) if profile is not None else None


def _work_ms(profile: ProfileRecord | None) -> float | None:
    """Core-milliseconds of an item, at the row where they are least."""
    rows = profile.rows if profile is not None else ()
    return min((1000 * row.threads * row.concurrency / row.items_per_s for row in rows if row.items_per_s > 0), default=None)


def _usd(profile: ProfileRecord | None, cls: NodeClass) -> float | None:
    return usd_per_1000(profile, cls.usd_per_hour, cls.cpu_count) if profile is not None else None
