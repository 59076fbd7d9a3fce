"""Where models live, as a balancer sees it: homes for all when nodes come or go, when there are twice as many models or graphs that are
read, and every so often; in between one for each model that comes. A model is a version here: all variants of it that are ready live
together, and its graph is that of the one which can be transformed.

What it costs is paid in a thread, and only while this scheduler leads. Homes of a moment ago serve until there are others.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import dataclass, replace

from tessera.clock import Clock
from tessera.domain.artifact import Blob
from tessera.domain.errors import TesseraError
from tessera.domain.ids import Digest, NodeId, Term, TrustDomain, VariantKey
from tessera.domain.records import VariantRecord, VariantState
from tessera.policy.balance.base import Balancer, Homes, Model, Node
from tessera.policy.view import NodeCondition
from tessera.scheduler.core.cluster import Cluster
from tessera.scheduler.core.usage import NO_DEMAND, Usage
from tessera.scheduler.loops.leading import Leading
from tessera.scheduler.ports import ArtifactBlobs, Records
from tessera.telemetry import get_logger

log = get_logger("tessera.scheduler")

LOOK_S = 1.0
ADDED_AT_ONCE = 16
"""Models that come between two looks and are given homes one by one; more are as good a reason to look at all."""


Known = tuple[VariantRecord, tuple[Blob, ...] | None]
"""A variant, and its blobs where their list is known."""


@dataclass(frozen=True, slots=True)
class Balanced:
    """Of a trust domain: homes of `models`, by name, and for whom and when those of all of them were found. `graphs`: so many were read."""

    homes: Homes
    models: Mapping[str, Model]
    nodes: frozenset[NodeId]
    term: Term
    at_s: float
    of: int
    graphs: int

    def holds(self, term: Term, nodes: frozenset[NodeId], models: Set[str], graphs: int, since_s: float) -> bool:
        """Whether homes need not be found anew for all of these `models`."""
        few = len(models - self.models.keys()) <= ADDED_AT_ONCE and len(models) < 2 * self.of and graphs < max(2 * self.graphs, 1)
        return few and (self.term, self.nodes) == (term, nodes) and self.at_s > since_s


class Balancing:
    def __init__(
        self,
        clock: Clock,
        leading: Leading,
        cluster: Cluster,
        records: Records,
        blobs: ArtifactBlobs,
        balancer: Balancer,
        graphs: Callable[[], int],
        domains: Sequence[TrustDomain],
        period_s: float,
    ) -> None:
        """`graphs`: how many the balancer knows what plans cost of; a new leader reads them one by one. `period_s`: after which everybody's
        home is found anew, with the demand since."""
        self._clock = clock
        self._leading = leading
        self._cluster = cluster
        self._records = records
        self._blobs = blobs
        self._balancer = balancer
        self._graphs = graphs
        self._domains = domains
        self._period_s = period_s
        self._balanced: dict[TrustDomain, Balanced] = {}

    def home(self, variant: VariantKey) -> NodeId | None:
        found = self._balanced.get(variant.trust_domain)
        return found.homes.node_of.get(str(variant.version_key)) if found is not None else None

    async def run(self) -> None:
        while True:
            await self._leading.until_ours()
            for domain in self._domains:
                try:
                    await self._look(domain, self._leading.require().term)
                except TesseraError as error:
                    log.warning("homes stay as they were", trust_domain=domain, balancer=self._balancer.name, reason=str(error))
            await self._clock.sleep(LOOK_S)

    async def _look(self, domain: TrustDomain, term: Term) -> None:
        nodes, ready = self._nodes(domain), self._ready(domain)
        if not nodes or not ready:
            return
        names, now_s = frozenset(node.node_id for node in nodes), self._clock.monotonic_s()
        known, usage, graphs = self._balanced.get(domain), self._cluster.usage, self._graphs()
        if known is None or not known.holds(term, names, ready.keys(), graphs, now_s - self._period_s):
            models, homes = await asyncio.to_thread(
                self._assigned, {name: self._known(each) for name, each in ready.items()}, nodes, usage, now_s
            )
            self._balanced[domain] = Balanced(homes, models, names, term, now_s, len(models), graphs)
            log.info("homes found", trust_domain=domain, balancer=self._balancer.name, models=len(models), nodes=len(nodes))
            return
        for name in sorted(ready.keys() - known.models.keys()):
            model = _model(name, self._known(ready[name]), usage, known.at_s)
            home = await asyncio.to_thread(self._balancer.add, model, tuple(known.models.values()), nodes, known.homes)
            homes = replace(known.homes, node_of={**known.homes.node_of, name: home})
            known = self._balanced[domain] = replace(known, homes=homes, models={**known.models, name: model})

    def _assigned(
        self, some: Mapping[str, Sequence[Known]], nodes: Sequence[Node], usage: Usage, now_s: float
    ) -> tuple[dict[str, Model], Homes]:
        models = {name: _model(name, variants, usage, now_s) for name, variants in some.items()}
        return models, self._balancer.assign(tuple(models.values()), nodes)

    def _ready(self, domain: TrustDomain) -> dict[str, list[VariantRecord]]:
        """By version. What has no tensors lives everywhere."""
        found: dict[str, list[VariantRecord]] = {}
        for each in self._records.variants():
            if each.key.trust_domain == domain and each.state is VariantState.READY and each.tensor_bytes:
                found.setdefault(str(each.key.version_key), []).append(each)
        return found

    def _nodes(self, domain: TrustDomain) -> tuple[Node, ...]:
        """Also those that are suspect: what lives there still answers."""
        views = [node for node in self._cluster.views(self._records.nodes(), {}) if node.condition is not NodeCondition.SILENT]
        stores = [(node.node_id, node.stores[domain]) for node in views if domain in node.stores]
        return tuple(Node(node_id, store.budget_bytes, store.digests) for node_id, store in stores)

    def _known(self, variants: Sequence[VariantRecord]) -> list[Known]:
        return [(each, self._blobs.blobs(each.artifact) if each.artifact else None) for each in variants]


def _model(name: str, variants: Sequence[Known], usage: Usage, now_s: float) -> Model:
    """A variant without a list of its blobs has one of its size."""
    record, _ = min(variants, key=lambda known: (known[0].backend != "aten", known[0].key))
    blobs: dict[Digest, Blob] = {}
    for each, some in variants:
        blobs |= {blob.digest: blob for blob in some or (Blob(each.artifact or Digest(str(each.key)), each.tensor_bytes),)}
    used = [usage.variants[each.key].demand(now_s) for each, _ in variants if each.key in usage.variants]
    return Model(name, record.graph or Digest(name), tuple(blobs.values()), tuple(map(sum, zip(NO_DEMAND, *used, strict=True))))
