"""Blobs from peers over real sockets: what comes, from whom, and what happens when a peer lies, stalls, vanishes or is full."""

from __future__ import annotations

import socket
import subprocess
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from tessera.clock import SystemClock
from tessera.domain.artifact import Artifact, Blob
from tessera.domain.errors import Cancelled, FailedPrecondition, NotFound, ResourceExhausted
from tessera.domain.ids import Digest, NodeId, TrustDomain
from tessera.domain.signature import Signature
from tessera.domain.source import Source
from tessera.failpoint import active, count
from tessera.peer import Peers, PeerServer, PeerSettings, ServerLimits, codec
from tessera.peer.codec import Ask, Finding, Wish
from tessera.peer.connection import PeerBusy, PeerConnection, PeerEnded, PeerLacks, StreamLimits
from tessera.repository.artifacts import store_artifact, store_tensors
from tessera.repository.fetch import Fetcher
from tessera.tensorstore.artifact import digest_of
from tessera.testing.blobs import ABSENT, blob_of, put

MIB = 1 << 20
SIZES = [9 * MIB + 5, MIB, 100, 0]


def blobs_in(store, sizes: list[int] = SIZES) -> list[Blob]:
    return [Blob(put(store, blob_of(seed, size)), size) for seed, size in enumerate(sizes)]


def answer(data: bytes, end: int | None = None):
    """A peer that says that it has `data` and sends it up to `end`."""

    def behave(connection: socket.socket, ask: Ask) -> None:
        connection.sendall(codec.encode_answer(Finding.HERE, len(data)))
        if ask.wish is Wish.SEND:
            connection.sendall(data[ask.offset : end])

    return behave


def patient(nodes: Any) -> Fetcher:
    """One that waits for its peers as long as it takes."""
    settings = PeerSettings(busy_s=20.0, limits=StreamLimits(20.0, 20.0))
    return Fetcher(nodes.repository, nodes.store, peers=Peers(NodeId("taker"), TrustDomain("lab"), SystemClock(), settings))


def test_all_that_is_missing_comes_from_a_peer_and_nothing_from_the_repository(nodes: Any) -> None:
    store, source = nodes.giver()
    blobs = blobs_in(store)
    seen: list[tuple[int, int]] = []
    fetched = nodes.fetcher().fetch(blobs, "start-1", lambda done, total: seen.append((done, total)), sources=[source])
    total = sum(SIZES)
    assert (fetched.bytes_fetched, fetched.bytes_from_peers) == (total, total)
    assert seen[-1] == (total, total)
    assert nodes.store.digests() == store.digests()
    assert nodes.store.holders() == {"start-1": frozenset(blob.digest for blob in blobs)}
    assert nodes.store.status().pulled_bytes == total
    assert nodes.sent(lambda counts: counts == [total])
    assert store.holders() == {}


def test_an_artifact_comes_from_a_peer_when_there_is_no_repository_at_all(nodes: Any) -> None:
    stored = store_tensors(nodes.repository, [("w", "UINT8", (MIB,), blob_of(7, MIB)), ("b", "UINT8", (4,), b"bias")])
    artifact = store_artifact(nodes.repository, Artifact("aten", "fp32", "", None, stored.pack, stored.tensors, Signature((), ()), None, 8))
    store, source = nodes.giver()
    nodes.fetcher(store=store).fetch_artifact(artifact, "start-0")
    for digest, _ in list(nodes.repository.digests()):
        nodes.repository.delete(digest)
    found, fetched = nodes.fetcher().fetch_artifact(artifact, "start-1", sources=[source])
    assert found.tensors == stored.tensors
    assert fetched.bytes_from_peers == fetched.bytes_fetched == sum(store.digests().values())


