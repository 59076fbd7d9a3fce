"""Prometheus counters of the node agent."""

from __future__ import annotations

from prometheus_client import REGISTRY, CollectorRegistry, Counter, Gauge, Histogram

from tessera.domain.ids import TrustDomain
from tessera.domain.instance import StageTime, StartPath

_START_BUCKETS = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30, 60)


class PrometheusMeter:
    """Implements `Meter`."""

    def __init__(self, registry: CollectorRegistry = REGISTRY) -> None:
        self._start = Histogram(
            "tessera_node_agent_start_seconds", "Time of a start by stage", ["stage"], buckets=_START_BUCKETS, registry=registry
        )
        self._starts = Counter("tessera_node_agent_starts", "Instances that became ready", ["path"], registry=registry)
        self._failures = Counter("tessera_node_agent_failures", "Instances that failed", ["kind"], registry=registry)
        self._lost = Counter("tessera_node_agent_runtimes_lost", "Runtimes that ended unasked", registry=registry)
        self._runtimes = Gauge("tessera_node_agent_runtimes", "Live runtimes", ["flavour"], registry=registry)
        self._used = Gauge("tessera_node_agent_store_used_bytes", "Bytes in the tensor store", ["trust_domain"], registry=registry)
        self._pinned = Gauge("tessera_node_agent_store_pinned_bytes", "Bytes that somebody holds", ["trust_domain"], registry=registry)
        self._reclaimed = Gauge(
            "tessera_node_agent_store_reclaimed_bytes",
            "Bytes reclaimed since the agent started",
            ["trust_domain", "reason"],
            registry=registry,
        )
        self._fetched = Gauge(
            "tessera_node_agent_store_fetched_bytes", "Bytes fetched since the agent started", ["trust_domain"], registry=registry
        )

    def started(self, path: StartPath, stages: tuple[StageTime, ...]) -> None:
        self._starts.labels(path.value).inc()
        for time in stages:
            self._start.labels(time.stage.value).observe(time.ms / 1e3)

    def failed(self, kind: str) -> None:
        self._failures.labels(kind).inc()

    def runtime_lost(self) -> None:
        self._lost.inc()

    def store(self, trust_domain: TrustDomain, used_bytes: int, pinned_bytes: int, fetched_bytes: int) -> None:
        self._used.labels(trust_domain).set(used_bytes)
        self._pinned.labels(trust_domain).set(pinned_bytes)
        self._fetched.labels(trust_domain).set(fetched_bytes)

    def reclaimed(self, trust_domain: TrustDomain, reason: str, total_bytes: int) -> None:
        self._reclaimed.labels(trust_domain, reason).set(total_bytes)

    def runtimes(self, flavour: str, count: int) -> None:
        self._runtimes.labels(flavour).set(count)
