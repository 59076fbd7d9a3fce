"""The three rules of growing, rest after it, and shrinking after fifteen looks."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tessera.domain.errors import InvalidInput
from tessera.domain.ids import NodeId
from tessera.policy.nodes import registry
from tessera.policy.nodes.base import NodeUse, PoolPlan, PoolState
from tessera.policy.nodes.published import LOOKS, PublishedNodes


def use(name: str, busy: float = 0.5, **figures: int | bool) -> NodeUse:
    return NodeUse(NodeId(name), busy, **figures)  # type: ignore[arg-type]


def looks(nodes: list[NodeUse], count: int, state: PoolState | None = None) -> list[PoolPlan]:
    plans = []
    state = state or PoolState()
    for _ in range(count):
        plans.append(PublishedNodes().step(state, nodes))
        state = plans[-1].state
    return plans


@pytest.mark.parametrize(
    ("nodes", "why"),
    [
        ([use("a", 0.81), use("b", 0.9)], "all 2 nodes are busy beyond 80%"),
        ([use("a", 0.81), use("b", 0.8)], ""),
        ([use("a", interfered=1), use("b", interfered=2)], "all 2 nodes have something interfered with"),
        ([use("a", interfered=1), use("b")], ""),
        ([use(str(at), overloaded=1) for at in range(5)], "5 of 5 nodes have something overloaded"),
        ([use(str(at), overloaded=int(at > 0)) for at in range(5)], ""),
        ([use(str(at), overloaded=int(at > 0)) for at in range(6)], "5 of 6 nodes have something overloaded"),
        ([], ""),
    ],
)
def test_when_a_node_is_added(nodes: list[NodeUse], why: str) -> None:
    plan = PublishedNodes().step(PoolState(), nodes)
    assert (plan.add, plan.reason) == (bool(why), why)


def test_after_a_node_was_added_the_pool_rests() -> None:
    plans = looks([use("a", 0.9)], 2 * LOOKS + 1)
    assert [at for at, plan in enumerate(plans) if plan.add] == [0, LOOKS, 2 * LOOKS]
    assert plans[1].reason == "all 1 nodes are busy beyond 80%; 14 more looks of rest"


def test_a_node_leaves_after_fifteen_low_looks_in_a_row() -> None:
    idle = [use("a", 0.5), use("b", 0.04, removable=True)]
    plans = looks(idle, 2 * LOOKS)
    assert [at for at, plan in enumerate(plans) if plan.remove] == [LOOKS - 1, 2 * LOOKS - 1]
    assert plans[LOOKS - 1].remove == ("b",)
    assert plans[LOOKS - 1].reason == "a node is busy to 4% at 15 looks in a row"
    again = looks([use("a", 0.5)], 1, plans[LOOKS - 2].state)
    assert again[0].state.low == 0, "one look in between, and it begins anew"
    assert not any(plan.remove for plan in looks([use("a", 0.1)], LOOKS)), "only what the provider made"
    assert not any(plan.remove for plan in looks([use("a", 0.5, removable=True), use("b", 0.2, removable=True)], LOOKS))
    assert looks([use("a", 0.5, removable=True), use("b", 0.1, removable=True)], LOOKS)[-1].remove == ("b", "a"), "all low together"


def test_an_empty_node_leaves_before_one_that_holds_something_and_the_newest_first() -> None:
    nodes = [use("n-1", 0.0, removable=True), use("n-2", 0.0, removable=True), use("n-3", 0.0, instances=2, removable=True)]
    assert looks(nodes, LOOKS)[-1].remove == ("n-2", "n-1", "n-3")


@given(st.integers(0, 10**9))
def test_what_never_happens(seed: int) -> None:
    draw = random.Random(seed)
    state = PoolState()
    for _ in range(60):
        nodes = [
            use(str(at), draw.random(), overloaded=draw.randint(0, 1), interfered=draw.randint(0, 1), removable=draw.random() < 0.5)
            for at in range(draw.randint(0, 4))
        ]
        plan = PublishedNodes().step(state, nodes)
        assert plan == PublishedNodes().step(state, list(reversed(nodes)))
        assert not (plan.add and plan.remove)
        assert set(plan.remove) <= {node.node_id for node in nodes if node.removable}
        if any(node.overloaded or node.interfered for node in nodes):
            assert not plan.remove
        state = plan.state


def test_an_unknown_policy_is_refused_by_name() -> None:
    assert registry.make("none").step(PoolState(), [use("a", 1.0)]) == PoolPlan(PoolState())
    with pytest.raises(InvalidInput, match="node policy 'many': one of none, published"):
        registry.make("many")
