"""Prometheus counters of the node agent."""

from __future__ import annotations

from collections.abc import Sequence

from prometheus_client import REGISTRY, CollectorRegistry, Counter, Gauge, Histogram

from tessera.domain.ids import TrustDomain
from tessera.domain.instance import StageTime, StartPath
from tessera.node_agent.ports import MachineUse, RuntimeActivity

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
        self._unlinked = Gauge(
            "tessera_node_agent_store_unlinked_bytes", "Bytes deleted but still mapped", ["trust_domain"], registry=registry
        )
        self._memory = Gauge("tessera_node_agent_runtime_bytes", "Memory of the runtimes", ["flavour", "kind"], registry=registry)
        self._runtime_cpu = Gauge("tessera_node_agent_runtime_cpu_cores", "CPU cores that runtimes use", ["flavour"], registry=registry)
        self._instances = Gauge("tessera_node_agent_instances", "Loaded instances, open or parked", ["flavour", "kind"], registry=registry)
        self._queue = Gauge("tessera_node_agent_queue_requests", "Requests that wait in runtimes", ["flavour"], registry=registry)
        self._executing = Gauge("tessera_node_agent_executing_requests", "Requests in running batches", ["flavour"], registry=registry)
        self._cpu = Gauge("tessera_node_agent_cpu_cores", "CPU cores that the whole node uses", registry=registry)
        self._available = Gauge("tessera_node_agent_memory_available_bytes", "Memory that is available on the node", registry=registry)
        self._pressure = Gauge("tessera_node_agent_memory_pressure_ratio", "PSI some avg10 of memory, 0 to 1", registry=registry)
        self._fetched = Gauge(
            "tessera_node_agent_store_fetched_bytes", "Bytes fetched since the agent started", ["trust_domain"], registry=registry
        )
        self._from_peers = Gauge(
            "tessera_node_agent_store_peer_bytes", "Of the bytes fetched, those from other nodes", ["trust_domain"], registry=registry
        )

    def started(self, path: StartPath, stages: tuple[StageTime, ...]) -> None:
        self._starts.labels(path.value).inc()
        for time in stages:
            self._start.labels(time.stage.value).observe(time.ms / 1e3)

    def failed(self, kind: str) -> None:
        self._failures.labels(kind).inc()

    def runtime_lost(self) -> None:
        self._lost.inc()

    def store(
        self, trust_domain: TrustDomain, used_bytes: int, pinned_bytes: int, unlinked_bytes: int, fetched_bytes: int, peer_bytes: int
    ) -> None:
        self._used.labels(trust_domain).set(used_bytes)
        self._pinned.labels(trust_domain).set(pinned_bytes)
        self._unlinked.labels(trust_domain).set(unlinked_bytes)
        self._fetched.labels(trust_domain).set(fetched_bytes)
        self._from_peers.labels(trust_domain).set(peer_bytes)

    def reclaimed(self, trust_domain: TrustDomain, reason: str, total_bytes: int) -> None:
        self._reclaimed.labels(trust_domain, reason).set(total_bytes)

    def runtimes(self, flavour: str, count: int, known: Sequence[RuntimeActivity], cpu_cores: float) -> None:
        instances = [instance for activity in known for instance in activity.instances]
        self._runtimes.labels(flavour).set(count)
        self._memory.labels(flavour, "private").set(sum(activity.private_bytes for activity in known))
        self._memory.labels(flavour, "shared").set(sum(activity.shared_bytes for activity in known))
        self._memory.labels(flavour, "proportional").set(sum(activity.proportional_bytes for activity in known))
        self._runtime_cpu.labels(flavour).set(cpu_cores)
        self._instances.labels(flavour, "parked").set(sum(instance.parked for instance in instances))
        self._instances.labels(flavour, "open").set(sum(not instance.parked for instance in instances))
        self._queue.labels(flavour).set(sum(instance.queue for instance in instances))
        self._executing.labels(flavour).set(sum(instance.executing for instance in instances))

    def machine(self, use: MachineUse, cpu_cores: float) -> None:
        self._cpu.set(cpu_cores)
        self._available.set(use.memory_available_bytes)
        self._pressure.set(use.memory_pressure)
