"""The replay of homes: by which path a call starts, and what it takes."""

from __future__ import annotations

import pytest

from benchmarks.families import siblings, structures
from benchmarks.homes import COSTS, KEEP_ALIVE_S, Outcome, replayed, transform_ms
from benchmarks.replay import BIND_MS, refetch_ms
from tessera.domain.artifact import Blob
from tessera.domain.ids import Digest, NodeId
from tessera.policy.balance.base import Homes, Model, Node
from tessera.policy.transform import registry
from tessera.policy.transform.medoids import farthest_first
from tessera.policy.transform.plans import PlanCache

GRAPHS = structures(2, seed=1)
ONE, OTHER = GRAPHS
MIB = 1 << 20
A, B, C = (
    Model(name, graph, tuple(Blob(Digest(letter), MIB) for letter in blobs))
    for name, graph, blobs in (("a", ONE, "xy"), ("b", ONE, "xz"), ("c", OTHER, "pqrs"))
)
HOME = NodeId("n")


def plans() -> PlanCache:
    cache = PlanCache(registry.make("group"), COSTS, clustering=farthest_first)
    for graph, structure in GRAPHS.items():
        cache.add(graph, structure)
    return cache


def outcome(calls: list[tuple[float, Model]], room_mib: int) -> Outcome:
    found = Outcome()
    replayed(calls, Homes({model.name: HOME for model in (A, B, C)}), [Node(HOME, room_mib * MIB)], plans(), found)
    return found


def test_what_is_there_is_not_fetched_again_and_who_is_alive_answers_at_once() -> None:
    found = outcome([(0.0, A), (1.0, B), (2.0, A), (3.0 + KEEP_ALIVE_S, A)], 10)
    assert found.took_ms == pytest.approx([BIND_MS + 2 * refetch_ms(MIB), BIND_MS + refetch_ms(MIB), 0.0, BIND_MS])
    assert found.paths == {"fetch": 2, "warm": 1, "bind": 1}
    assert found.fetched_bytes == 3 * MIB


def test_an_idle_one_becomes_its_sibling_where_that_is_cheaper_and_is_gone() -> None:
    found = outcome([(0.0, A), (100.0, B), (200.0, A), (201.0, A)], 10)
    transformed_ms = transform_ms(plans().plan(ONE, ONE))
    assert transformed_ms < BIND_MS
    assert found.took_ms == pytest.approx([BIND_MS + 2 * refetch_ms(MIB), transformed_ms + refetch_ms(MIB), transformed_ms, 0.0])
    assert found.paths == {"fetch": 2, "transform": 1, "warm": 1}


def test_room_is_made_of_what_nobody_has_mapped_first_then_of_whoever_was_called_longest_ago() -> None:
    found = outcome([(0.0, A), (1.0, B), (2.0, C), (3.0, B), (4.0, A)], 6)
    assert found.paths == {"fetch": 4, "warm": 1}
    assert found.fetched_bytes == (2 + 1 + 4 + 1) * MIB


def test_what_never_fits_is_refused() -> None:
    found = outcome([(0.0, C), (1.0, A)], 3)
    assert (found.refused, len(found.took_ms)) == (1, 1)


def test_siblings_share_a_trunk_and_nothing_else() -> None:
    found = siblings(40, GRAPHS, seed=2)
    assert found == siblings(40, GRAPHS, seed=2)
    for at, (graph, blobs) in enumerate(found):
        assert sum(blob.size_bytes for blob in blobs) == sum(tensor.size_bytes for tensor in GRAPHS[graph].tensors)
        for other, theirs in found[:at]:
            assert graph == other or not {*blobs} & {*theirs}
            assert {*blobs} != {*theirs}
