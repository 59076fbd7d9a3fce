"""Plans between many graphs, of which few are ever made: keyed by graph, so that all models fine-tuned from one architecture share them.

Optimus plans a new model against every other one. Here a graph is planned, by the group planner and only for what it
costs, to and from a few *landmarks*: the medoids of the graphs, and the empty graph. Of any pair there is an *estimate* from those, and the
whole plan is made when it is asked for. Weights all count as new: which of them an instance has is known where it runs.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from tessera.domain.errors import InvalidInput, NotFound
from tessera.domain.ids import Digest
from tessera.domain.transformation import TransformationPlan
from tessera.policy.transform.among import group_costs
from tessera.policy.transform.base import Planner
from tessera.policy.transform.costs import MetaCosts
from tessera.policy.transform.matrix import Costs
from tessera.policy.transform.medoids import Clustering, faster_pam
from tessera.policy.transform.plan import plan
from tessera.policy.transform.structure import Program, Structure

MEDOIDS = 16
SAMPLE = 512
"""Graphs among which medoids are sought: their distances are 2 MB and take a second."""
WHOLE_PLANS = 256
EMPTY = Structure((), (), (), ())


class Ways(NamedTuple):
    """Of a graph: what plans to each landmark and since each landmark cost."""

    to: Costs
    since: Costs


@dataclass(frozen=True, slots=True)
class Landmarks:
    """`medoids`: all but the empty graph, which comes first in `structures`. `twice`: what a way through each counts twice, which is
    replacing all of its own weights. `ways`: of the graphs that were there; `of`: how many they were."""

    medoids: tuple[Digest, ...]
    structures: tuple[Structure, ...]
    twice: Costs
    ways: Mapping[Digest, Ways]
    of: int


class PlanCache:
    """Not for several threads, but for `clustered`, which may run beside everything else."""

    def __init__(
        self, planner: Planner, costs: MetaCosts, *, medoids: int = MEDOIDS, plans: int = WHOLE_PLANS, clustering: Clustering = faster_pam
    ) -> None:
        """`planner` makes whole plans, of which the `plans` used last are kept. Raises: InvalidInput."""
        for field, value in (("medoids", medoids), ("plans", plans)):
            if value < 1:
                raise InvalidInput(field, value, "at least 1")
        self._planner, self._costs, self._clustering = planner, costs, clustering
        self._medoids, self._most_plans = medoids, plans
        self._structures: dict[Digest, Structure] = {}
        self._plans: OrderedDict[tuple[Digest, Digest], TransformationPlan] = OrderedDict()
        self._landmarks = self._planned({}, {})
        self._ways: dict[Digest, Ways] = {}

    def __len__(self) -> int:
        return len(self._structures)

    def __contains__(self, graph: Digest) -> bool:
        return graph in self._structures

    @property
    def medoids(self) -> tuple[Digest, ...]:
        """Those that estimates go through now; some may have been removed meanwhile."""
        return self._landmarks.medoids

    @property
    def due(self) -> bool:
        """Whether there are twice as many graphs as when medoids were sought; then somebody should `adopt(clustered())`."""
        return len(self._structures) >= max(2 * self._landmarks.of, 1)

    def add(self, graph: Digest, structure: Structure) -> None:
        """Plans it to and from the landmarks, unless it is known."""
        if graph not in self._structures:
            self._structures[graph] = structure
            self._ways |= self._between({graph: structure}, self._landmarks.structures)

    def remove(self, graph: Digest) -> None:
        """No model has it any more. Raises: NotFound."""
        self.structure(graph)
        del self._structures[graph], self._ways[graph]
        for pair in [pair for pair in self._plans if graph in pair]:
            del self._plans[pair]

    def structure(self, graph: Digest) -> Structure:
        """Raises: NotFound: the graph was never added."""
        found = self._structures.get(graph)
        if found is None:
            raise NotFound(f"graph {graph[:12]} is none that plans are kept of")
        return found

    def clustered(self) -> Landmarks:
        """Medoids of the graphs as they are now (of a sample, where they are many), and what all plans to and from them cost.

        Raises: FailedPrecondition, as the clustering.
        """
        structures = dict(self._structures)
        # Digests are as good as random: the first ones in their order are a sample.
        sample = sorted(structures)[:SAMPLE]
        chosen = sample
        if len(sample) > self._medoids:
            some = [structures[graph] for graph in sample]
            one_way = group_costs(some, some, self._costs)
            distances = (one_way + one_way.T) / 2
            np.fill_diagonal(distances, 0.0)
            chosen = [sample[at] for at in self._clustering(distances, self._medoids)]
        return self._planned(structures, {graph: structures[graph] for graph in chosen})

    def adopt(self, landmarks: Landmarks) -> None:
        """Estimates by these from now on. Graphs that came in the meantime are planned, those that went are forgotten."""
        new = {graph: structure for graph, structure in self._structures.items() if graph not in landmarks.ways}
        self._ways = {graph: ways for graph, ways in landmarks.ways.items() if graph in self._structures}
        self._ways |= self._between(new, landmarks.structures)
        self._landmarks = landmarks

    def estimate_ms(self, source: Digest, target: Digest) -> float:
        """As `estimates_ms`, of one pair."""
        return float(self.estimates_ms([source], [target])[0, 0])

    def estimates_ms(self, sources: Sequence[Digest], targets: Sequence[Digest]) -> Costs:
        """Of plans, a row for each source: the cheapest way through a landmark. Two plans in a row are a plan, so that the optimum costs no
        more (where a MiB costs the same in every step and Replace has the least fixed part); where one of the two is a medoid, neither does
        the group plan cost less than this.

        Raises: NotFound: a graph was never added.
        """
        found = np.full((len(sources), len(targets)), np.inf)
        if found.size:
            for graph in {*sources, *targets}:
                self.structure(graph)
            to = np.array([self._ways[graph].to for graph in sources])
            since = np.array([self._ways[graph].since for graph in targets]) - self._landmarks.twice
            for at in range(len(self._landmarks.structures)):
                np.minimum(found, np.add.outer(to[:, at], since[:, at]), out=found)
        return found

    def plan(self, source: Digest, target: Digest) -> TransformationPlan:
        """The whole plan, made now unless it is kept. Raises: NotFound: a graph was never added."""
        found = self._plans.get((source, target))
        if found is None:
            found = plan(Program(self.structure(source)), Program(self.structure(target)), self._planner, self._costs)
            self._plans[source, target] = found
            if len(self._plans) > self._most_plans:
                self._plans.popitem(last=False)
        self._plans.move_to_end((source, target))
        return found

    def _planned(self, structures: Mapping[Digest, Structure], medoids: Mapping[Digest, Structure]) -> Landmarks:
        chosen = (EMPTY, *medoids.values())
        twice = group_costs(chosen, chosen, self._costs).diagonal()
        return Landmarks(tuple(medoids), chosen, twice, self._between(structures, chosen), len(structures))

    def _between(self, structures: Mapping[Digest, Structure], landmarks: Sequence[Structure]) -> dict[Digest, Ways]:
        some = list(structures.values())
        to, since = group_costs(some, landmarks, self._costs), group_costs(landmarks, some, self._costs).T
        # Copies: a view would keep the whole of what it is a row of.
        return {graph: Ways(to[at].copy(), since[at].copy()) for at, graph in enumerate(structures)}