def test_what_one_source_lacks_the_next_gives_and_the_rest_the_repository(nodes: Any) -> None:
    (first, a), (second, b) = nodes.giver(), nodes.giver()
    blobs = [
        Blob(put(first, blob_of(0, 5000)), 5000),
        Blob(put(second, blob_of(1, 6000)), 6000),
        Blob(nodes.repository.put_bytes(blob_of(2, 7000)), 7000),
    ]
    fetched = nodes.fetcher().fetch(blobs, "start-1", sources=[a, b])
    assert (fetched.bytes_fetched, fetched.bytes_from_peers) == (18000, 11000)
    assert nodes.sent(lambda counts: counts == [5000, 6000])


@pytest.mark.parametrize("flip", [0, 3 * MIB, 9 * MIB - 1])
def test_a_lying_peer_is_refused_and_suspected_and_the_next_one_gives(nodes: Any, flip: int) -> None:
    store, honest = nodes.giver()
    data = blob_of(0, 9 * MIB)
    blob = Blob(put(store, data), len(data))
    wrong = bytearray(data)
    wrong[flip] ^= 1
    liar = nodes.hostile(answer(bytes(wrong)))
    fetched = nodes.fetcher().fetch([blob], "start-1", sources=[liar, honest])
    assert fetched.bytes_from_peers == len(data)
    assert nodes.store.path(blob.digest).read_bytes() == data
    assert nodes.peers.suspects(liar)
    assert not nodes.peers.suspects(honest)


def test_when_all_peers_lie_the_repository_is_right(nodes: Any) -> None:
    data = blob_of(0, 3 * MIB)
    blob = Blob(nodes.repository.put_bytes(data), len(data))
    liars = [nodes.hostile(answer(bytes(len(data)))), nodes.hostile(answer(data[:-1] + b"x"))]
    fetched = nodes.fetcher().fetch([blob], "start-1", sources=liars)
    assert (fetched.bytes_fetched, fetched.bytes_from_peers) == (len(data), 0)
    assert all(nodes.peers.suspects(liar) for liar in liars)


def test_a_peer_that_lies_about_an_artifacts_size_cannot_stop_a_start(nodes: Any) -> None:
    artifact = store_artifact(nodes.repository, Artifact("identity", "any", "", None, None, (), Signature((), ()), None, 1))
    for size_bytes in (1, 5000, 1 << 60):

        def behave(connection: socket.socket, ask: Ask, size_bytes: int = size_bytes) -> None:
            connection.sendall(codec.encode_answer(Finding.HERE, size_bytes))
            if ask.wish is Wish.SEND:
                connection.sendall(bytes(min(size_bytes, 1 << 20)))

        liar = nodes.hostile(behave)
        _, fetched = nodes.fetcher().fetch_artifact(artifact, f"start-{size_bytes}", sources=[liar])
        assert fetched.bytes_from_peers == 0
        assert nodes.peers.suspects(liar)
        nodes.store.unpin(f"start-{size_bytes}", None)
        nodes.store.make_room(64 * MIB)
        assert not nodes.store.has(artifact)


def test_where_a_peer_vanishes_the_next_goes_on(nodes: Any) -> None:
    store, honest = nodes.giver()
    data = blob_of(0, 9 * MIB)
    blob = Blob(put(store, data), len(data))
    vanishing = nodes.hostile(answer(data, 5 * MIB))
    fetched = nodes.fetcher().fetch([blob], "start-1", sources=[vanishing, honest])
    assert fetched.bytes_from_peers == len(data)
    assert nodes.sent(lambda counts: counts == [4 * MIB]), "only what was missing still"
    assert nodes.peers.suspects(vanishing)


def test_where_the_only_peer_vanishes_the_repository_goes_on(nodes: Any) -> None:
    data = blob_of(0, 9 * MIB)
    blob = Blob(nodes.repository.put_bytes(data), len(data))
    fetched = nodes.fetcher().fetch([blob], "start-1", sources=[nodes.hostile(answer(data, 5 * MIB))])
    assert (fetched.bytes_fetched, fetched.bytes_from_peers) == (9 * MIB, 5 * MIB)


