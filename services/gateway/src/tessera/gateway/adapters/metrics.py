"""`Meter` over prometheus_client, with the label children of the hot path kept at hand."""

from __future__ import annotations

from collections.abc import Sequence

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from tessera.domain.instance import StageTime

MAX_SERIES = 16384
"""Label sets kept at hand; beyond that they are looked up each time."""

_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
_START_SECONDS = (0.0005, 0.001, 0.002, 0.004, 0.006, 0.01, 0.02, 0.05, 0.1, 0.25, 1.0, 5.0, 20.0)
_DECISION_SECONDS = (5e-6, 1e-5, 2e-5, 3e-5, 5e-5, 1e-4, 2e-4, 5e-4, 1e-3, 1e-2)


class PrometheusMeter:
    def __init__(self, registry: CollectorRegistry) -> None:
        labels = ("model", "version", "variant", "node", "outcome")
        self._requests = Counter(
            "tessera_gateway_requests", "Requests by their outcome (ok, or the error's kind)", labels, registry=registry
        )
        self._seconds = Histogram(
            "tessera_gateway_request_seconds", "From arrival to answer", ("model",), registry=registry, buckets=_SECONDS
        )
        self._start_seconds = Histogram(
            "tessera_gateway_start_seconds", "Stages of starts", ("stage",), registry=registry, buckets=_START_SECONDS
        )
        self._starts = Counter("tessera_gateway_start", "Starts by their path", ("path",), registry=registry)
        self._in_flight = Gauge("tessera_gateway_in_flight", "Requests that have no answer yet", registry=registry)
        self._queue_length = Gauge("tessera_gateway_queue_length", "Requests that wait for an instance to start", registry=registry)
        self._decision = Histogram(
            "tessera_gateway_decision_seconds", "Choice of variant and instance", registry=registry, buckets=_DECISION_SECONDS
        )
        self._known: dict[tuple[str, str, str, str, str], tuple[Counter, Histogram]] = {}

    def decided(self, seconds: float) -> None:
        self._decision.observe(seconds)

    def arrived(self) -> None:
        self._in_flight.inc()

    def answered(self, model: str, version: str, variant: str, node: str, outcome: str, seconds: float) -> None:
        key = (model, version, variant, node, outcome)
        known = self._known.get(key)
        if known is None:
            known = self._requests.labels(*key), self._seconds.labels(model)
            if len(self._known) < MAX_SERIES:
                self._known[key] = known
        known[0].inc()
        known[1].observe(seconds)
        self._in_flight.dec()

    def waiting(self, change: int) -> None:
        self._queue_length.inc(change)

    def started(self, start_path: str, stages: Sequence[StageTime]) -> None:
        self._starts.labels(start_path).inc()
        for stage in stages:
            self._start_seconds.labels(stage.stage.value).observe(stage.ms / 1000)
