"""Fetches of which nobody said who has the bytes: the neighbours are asked, over real sockets."""

from __future__ import annotations

import socket
import threading
from collections import Counter
from typing import Any

import pytest

from tessera.clock import SystemClock
from tessera.domain.artifact import Artifact, Blob
from tessera.domain.errors import Cancelled, NotFound
from tessera.domain.ids import Digest, NodeId, TrustDomain
from tessera.domain.signature import Signature
from tessera.domain.source import Source
from tessera.peer import Peers, PeerServer, PeerSettings, ServerLimits
from tessera.peer.codec import Ask, Wish
from tessera.peer.connection import PeerBusy, PeerConnection, PeerLacks, StreamLimits
from tessera.repository.artifacts import store_artifact, store_tensors
from tessera.repository.fetch import Fetcher
from tessera.testing.blobs import blob_of, put

LIMITS = StreamLimits(2.0, 1.0)


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, Wish]]:
    """Who was asked, and for what: in the order in which they were."""
    seen: list[tuple[str, Wish]] = []
    answer = PeerServer._answer

    def noted(server: PeerServer, connection: socket.socket, store: Any, ask: Ask) -> None:
        seen.append((server._node_id, ask.wish))
        answer(server, connection, store, ask)

    monkeypatch.setattr(PeerServer, "_answer", noted)
    return seen


def peers_of(nodes: Any, **settings: Any) -> Peers:
    return Peers(NodeId("taker"), TrustDomain("lab"), SystemClock(), PeerSettings(limits=LIMITS, **settings))


def artifact_in(nodes: Any, tensors: int = 6) -> Digest:
    rows = [(f"w{n}", "UINT8", (200_000,), blob_of(n, 200_000)) for n in range(tensors)]
    stored = store_tensors(nodes.repository, rows)
    return store_artifact(nodes.repository, Artifact("aten", "fp32", "", None, stored.pack, stored.tensors, Signature((), ()), None, 8))


def cut_off(nodes: Any) -> None:
    for digest, _ in list(nodes.repository.digests()):
        nodes.repository.delete(digest)


def test_without_a_repository_all_comes_from_the_neighbour_that_has_it_and_each_other_hears_one_question(
    nodes: Any, asked: list[tuple[str, Wish]]
) -> None:
    artifact = artifact_in(nodes)
    (_, one), (has, two), (_, three) = nodes.giver(), nodes.giver(), nodes.giver()
    nodes.fetcher(store=has).fetch_artifact(artifact, "start-0")
    cut_off(nodes)
    _, fetched = nodes.fetcher().fetch_artifact(artifact, "start-1", neighbours=[one, two, three, Source(NodeId("taker"), "127.0.0.1:1")])
    assert fetched.bytes_from_peers == fetched.bytes_fetched == sum(has.digests().values())
    assert nodes.store.digests() == has.digests()
    counts = Counter(node for node, _ in asked)
    assert (counts["giver-0"], counts["giver-2"]) == (1, 1)
    asked.clear()
    nodes.fetcher().fetch_artifact(artifact, "start-2", neighbours=[one, two, three])
    assert asked == [], "all of it is here"


def test_an_artifact_that_is_here_is_asked_about_when_its_blobs_are_not(nodes: Any, asked: list[tuple[str, Wish]]) -> None:
    artifact = artifact_in(nodes)
    (_, one), (has, two) = nodes.giver(), nodes.giver()
    nodes.fetcher(store=has).fetch_artifact(artifact, "start-0")
    put(nodes.store, nodes.repository.read(artifact))
    cut_off(nodes)
    _, fetched = nodes.fetcher().fetch_artifact(artifact, "start-1", neighbours=[one, two])
    assert fetched.bytes_from_peers == sum(has.digests().values()) - has.digests()[artifact]
    assert [node for node, _ in asked].count("giver-0") == 1


def test_blobs_that_no_artifact_names_are_found_by_the_largest_that_is_missing(nodes: Any) -> None:
    (other, one), (has, two) = nodes.giver(), nodes.giver()
    blobs = [Blob(put(has, blob_of(seed, size)), size) for seed, size in enumerate((70_000, 900_000, 5000))]
    put(nodes.store, blob_of(1, 900_000))
    put(other, blob_of(2, 5000))
    fetched = nodes.fetcher().fetch(blobs, "start-1", neighbours=[one, two])
    assert fetched.bytes_from_peers == fetched.bytes_fetched == 75_000
    assert nodes.sent(lambda counts: counts == [0, 75_000])