@pytest.mark.parametrize("trickle", [0, 10])
def test_a_peer_that_stalls_or_trickles_is_left(nodes: Any, trickle: int) -> None:
    store, honest = nodes.giver()
    data = blob_of(0, 2 * MIB)
    blob = Blob(put(store, data), len(data))

    def behave(connection: socket.socket, ask: Ask) -> None:
        connection.sendall(codec.encode_answer(Finding.HERE, len(data)) + data[:MIB])
        for start in range(MIB, MIB + 150):
            connection.sendall(data[start : start + 1] if trickle else b"")
            time.sleep(0.02)

    stalled = nodes.hostile(behave)
    fetched = nodes.fetcher().fetch([blob], "start-1", sources=[stalled, honest])
    assert fetched.bytes_from_peers == len(data)
    assert nodes.sent(lambda counts: MIB - 150 <= counts[0] <= MIB)
    assert nodes.peers.suspects(stalled)


def test_a_peer_that_never_answers_and_one_that_is_not_there_are_left(nodes: Any) -> None:
    store, honest = nodes.giver()
    blobs = blobs_in(store, [5000, 6000])
    mute = nodes.hostile(lambda connection, ask: time.sleep(2))
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    gone = Source(NodeId("gone"), f"127.0.0.1:{port}")
    fetched = nodes.fetcher().fetch(blobs, "start-1", sources=[mute, gone, honest])
    assert fetched.bytes_from_peers == 11000
    assert nodes.peers.suspects(mute)
    assert nodes.peers.suspects(gone)


def test_a_suspected_peer_is_not_asked_again_for_a_while(nodes: Any) -> None:
    asked: list[Digest] = []
    data = blob_of(0, 5000)

    def behave(connection: socket.socket, ask: Ask) -> None:
        asked.append(ask.digest)
        answer(bytes(len(data)))(connection, ask)

    liar = nodes.hostile(behave)
    for seed in range(3):
        digest = nodes.repository.put_bytes(blob_of(seed, 5000))
        nodes.fetcher().fetch([Blob(digest, 5000)], "start-1", sources=[liar])
    assert asked == [digest_of(data)]


def test_a_full_peer_says_so_and_the_next_source_is_taken(nodes: Any) -> None:
    (full, a), (other, b) = nodes.giver(ServerLimits(connections=1)), nodes.giver()
    data = blob_of(0, 5000)
    for store in (full, other):
        put(store, data)
    with socket.create_connection(("127.0.0.1", int(a.peer_address.rpartition(":")[2]))) as taken:
        # Whoever connects is let in or turned away in turn, so this one is in before the fetch is heard.
        blob = Blob(digest_of(data), 5000)
        assert nodes.fetcher().fetch([blob], "start-1", sources=[a, b]).bytes_from_peers == 5000
        assert nodes.sent(lambda counts: counts == [0, 5000])
        assert not nodes.peers.suspects(a)
        taken.close()


def test_a_peer_that_is_busy_for_a_moment_is_waited_for(nodes: Any) -> None:
    """There is no repository that has it."""
    store, source = nodes.giver(ServerLimits(connections=2))
    blobs = blobs_in(store, [20_000 + n for n in range(24)])
    with ThreadPoolExecutor(6) as pool:
        fetcher = patient(nodes)
        list(pool.map(lambda n: fetcher.fetch(blobs[4 * n : 4 * n + 4], f"start-{n}", sources=[source]), range(6)))
    assert nodes.store.digests() == store.digests()


def test_digests_of_another_trust_domain_are_as_unknown_as_those_that_nobody_has(nodes: Any) -> None:
    store, source = nodes.giver()
    secret = put(store, blob_of(0, 5000))
    limits = StreamLimits(2.0, 2.0)

    def words(domain: str, digest: Digest) -> str:
        connection = PeerConnection(source.peer_address, NodeId("x"), TrustDomain(domain), limits, SystemClock())
        with pytest.raises(PeerLacks) as lacks:
            connection.size_of(digest)
        connection.close()
        return str(lacks.value).replace(digest, "D")

    assert words("other", secret) == words("other", ABSENT) == words("lab", ABSENT)
    strangers = Fetcher(nodes.repository, nodes.store, peers=Peers(NodeId("x"), TrustDomain("other"), SystemClock()))
    with pytest.raises(NotFound, match=secret):
        strangers.fetch([Blob(secret, 5000)], "start-1", sources=[source])
    assert nodes.givers[0][1].sent_bytes == 0


