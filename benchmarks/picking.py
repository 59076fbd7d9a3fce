"""Which of a variant's instances should get a request: make bench NAME=picking

Virtual time, so that a figure says something about the policy and nothing about the machine. Sixteen instances, half of them on nodes that
are 2.5 times slower, batch as the runtime does (whoever waits joins the next batch, eight at most). Requests come as a Poisson process at a
share of what all instances answer together, through one gateway or four that know nothing of each other. Shown: latency, and how many
instances had anything to do in a second: what bin-packing is for.

    BENCH_REQUESTS=40000 make bench NAME=picking
"""

from __future__ import annotations

import heapq
import itertools
import os
import random
from dataclasses import dataclass, field

from benchmarks.report import Report, percentile
from tessera.policy.instance import registry
from tessera.policy.instance.base import InstancePolicy, Latency

INSTANCES, MAX_BATCH, ONE_MS, SLOPE, SLOWER = 16, 8, 10.0, 0.4, 2.5
LOADS = (0.1, 0.3, 0.6, 0.9)


@dataclass(eq=False)
class Line:
    one_ms: float

    def at(self, batch: int) -> float:
        return self.one_ms * (1 + SLOPE * (batch - 1))


@dataclass(eq=False)
class Server:
    """An instance as it is: who waits in it (arrival, gateway), and until when it executes."""

    latency: Line
    waiting: list[tuple[float, int]] = field(default_factory=list)
    executing: list[tuple[float, int]] = field(default_factory=list)
    batches: set[int] = field(default_factory=set)
    """Seconds in which it began a batch."""


@dataclass(eq=False)
class Seen:
    """The same as one gateway sees it."""

    latency: Latency | None
    in_flight: int = 0
    max_batch: int = MAX_BATCH
    joins: bool = True


def simulate(policy: InstancePolicy, load: float, gateways: int, requests: int, seed: int) -> tuple[list[float], float]:
    """Latencies in ms, and the mean number of instances that had something to do in a second."""
    draw = random.Random(seed)
    servers = [Server(Line(ONE_MS * (SLOWER if at % 2 else 1))) for at in range(INSTANCES)]
    seen = [[Seen(server.latency) for server in servers] for _ in range(gateways)]
    per_ms = sum(MAX_BATCH / server.latency.at(MAX_BATCH) for server in servers) * load
    ends: list[tuple[float, int, int]] = []
    number = itertools.count()
    latencies: list[float] = []
    now_ms = 0.0

    def begin(at: int) -> None:
        server = servers[at]
        server.executing, server.waiting = server.waiting[:MAX_BATCH], server.waiting[MAX_BATCH:]
        server.batches.add(int(now_ms // 1000))
        heapq.heappush(ends, (now_ms + server.latency.at(len(server.executing)), next(number), at))

    for _ in range(requests):
        arrives_ms = now_ms = now_ms + draw.expovariate(per_ms)
        while ends and ends[0][0] <= arrives_ms:
            now_ms, _, at = heapq.heappop(ends)
            for arrived_ms, gateway in servers[at].executing:
                latencies.append(now_ms - arrived_ms)
                seen[gateway][at].in_flight -= 1
            servers[at].executing = []
            if servers[at].waiting:
                begin(at)
        now_ms = arrives_ms
        gateway = draw.randrange(gateways)
        chosen = policy.pick(seen[gateway])
        chosen.in_flight += 1
        at = seen[gateway].index(chosen)
        servers[at].waiting.append((now_ms, gateway))
        if not servers[at].executing:
            begin(at)
    seconds = int(now_ms // 1000) + 1
    return latencies, sum(len(server.batches) for server in servers) / seconds


def main() -> None:
    requests = int(os.environ.get("BENCH_REQUESTS", "20000"))
    report = Report("picking")
    for gateways, load in itertools.product((1, 4), LOADS):
        for name in sorted(registry.POLICIES):
            took, used = simulate(registry.make(name, random.Random(5).random), load, gateways, requests, seed=3)
            report.row(
                gateways=gateways, load=load, policy=name, mean_ms=sum(took) / len(took), p50_ms=percentile(took, 0.5),
                p99_ms=percentile(took, 0.99), instances_used_per_s=used,
            )  # fmt: skip
    report.finish()


if __name__ == "__main__":
    main()
