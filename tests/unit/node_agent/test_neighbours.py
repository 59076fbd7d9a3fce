"""Who is asked for bytes when nobody said who has them."""

from __future__ import annotations

from tessera.domain.ids import NodeId
from tessera.domain.source import Source
from tessera.node_agent.core.neighbours import neighbours_of
from tessera.testing.builders import a_node


def test_all_others_that_give_blobs_beginning_behind_the_node_itself() -> None:
    nodes = [a_node(name, peer_address=f"{name}:1") for name in ("n4", "n1", "n3", "n2")]
    nodes.append(a_node("n5", peer_address=""))

    def names(own: str) -> list[str]:
        return [source.node_id for source in neighbours_of(NodeId(own), nodes)]

    assert names("n2") == ["n3", "n4", "n1"]
    assert names("n4") == ["n1", "n2", "n3"]
    assert names("n9") == ["n1", "n2", "n3", "n4"]
    assert neighbours_of(NodeId("n1"), nodes[:1]) == (Source(NodeId("n4"), "n4:1"),)
    assert neighbours_of(NodeId("n1"), []) == ()
