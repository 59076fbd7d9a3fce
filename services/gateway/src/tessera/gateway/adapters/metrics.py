"""`Meter` for Prometheus. Requests are counted in plain numbers and shown as metrics when they are scraped: an update of a
prometheus_client metric takes a lock each, which a warm request would pay half a dozen times.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterator, Sequence

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from tessera.domain.instance import StageTime

_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
_START_SECONDS = (0.0005, 0.001, 0.002, 0.004, 0.006, 0.01, 0.02, 0.05, 0.1, 0.25, 1.0, 5.0, 20.0)
_DECISION_SECONDS = (5e-6, 1e-5, 2e-5, 3e-5, 5e-5, 1e-4, 2e-4, 5e-4, 1e-3, 1e-2)

_LABELS = ("model", "version", "variant", "node", "outcome")


class _Counts:
    """A histogram's numbers. Written on the event loop only; a scrape may see an observation that is half there."""

    __slots__ = ("_bounds", "_counts", "_sum")

    def __init__(self, bounds: Sequence[float]) -> None:
        self._bounds = bounds
        self._counts = [0] * (len(bounds) + 1)
        self._sum = 0.0

    def observe(self, value: float) -> None:
        self._counts[bisect_left(self._bounds, value)] += 1
        self._sum += value

    def buckets(self) -> tuple[list[tuple[str, float]], float]:
        """(upper bound, count up to there) of every bucket, and the sum."""
        rows: list[tuple[str, float]] = []
        total = 0
        for bound, count in zip((*map(str, self._bounds), "+Inf"), list(self._counts), strict=True):
            total += count
            rows.append((bound, total))
        return rows, self._sum


class PrometheusMeter(Collector):
    """Register it once; `in_flight` is asked at each scrape."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.in_flight: Callable[[], int] = lambda: 0
        self._requests: dict[tuple[tuple[str, str, str, str], str], int] = {}
        self._seconds: dict[str, _Counts] = {}
        self._decisions = _Counts(_DECISION_SECONDS)
        self._start_seconds = Histogram(
            "tessera_gateway_start_seconds", "Stages of starts", ("stage",), registry=registry, buckets=_START_SECONDS
        )
        self._starts = Counter("tessera_gateway_start", "Starts by their path", ("path",), registry=registry)
        self._queue_length = Gauge("tessera_gateway_queue_length", "Requests that wait for an instance to start", registry=registry)
        registry.register(self)

    def decided(self, seconds: float) -> None:
        self._decisions.observe(seconds)

    def answered(self, labels: tuple[str, str, str, str], outcome: str, seconds: float) -> None:
        key = (labels, outcome)
        self._requests[key] = self._requests.get(key, 0) + 1
        counts = self._seconds.get(labels[0])
        if counts is None:
            counts = self._seconds[labels[0]] = _Counts(_SECONDS)
        counts.observe(seconds)

    def waiting(self, change: int) -> None:
        self._queue_length.inc(change)

    def started(self, start_path: str, stages: Sequence[StageTime]) -> None:
        self._starts.labels(start_path).inc()
        for stage in stages:
            self._start_seconds.labels(stage.stage.value).observe(stage.ms / 1000)

    def collect(self) -> Iterator[Metric]:
        requests = CounterMetricFamily("tessera_gateway_requests", "Requests by their outcome (ok, or the error's kind)", labels=_LABELS)
        for (labels, outcome), count in list(self._requests.items()):
            requests.add_metric((*labels, outcome), count)
        yield requests
        seconds = HistogramMetricFamily("tessera_gateway_request_seconds", "From arrival to answer", labels=("model",))
        for model, counts in list(self._seconds.items()):
            seconds.add_metric((model,), *counts.buckets())
        yield seconds
        buckets, total = self._decisions.buckets()
        yield HistogramMetricFamily("tessera_gateway_decision_seconds", "From arrival to the choice of an instance", buckets, total)
        yield GaugeMetricFamily("tessera_gateway_in_flight", "Requests that have no answer yet", self.in_flight())
