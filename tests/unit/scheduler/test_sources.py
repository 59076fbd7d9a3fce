"""Which nodes a start is told to take its bytes from."""

from __future__ import annotations

from tessera.domain.artifact import Blob
from tessera.domain.ids import Digest, NodeId
from tessera.domain.source import Source
from tessera.scheduler.core.sources import MAX_SOURCES, Holding, sources_of

ARTIFACT, LARGE, SMALL = (Digest(f"{number:064x}") for number in (1, 2, 3))
BLOBS = (Blob(ARTIFACT, 10), Blob(LARGE, 1000), Blob(SMALL, 100))


def holding(name: str, *digests: Digest, load: int = 0, address: str | None = None) -> Holding:
    return Holding(NodeId(name), f"{name}:8040" if address is None else address, frozenset(digests), load)


def names(sources: tuple[Source, ...]) -> list[str]:
    return [source.node_id for source in sources]


def told(*holdings: Holding, blobs: tuple[Blob, ...] | None = BLOBS) -> list[str]:
    return names(sources_of(ARTIFACT, blobs, NodeId("target"), holdings))


def test_who_has_most_of_what_is_missing_comes_first() -> None:
    assert told(holding("a", SMALL), holding("b", LARGE, SMALL), holding("c", LARGE), holding("d")) == ["b", "c", "a"]


def test_what_the_node_has_already_does_not_count() -> None:
    here = holding("target", LARGE)
    assert told(here, holding("a", LARGE, ARTIFACT), holding("b", SMALL)) == ["b", "a"]
    assert told(holding("target", ARTIFACT, LARGE, SMALL), holding("a", LARGE)) == []


def test_of_equal_ones_the_least_loaded_comes_first_then_the_order_of_names() -> None:
    both = (LARGE, SMALL)
    assert told(holding("c", *both, load=1), holding("b", *both, load=2), holding("a", *both, load=1)) == ["a", "c", "b"]


def test_a_node_is_not_its_own_source_and_one_without_an_address_is_none() -> None:
    assert told(holding("target", SMALL), holding("a", LARGE, address="")) == []


def test_there_are_so_many_at_most() -> None:
    assert len(told(*(holding(f"n{number}", LARGE) for number in range(20)))) == MAX_SOURCES


def test_where_the_list_is_not_known_who_has_the_artifact_is_taken() -> None:
    assert told(holding("a", LARGE), holding("b", ARTIFACT), blobs=None) == ["b"]


def test_sources_have_their_address() -> None:
    assert sources_of(ARTIFACT, BLOBS, NodeId("target"), [holding("a", LARGE)]) == (Source(NodeId("a"), "a:8040"),)