def test_eight_starts_of_one_family_take_each_common_byte_once(nodes: Any) -> None:
    store, source = nodes.giver()
    common = blobs_in(store, [5 * MIB, 300_000, 70_000, 5000])
    own = [Blob(put(store, blob_of(100 + n, 9000 + n)), 9000 + n) for n in range(8)]
    fetcher = nodes.fetcher()
    barrier = threading.Barrier(8)

    def start(n: int) -> int:
        barrier.wait(10)
        return fetcher.fetch([*common, own[n]], f"start-{n}", sources=[source]).bytes_fetched

    with ThreadPoolExecutor(8) as pool:
        counted = sum(pool.map(start, range(8)))
    total = sum(blob.size_bytes for blob in (*common, *own))
    assert counted == total
    assert nodes.sent(lambda counts: counts == [total])
    assert nodes.store.status().ingested_bytes == total
    assert all(nodes.store.holders()[f"start-{n}"] == {blob.digest for blob in (*common, own[n])} for n in range(8))


def test_what_is_being_sent_may_be_reclaimed_meanwhile(nodes: Any) -> None:
    store, source = nodes.giver()
    data = blob_of(0, 8 * MIB)
    blob = Blob(put(store, data), len(data))
    with active("peer.before_send=1*delay(3)"), ThreadPoolExecutor(1) as pool:
        call = pool.submit(patient(nodes).fetch, [blob], "start-1", None, None, [source])
        until_s = time.monotonic() + 10
        while not count("peer.before_send"):
            assert time.monotonic() < until_s, "it is not being sent"
            time.sleep(0.005)
        with pytest.raises(ResourceExhausted, match=f"unlinked but still mapped {8 * MIB}"):
            store.make_room(64 * MIB)
        assert not store.has(blob.digest)
        assert call.result(20).bytes_from_peers == 8 * MIB


def test_a_cancelled_fetch_ends_though_its_peer_stalls(nodes: Any) -> None:
    data = blob_of(0, 9 * MIB)
    cancel = threading.Event()

    def behave(connection: socket.socket, ask: Ask) -> None:
        answer(data, MIB)(connection, ask)
        time.sleep(0.1)
        cancel.set()
        time.sleep(5)

    with pytest.raises(Cancelled):
        nodes.fetcher().fetch([Blob(digest_of(data), len(data))], "start-1", None, cancel, [nodes.hostile(behave)])
    assert nodes.store.status().used_bytes == 0
    assert nodes.store.holders() == {}


def test_a_cancelled_fetch_ends_in_the_middle_of_a_blob_and_blames_nobody(nodes: Any) -> None:
    store, source = nodes.giver()
    blob = Blob(put(store, blob_of(0, 9 * MIB)), 9 * MIB)
    cancel = threading.Event()
    seen: list[int] = []

    def stop(done: int, total: int) -> None:
        seen.append(done)
        cancel.set()

    with pytest.raises(Cancelled):
        nodes.fetcher().fetch([blob], "start-1", stop, cancel, [source])
    assert len(seen) == 1
    assert 0 < seen[0] <= MIB
    assert nodes.store.status().used_bytes == 0
    assert not nodes.peers.suspects(source)
    assert nodes.fetcher().fetch([blob], "start-2", sources=[source]).bytes_from_peers == 9 * MIB


def test_a_node_does_not_ask_itself(nodes: Any) -> None:
    data = blob_of(0, 5000)
    digest = nodes.repository.put_bytes(data)
    me = Source(NodeId("taker"), "127.0.0.1:1")
    assert nodes.fetcher().fetch([Blob(digest, 5000)], "start-1", sources=[me]).bytes_from_peers == 0
    assert not nodes.peers.suspects(me)


