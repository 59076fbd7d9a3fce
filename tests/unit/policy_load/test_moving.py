"""Where load goes that is interfered with."""

from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from tessera.domain.ids import BuildClass, Generation, InstanceId, NodeId, ProfileClass
from tessera.domain.instance import InstanceState
from tessera.policy.load.moving import Interfered, propose_moves
from tessera.policy.view import Candidate, InstanceView, NodeCondition, NodeView, StoreView
from tessera.testing.builders import BUILD_CLASS, a_variant, a_variant_key

KEY = a_variant_key(variant="ort-fp32")
ORT = Candidate(a_variant(variant="ort-fp32"), ())
ATEN = Candidate(a_variant(variant="aten-fp32"), ())


def view(name: str, variant: Any = KEY) -> InstanceView:
    return InstanceView(InstanceId(name), variant, Generation(1), InstanceState.READY, 0.0)


def node(name: str, busy: float = 0.0, *instances: InstanceView, **changes: Any) -> NodeView:
    values: dict[str, Any] = {
        "stores": {KEY.trust_domain: StoreView(1 << 30)}, "flavours": ("ort", "aten"), "cpu_count": 4, "cpu_cores": 4 * busy,
        "instances": instances, **changes,
    }  # fmt: skip
    return NodeView(NodeId(name), values.pop("build_class", BUILD_CLASS), ProfileClass("p"), **values)


def slow(name: str = "i-1", at: str = "n1", *candidates: Candidate, variant: Any = KEY) -> Interfered:
    return Interfered(NodeId(at), view(name, variant), candidates or (ORT,), "ten times slower")


def targets(*found: Interfered, nodes: list[NodeView], **more: Any) -> list[tuple[str, str, str]]:
    moves = propose_moves(found, nodes, **more)
    return [(str(move.instance_id), str(move.variant.variant), str(move.target)) for move in moves]


def test_the_least_busy_node_that_may_take_it() -> None:
    nodes = [node("n1", 0.0, view("i-1")), node("n2", 0.5), node("n3", 0.2), node("n4", 0.0, build_class=BuildClass("other"))]
    assert targets(slow(), nodes=nodes) == [("i-1", "ort-fp32", "n3")]
    (move,) = propose_moves([slow()], nodes)
    assert move.reason == "ten times slower; n3 is busy to 20%"


def test_another_variant_where_its_own_cannot_go() -> None:
    nodes = [node("n1", 0.0, view("i-1")), node("n4", 0.0, build_class=BuildClass("other"))]
    assert targets(slow(), nodes=nodes) == []
    assert targets(slow("i-1", "n1", ORT, ATEN), nodes=nodes) == [("i-1", "aten-fp32", "n4")]


def test_nothing_moves_to_a_node_that_is_troubled_or_not_usable() -> None:
    here = node("n1", 0.0, view("i-1"))
    assert targets(slow(), nodes=[here, node("n2", condition=NodeCondition.SUSPECT)]) == []
    assert targets(slow(), nodes=[here, node("n2")], troubled={NodeId("n2")}) == []
    assert targets(slow(), nodes=[here]) == []


def test_load_that_has_somewhere_to_go_already_moves_no_instance() -> None:
    nodes = [node("n1", 0.0, view("i-1")), node("n2", 0.0, view("i-2")), node("n3")]
    assert targets(slow(), nodes=nodes) == []
    assert targets(slow(), slow("i-2", "n2"), nodes=nodes) == [("i-1", "ort-fp32", "n3")], "both are slow: one moves"


def test_a_node_takes_one_at_a_time() -> None:
    other = a_variant_key(variant="aten-fp32")
    nodes = [node("n1", 0.0, view("i-1"), view("i-2", other)), node("n2")]
    assert targets(slow(), slow("i-2", "n1", ATEN, variant=other), nodes=nodes) == [("i-1", "ort-fp32", "n2")]


@given(st.lists(st.tuples(st.integers(0, 5), st.floats(0, 2), st.booleans()), max_size=12), st.data())
def test_a_move_always_leads_to_another_node_with_room(shape: list[tuple[int, float, bool]], data: st.DataObject) -> None:
    nodes = [
        node(f"n{at}", busy, *(view(f"i-{at}-{number}") for number in range(count)), flavours=("ort",) if ort else ("aten",))
        for at, (count, busy, ort) in enumerate(shape)
    ]
    ids = [(one.instance_id, found.node_id) for found in nodes for one in found.instances]
    chosen = data.draw(st.lists(st.sampled_from(ids), unique=True)) if ids else []
    moves = propose_moves([slow(name, at) for name, at in chosen], nodes)
    assert moves == propose_moves([slow(name, at) for name, at in reversed(chosen)], list(reversed(nodes)))
    by_id = {found.node_id: found for found in nodes}
    for move in moves:
        assert (move.instance_id, move.node_id) in chosen
        assert move.target not in {at for _, at in chosen}
        assert "ort" in by_id[move.target].flavours
    assert len({move.target for move in moves}) == len(moves) <= 1, "one variant: one successor"
