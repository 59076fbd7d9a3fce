"""Models of similar structure and complementary demand share a node (Optimus, EuroSys'24): k-medoids, k the nodes.

d(A, B) = edit_weight * edit(A, B) / max_edit + demand_weight * (1 + correlation) / 2. The published distance combines the same two; its
weights and its normalisation are not known, these are ours. A model goes to the nearest medoid whose node has room, those that are nearest
to theirs first. Ties end in names.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from tessera.domain.ids import Digest, NodeId
from tessera.policy.balance.base import Homes, Model, Node, check
from tessera.policy.balance.filling import Filling, filling_of
from tessera.policy.balance.hashed import hashed
from tessera.policy.transform.matrix import Costs
from tessera.policy.transform.medoids import Clustering, faster_pam

Edits = Callable[[Sequence[Digest], Sequence[Digest]], Costs]
"""What becoming one another costs, a row for each source (`PlanCache.estimates_ms`)."""

ASSUMED_EDIT_WEIGHT = ASSUMED_DEMAND_WEIGHT = 0.5
SAMPLE = 1024
"""Models among which medoids are sought: their distances are 8 MB."""


@dataclass(frozen=True, slots=True)
class KMedoidsBalancer:
    """Raises from `assign`: FailedPrecondition, as the clustering."""

    edits: Edits
    edit_weight: float = ASSUMED_EDIT_WEIGHT
    demand_weight: float = ASSUMED_DEMAND_WEIGHT
    sample: int = SAMPLE
    clustering: Clustering = faster_pam

    @property
    def name(self) -> str:
        return "k-medoids"

    def assign(self, models: Sequence[Model], nodes: Sequence[Node]) -> Homes:
        check(models, nodes)
        if not models:
            return Homes({})
        sample = sorted(models, key=lambda model: (hashed(model.name), model.name))[: self.sample]
        most_ms = self._most_ms(sample)
        distances = self._distances(sample, sample, most_ms)
        distances = (distances + distances.T) / 2
        np.fill_diagonal(distances, 0.0)
        medoids = [sample[at] for at in self.clustering(distances, min(len(nodes), len(sample)))]
        homes = _homes_of(medoids, nodes)
        filling, found = Filling(nodes, models), dict[str, NodeId]()
        for medoid, home in zip(medoids, homes, strict=True):
            filling.put(home, medoid)
            found[medoid.name] = home.node_id
        others = sorted((model for model in models if model.name not in found), key=lambda model: model.name)
        away = self._distances(others, medoids, most_ms)
        for at in np.argsort(away.min(axis=1), kind="stable"):
            home = _nearest(others[at], filling, homes, away[at])
            filling.put(home, others[at])
            found[others[at].name] = home.node_id
        return Homes(found, {home.node_id: medoid.name for home, medoid in zip(homes, medoids, strict=True)})

    def add(self, model: Model, models: Sequence[Model], nodes: Sequence[Node], homes: Homes) -> NodeId:
        check((model, *models), nodes)
        by_name = {other.name: other for other in models}
        standing = sorted([node for node in nodes if homes.medoids.get(node.node_id) in by_name], key=lambda node: node.node_id)
        medoids = [by_name[homes.medoids[node.node_id]] for node in standing]
        away = self._distances([model], medoids, self._most_ms([model, *medoids]))[0]
        return _nearest(model, filling_of(nodes, models, homes.node_of, model), standing, away).node_id

    def _most_ms(self, models: Sequence[Model]) -> float:
        graphs = list(dict.fromkeys(model.graph for model in models))
        return float(self.edits(graphs, graphs).max())

    def _distances(self, some: Sequence[Model], others: Sequence[Model], most_ms: float) -> Costs:
        """An edit is the mean of both ways; one that is beyond `most_ms` is as far as that."""
        here, rows = _numbered(some)
        there, columns = _numbered(others)
        edits = (self.edits(here, there) + self.edits(there, here).T) / 2
        edits = np.minimum(edits / most_ms, 1.0) if most_ms else edits
        return self.edit_weight * edits[np.ix_(rows, columns)] + self.demand_weight * (1 + _correlations(some, others)) / 2


def _numbered(models: Sequence[Model]) -> tuple[list[Digest], list[int]]:
    numbers: dict[Digest, int] = {}
    places = [numbers.setdefault(model.graph, len(numbers)) for model in models]
    return list(numbers), places


def _correlations(some: Sequence[Model], others: Sequence[Model]) -> Costs:
    """Of the demand, each with each. A history that never changes has none with any."""
    found = np.zeros((len(some), len(others)))
    if found.size:
        found = _standardised(some) @ _standardised(others).T
    return found


def _standardised(models: Sequence[Model]) -> Costs:
    """A row each, so that products are correlations."""
    demand = np.array([model.demand for model in models], dtype=float)
    demand -= demand.sum(axis=1, keepdims=True) / max(1, demand.shape[1])
    norms = np.linalg.norm(demand, axis=1, keepdims=True)
    demand /= np.where(norms > 0, norms, 1.0)
    return demand


def _homes_of(medoids: Sequence[Model], nodes: Sequence[Node]) -> list[Node]:
    """Of each medoid, a node of its own: where most of its bytes are, whoever has most first."""
    held = {
        (medoid.name, node.node_id): sum(blob.size_bytes for blob in medoid.blobs if blob.digest in node.digests)
        for medoid in medoids
        for node in nodes
    }
    by_id = {node.node_id: node for node in nodes}
    found: dict[str, Node] = {}
    for name, node_id in sorted(held, key=lambda pair: (-held[pair], pair)):
        if name not in found and node_id in by_id:
            found[name] = by_id.pop(node_id)
    return [found[medoid.name] for medoid in medoids]


def _nearest(model: Model, filling: Filling, homes: Sequence[Node], away: Costs) -> Node:
    """Nodes without a medoid are farther than all others."""
    far = {home.node_id: float(distance) for home, distance in zip(homes, away, strict=True)}
    return filling.first_with_room(model, lambda node: far.get(node.node_id, np.inf))
