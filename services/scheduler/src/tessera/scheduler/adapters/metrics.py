"""What Prometheus sees of the scheduler."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from tessera.domain.instance import StartPath

BUCKETS_S = (0.001, 0.002, 0.004, 0.006, 0.010, 0.015, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 15.0, 60.0)


class PrometheusMeter:
    """One set of metrics in a registry of its own, so that two schedulers can live in one process."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._starts = Counter(
            "tessera_scheduler_starts", "Start requests by how they ended.", ["start_path", "outcome"], registry=self.registry
        )
        self._start_s = Histogram(
            "tessera_scheduler_start_seconds", "From request to ready instance.", ["start_path"], buckets=BUCKETS_S, registry=self.registry
        )
        self._decision_s = Histogram(
            "tessera_scheduler_decision_seconds",
            "One decision of the start policy.",
            buckets=(1e-5, 5e-5, 1e-4, 5e-4, 1e-3, 1e-2),
            registry=self.registry,
        )
        self._merged = Counter("tessera_scheduler_starts_merged", "Requests that joined a start in flight.", registry=self.registry)
        self._stops = Counter("tessera_scheduler_stops", "Instances whose assignment ended.", ["policy"], registry=self.registry)
        self._judged = Counter("tessera_scheduler_load_states", "Load states entered, but active.", ["state"], registry=self.registry)
        self._scaled = Counter("tessera_scheduler_scaled", "Instances by autoscaling.", ["policy", "how"], registry=self.registry)
        self._pooled = Counter("tessera_scheduler_nodes", "Nodes of the provider.", ["how"], registry=self.registry)
        self._leading = Gauge("tessera_scheduler_leading", "1 while this scheduler leads.", registry=self.registry)

    def started(self, path: StartPath, seconds: float) -> None:
        self._starts.labels(path.value, "ok").inc()
        self._start_s.labels(path.value).observe(seconds)

    def refused(self, kind: str) -> None:
        self._starts.labels("none", kind).inc()

    def decided(self, seconds: float) -> None:
        self._decision_s.observe(seconds)

    def merged(self) -> None:
        self._merged.inc()

    def stopped(self, reason: str) -> None:
        self._stops.labels(reason).inc()

    def judged(self, state: str) -> None:
        self._judged.labels(state).inc()

    def scaled(self, policy: str, added: int, removed: int) -> None:
        self._scaled.labels(policy, "added").inc(added)
        self._scaled.labels(policy, "removed").inc(removed)

    def pooled(self, how: str) -> None:
        self._pooled.labels(how).inc()

    def leading(self, yes: bool) -> None:
        self._leading.set(1 if yes else 0)