def test_neighbours_that_are_gone_or_silent_are_passed_over_and_suspected(nodes: Any) -> None:
    store, honest = nodes.giver()
    blob = Blob(put(store, blob_of(0, 5000)), 5000)
    hold = threading.Event()
    silent = nodes.hostile(lambda connection, ask: hold.wait(30))
    gone = Source(NodeId("gone"), "127.0.0.1:1")
    fetched = nodes.fetcher().fetch([blob], "start-1", neighbours=[silent, gone, honest])
    hold.set()
    assert fetched.bytes_from_peers == 5000
    assert [nodes.peers.suspects(each) for each in (silent, gone, honest)] == [True, True, False]


def test_what_no_neighbour_has_comes_from_the_repository(nodes: Any) -> None:
    _, source = nodes.giver()
    artifact = artifact_in(nodes)
    _, fetched = nodes.fetcher().fetch_artifact(artifact, "start-1", neighbours=[source])
    assert (fetched.bytes_from_peers, fetched.bytes_fetched > 1_200_000) == (0, True)


def test_another_trust_domains_neighbours_have_nothing(nodes: Any, asked: list[tuple[str, Wish]]) -> None:
    store, source = nodes.giver(domain=TrustDomain("other"))
    blob = Blob(put(store, blob_of(0, 5000)), 5000)
    with pytest.raises(NotFound, match=blob.digest):
        nodes.fetcher().fetch([blob], "start-1", neighbours=[source])
    assert asked == [("giver-0", Wish.SIZE)]


def test_enough_that_have_it_end_the_asking(nodes: Any, asked: list[tuple[str, Wish]]) -> None:
    givers = [nodes.giver() for _ in range(4)]
    digests = [put(store, blob_of(0, 5000)) for store, _ in givers]
    with peers_of(nodes, enough=2, find_streams=1).session([], lambda: None) as session:
        session.find(digests[0], [source for _, source in givers])
        assert asked == [("giver-0", Wish.SIZE), ("giver-1", Wish.SIZE)]
        with nodes.store.ingest(digests[0], 5000) as writer:
            assert session.bring(writer, lambda size: None) == (givers[0][1],)
            writer.commit()


def test_time_that_is_over_ends_the_asking(nodes: Any, asked: list[tuple[str, Wish]]) -> None:
    store, source = nodes.giver()
    blob = Blob(put(store, blob_of(0, 5000)), 5000)
    nodes.repository.put_bytes(blob_of(0, 5000))
    fetcher = Fetcher(nodes.repository, nodes.store, peers=peers_of(nodes, find_s=0.0))
    assert fetcher.fetch([blob], "start-1", neighbours=[source]).bytes_from_peers == 0
    assert asked == []


def test_who_has_it_not_is_hung_up_on_at_once(nodes: Any) -> None:
    _, source = nodes.giver(ServerLimits(connections=1))
    digest = put(nodes.store, blob_of(0, 5000))
    with nodes.peers.session([], lambda: None) as session:
        session.find(digest, [source])

        def free() -> bool:
            other = PeerConnection(source.peer_address, NodeId("x"), TrustDomain("lab"), LIMITS, SystemClock())
            try:
                other.size_of(digest)
            except PeerLacks:
                return True
            except PeerBusy:
                return False
            finally:
                other.close()
            raise AssertionError("it has the blob")

        assert nodes.sent(lambda counts: free())


def test_who_is_cancelled_asks_nobody(nodes: Any, asked: list[tuple[str, Wish]]) -> None:
    store, source = nodes.giver()
    blob = Blob(put(store, blob_of(0, 5000)), 5000)
    cancel = threading.Event()
    cancel.set()
    with pytest.raises(Cancelled):
        nodes.fetcher().fetch([blob], "start-1", cancel=cancel, neighbours=[source])
    assert asked == []
    assert nodes.store.holders() == {}
