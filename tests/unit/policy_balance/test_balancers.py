"""Where each balancer lets models live, and what all of them promise."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tessera.domain.artifact import Blob
from tessera.domain.errors import InvalidInput
from tessera.domain.ids import Digest, NodeId
from tessera.policy.balance import registry
from tessera.policy.balance.base import Balancer, Homes, Model, Node
from tessera.policy.balance.k_medoids import KMedoidsBalancer
from tessera.policy.transform.matrix import Costs
from tessera.policy.transform.medoids import farthest_first

MIB = 1 << 20
SLOTS = 4
EVERY = pytest.mark.parametrize("name", sorted(registry.BALANCERS))


def edits(sources: Sequence[Digest], targets: Sequence[Digest]) -> Costs:
    """Graphs are numbers: those that differ by little are alike, and what grows is dearer than what shrinks."""
    found = np.subtract.outer([float(graph) for graph in targets], [float(graph) for graph in sources]).T
    return 1.0 + np.where(found > 0, 2 * found, -found)


def a_model(name: str, graph: int = 0, blobs: str = "", demand: tuple[int, ...] = (1,) * SLOTS) -> Model:
    """A blob of a MiB for each letter."""
    return Model(name, Digest(str(graph)), tuple(Blob(Digest(letter), MIB) for letter in blobs or name), demand)


def a_node(name: str, mib: int = 100, holds: str = "") -> Node:
    return Node(NodeId(name), mib * MIB, frozenset(map(Digest, holds)))


MODELS = st.lists(
    st.builds(
        a_model,
        st.text("abcdefgh", min_size=1, max_size=3),
        st.integers(0, 9),
        st.text("uvwxyz", min_size=1, max_size=4),
        st.tuples(*[st.integers(0, 5)] * SLOTS),
    ),
    unique_by=lambda model: model.name,
    max_size=12,
)
NODES = st.lists(
    st.builds(a_node, st.sampled_from("12345"), st.integers(0, 9), st.text("uvwxyz", max_size=3)),
    unique_by=lambda node: node.node_id,
    min_size=1,
)


@EVERY
@given(models=MODELS, nodes=NODES, random=st.randoms(use_true_random=False))
@settings(deadline=None, max_examples=50)
def test_every_model_has_a_home_whatever_the_order(name: str, models: list[Model], nodes: list[Node], random: st.DrawFn) -> None:
    balancer: Balancer = registry.make(name, edits)
    assert balancer.name == name
    found = balancer.assign(models, nodes)
    assert set(found.node_of) == {model.name for model in models}
    assert {*found.node_of.values(), *found.medoids} <= {node.node_id for node in nodes}
    assert all(found.node_of[medoid] == node_id for node_id, medoid in found.medoids.items())
    new = a_model("new", 3, "uvq")
    home = balancer.add(new, models, nodes, found)
    assert home in {node.node_id for node in nodes}
    for some in (models, nodes):
        random.shuffle(some)  # type: ignore[attr-defined]
    assert balancer.assign(models, nodes) == found
    assert balancer.add(new, models, nodes, found) == home


@pytest.mark.parametrize("name", sorted(set(registry.BALANCERS) - {"hash"}))
def test_rooms_are_kept_where_they_suffice(name: str) -> None:
    models = [a_model(letter, demand=(at,) * SLOTS) for at, letter in enumerate("abcdefghij")]
    nodes = [a_node("1", 2), a_node("2", 6), a_node("3", 2)]
    assert Counter(registry.make(name, edits).assign(models, nodes).node_of.values()) == {"1": 2, "2": 6, "3": 2}


@pytest.mark.parametrize("name", sorted(set(registry.BALANCERS) - {"hash"}))
def test_rooms_that_are_too_small_for_all_are_shares(name: str) -> None:
    models = [a_model(letter, demand=(at,) * SLOTS) for at, letter in enumerate("abcdefghijkl")]
    nodes = [a_node("1", 1), a_node("2", 2), a_node("3", 1)]
    found = Counter(registry.make(name, edits).assign(models, nodes).node_of.values())
    assert found == {"1": 3, "2": 6, "3": 3}


def test_hashed_models_stay_when_another_node_comes() -> None:
    balancer = registry.make("hash", edits)
    models = [a_model(f"m{at}", blobs="x") for at in range(400)]
    nodes = [a_node(each) for each in "123"]
    before, after = (balancer.assign(models, some).node_of for some in (nodes, [*nodes, a_node("4")]))
    assert all(after[name] in (home, "4") for name, home in before.items())
    assert all(80 <= count <= 120 for count in Counter(after.values()).values())


def test_the_least_loaded_has_fewest_calls() -> None:
    balancer = registry.make("least-loaded", edits)
    calls = {"a": 8, "b": 5, "c": 4, "d": 2}
    models = [a_model(name, demand=(count, 0, 0, 0)) for name, count in calls.items()]
    nodes = [a_node("1"), a_node("2")]
    found = balancer.assign(models, nodes)
    assert found.node_of == {"a": "1", "b": "2", "c": "2", "d": "1"}
    assert balancer.add(a_model("e"), models, nodes, found) == "2"


def test_shared_bytes_are_those_held_and_those_that_others_need() -> None:
    balancer = registry.make("bytes-shared", edits)
    models = [a_model("one", blobs="abcd"), a_model("two", blobs="xyz"), a_model("three", blobs="ab")]
    nodes = [a_node("1"), a_node("2", holds="bc")]
    found = balancer.assign(models, nodes)
    assert found.node_of == {"one": "2", "two": "1", "three": "2"}
    assert balancer.add(a_model("four", blobs="xb"), models, nodes, found) == "1"
    assert balancer.add(a_model("five", blobs="cba"), models, nodes, found) == "2"


DAY, NIGHT = (9, 9, 0, 0), (0, 0, 9, 9)


def test_alike_structures_share_a_node_where_demand_does_not_matter() -> None:
    models = [a_model(f"{graph}{demand[0]}", graph, demand=demand) for graph in (0, 1, 20, 21) for demand in (DAY, NIGHT)]
    found = KMedoidsBalancer(edits, 1.0, 0.0).assign(models, [a_node("1"), a_node("2")]).node_of
    assert len({found[name] for name in ("00", "09", "10", "19")}) == len({found[name] for name in ("200", "209", "210", "219")}) == 1
    assert found["00"] != found["200"]


def test_those_asked_for_together_are_kept_apart_where_structure_does_not_matter() -> None:
    models = [a_model(name, demand=demand) for name, demand in (("a", DAY), ("b", DAY), ("c", NIGHT), ("d", NIGHT))]
    found = KMedoidsBalancer(edits, 0.0, 1.0).assign(models, [a_node("1", 2), a_node("2", 2)]).node_of
    assert found["a"] != found["b"]
    assert found["c"] != found["d"]


def test_both_weights_count() -> None:
    """A newcomer is alike one medoid, and asked for when the other is not: which wins is a matter of weights."""
    models = [a_model("a", 0, demand=DAY), a_model("b", 4, demand=NIGHT), a_model("far", 40)]
    homes = Homes({"a": NodeId("1"), "b": NodeId("2")}, {NodeId("1"): "a", NodeId("2"): "b"})
    nodes = [a_node("1"), a_node("2")]
    new = a_model("new", 1, demand=DAY)
    assert KMedoidsBalancer(edits, 1.0, 0.1).add(new, models, nodes, homes) == "1"
    assert KMedoidsBalancer(edits, 0.1, 1.0).add(new, models, nodes, homes) == "2"


def test_a_newcomer_goes_to_the_nearest_medoid_that_has_room() -> None:
    models = [a_model("a", 0), a_model("b", 20)]
    homes = Homes({"a": NodeId("1"), "b": NodeId("2")}, {NodeId("1"): "a", NodeId("2"): "b"})
    new = a_model("new", 1, "xy")
    balancer = registry.make("k-medoids", edits)
    assert balancer.add(new, models, [a_node("1", 3), a_node("2", 9)], homes) == "1"
    assert balancer.add(new, models, [a_node("1", 2), a_node("2", 9)], homes) == "2"
    assert balancer.add(new, models, [a_node("2", 9), a_node("3", 9)], homes) == "2"
    assert balancer.add(new, [], [a_node("4", 9)], homes) == "4"


def test_medoids_live_where_their_bytes_are() -> None:
    models = [a_model("a", 0), a_model("b", 20)]
    nodes = [a_node("1", holds="b"), a_node("2", holds="a"), a_node("3")]
    assert registry.make("k-medoids", edits).assign(models, nodes).node_of == {"a": "2", "b": "1"}


def test_many_models_are_assigned_to_medoids_of_a_sample() -> None:
    models = [a_model(f"m{at}", 20 * (at % 2), blobs="x", demand=DAY) for at in range(200)]
    nodes = [a_node("1"), a_node("2")]
    for clustering in (farthest_first, KMedoidsBalancer(edits).clustering):
        found = KMedoidsBalancer(edits, sample=20, clustering=clustering).assign(models, nodes).node_of
        assert len({found[f"m{at}"] for at in range(0, 200, 2)}) == len({found[f"m{at}"] for at in range(1, 200, 2)}) == 1
        assert found["m0"] != found["m1"]


@EVERY
@pytest.mark.parametrize(
    ("models", "nodes", "words"),
    [
        ([], [], "nodes.*0.*at least 1"),
        ([a_model("a"), a_model("a")], [a_node("1")], "models.*a.*named once"),
        ([], [a_node("1"), a_node("1")], "nodes.*1.*named once"),
        ([a_model("a"), a_model("b", demand=(1,))], [a_node("1")], "demand of b.*1.*as many slots as that of a: 4"),
    ],
)
def test_what_makes_no_sense_is_refused(name: str, models: list[Model], nodes: list[Node], words: str) -> None:
    with pytest.raises(InvalidInput, match=words):
        registry.make(name, edits).assign(models, nodes)


def test_a_newcomer_with_another_history_is_refused() -> None:
    with pytest.raises(InvalidInput, match=r"demand of a.*4.*as many slots as that of new: 1"):
        registry.make("k-medoids", edits).add(a_model("new", demand=(1,)), [a_model("a")], [a_node("1")], Homes({}))


def test_balancers_are_chosen_by_name() -> None:
    with pytest.raises(InvalidInput, match="one of bytes-shared, hash, k-medoids, least-loaded"):
        registry.make("best", edits)