@pytest.mark.parametrize("said", [b"GET / HTTP/1.1\r\n\r\n", b"TPS\x63\x01a\x01b", b"TPS\x01\x01\xff\x01b"])
def test_who_does_not_speak_the_protocol_is_told_and_cut_off(nodes: Any, said: bytes) -> None:
    _, source = nodes.giver()
    host, _, port = source.peer_address.rpartition(":")
    with socket.create_connection((host, int(port)), timeout=5) as connection:
        connection.sendall(said)
        head = connection.recv(codec.WELCOME_HEAD.size, socket.MSG_WAITALL)
        verdict, length = codec.decode_welcome_head(head)
        assert verdict is codec.Verdict.REFUSED
        assert b"hello" in (words := connection.recv(length, socket.MSG_WAITALL)) or b"version 99" in words


def test_an_offset_behind_the_end_is_an_error_in_words(nodes: Any) -> None:
    store, source = nodes.giver()
    digest = put(store, blob_of(0, 5000))
    host, _, port = source.peer_address.rpartition(":")
    with socket.create_connection((host, int(port)), timeout=5) as connection:
        connection.sendall(codec.encode_hello(NodeId("x"), TrustDomain("lab")) + codec.encode_ask(Ask(Wish.SEND, digest, 5001)))
        connection.recv(codec.WELCOME_HEAD.size + len("giver-0"), socket.MSG_WAITALL)
        head = codec.decode_answer_head(connection.recv(codec.ANSWER_HEAD.size, socket.MSG_WAITALL))
        assert head.finding is Finding.ERROR
        assert b"offset 5001 lies behind the end" in connection.recv(head.words_bytes, socket.MSG_WAITALL)


def test_a_used_address_is_said(nodes: Any) -> None:
    _, source = nodes.giver()
    with pytest.raises(FailedPrecondition, match=f"peer_address {source.peer_address}: Address already in use"):
        PeerServer(source.peer_address, NodeId("second"), {}.get).start()


def test_an_ended_server_ends_its_streams(nodes: Any) -> None:
    store, source = nodes.giver()
    digest = put(store, blob_of(0, 5000))
    connection = PeerConnection(source.peer_address, NodeId("x"), TrustDomain("lab"), StreamLimits(2.0, 2.0), SystemClock())
    assert connection.size_of(digest) == 5000
    nodes.givers[0][1].stop()
    with pytest.raises(PeerEnded):
        connection.size_of(digest)
    connection.close()
    assert not [thread for thread in threading.enumerate() if thread.name == "peer"]


def test_one_connection_more_than_there_may_be_is_turned_away_in_words(nodes: Any) -> None:
    store, source = nodes.giver(ServerLimits(connections=1))
    digest = put(store, blob_of(0, 5000))
    first, second = (
        PeerConnection(source.peer_address, NodeId("x"), TrustDomain("lab"), StreamLimits(2.0, 2.0), SystemClock()) for _ in range(2)
    )
    assert first.size_of(digest) == 5000
    with pytest.raises(PeerBusy, match="1 connections are open"):
        second.size_of(digest)
    first.close()
    second.close()


@pytest.mark.root
def test_a_full_tmpfs_in_the_middle_of_a_stream_is_said_and_leaves_nothing(nodes: Any, tmp_path: Path) -> None:
    """The budget says more than the file system has."""
    store, source = nodes.giver()
    data = blob_of(0, 9 * MIB)
    blob = Blob(put(store, data), len(data))
    small = tmp_path / "small"
    small.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "none", str(small)], check=True)
    nodes.stack.callback(subprocess.run, ["umount", str(small)], check=True)
    store_there = nodes.open("small", 64 * MIB)
    with pytest.raises(ResourceExhausted, match="its file system is full"):
        nodes.fetcher(store=store_there).fetch([blob], "start-1", sources=[source])
    assert not nodes.peers.suspects(source)
    assert list((small / "incoming").iterdir()) == []
    assert store_there.check(deep=True) == []
