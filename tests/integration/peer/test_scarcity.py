"""A node that runs out of descriptors, threads or room: it serves its peers again once there are some, and knows what they cost it."""

from __future__ import annotations

import os
import resource
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from structlog.testing import capture_logs

from tessera.clock import SystemClock
from tessera.domain.errors import ResourceExhausted
from tessera.domain.ids import NodeId, TrustDomain
from tessera.peer.codec import ANSWER_HEAD, WELCOME_HEAD, Ask, Verdict, Wish, decode_welcome_head, encode_ask, encode_hello
from tessera.peer.connection import PeerBusy, PeerConnection, StreamLimits
from tessera.peer.server import ACCEPT_PAUSE_S
from tessera.tensorstore.artifact import digest_of
from tessera.testing.blobs import blob_of, put

MIB = 1 << 20


@contextmanager
def no_descriptors() -> Iterator[None]:
    """This process can open nothing more."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    lowest = os.dup(0)
    os.close(lowest)
    resource.setrlimit(resource.RLIMIT_NOFILE, (lowest, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.fixture
def connected(nodes: Any) -> Callable[[], socket.socket]:
    """connected() is a socket that says hello to a node that gives; all are opened beforehand."""
    _, source = nodes.giver()
    host, _, port = source.peer_address.rpartition(":")
    spare = [nodes.stack.enter_context(socket.socket()) for _ in range(2)]

    def connect() -> socket.socket:
        connection = spare.pop()
        connection.settimeout(10)
        connection.connect((host, int(port)))
        connection.sendall(encode_hello(NodeId("x"), TrustDomain("lab")))
        return connection

    return connect


def welcomed(connection: socket.socket) -> bool:
    verdict, _ = decode_welcome_head(connection.recv(WELCOME_HEAD.size, socket.MSG_WAITALL))
    return verdict is Verdict.WELCOME


def until(seen: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 10
    while not seen():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_no_descriptors_are_said_once_and_who_connects_meanwhile_is_served_later(
    connected: Callable[[], socket.socket], monkeypatch: pytest.MonkeyPatch
) -> None:
    tries, accept = [0], socket.socket.accept

    def counted(listener: socket.socket) -> Any:
        tries[0] += 1
        return accept(listener)

    monkeypatch.setattr(socket.socket, "accept", counted)
    with capture_logs() as logs:
        with no_descriptors():
            began_s = time.monotonic()
            both = connected(), connected()  # one is accepted: the kernel sets a descriptor aside for a server that waits already
            until(lambda: tries[0] >= 4)
            assert time.monotonic() - began_s >= 2 * ACCEPT_PAUSE_S
        assert all(welcomed(connection) for connection in both)
    assert [line["reason"] for line in logs if line["log_level"] == "warning"] == ["[Errno 24] Too many open files"]


def test_a_server_that_takes_no_connection_can_be_stopped(
    nodes: Any, connected: Callable[[], socket.socket], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tessera.peer.server.ACCEPT_PAUSE_S", 60.0)
    with capture_logs() as logs, no_descriptors():
        connected()
        until(lambda: bool(logs))
        nodes.givers[0][1].stop()
    assert not [thread for thread in threading.enumerate() if thread.name == "peers"]


def test_no_threads_turn_a_peer_away_and_the_next_one_is_served(nodes: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    store, source = nodes.giver()
    digest = put(store, blob_of(0, 5000))

    def connect() -> PeerConnection:
        return PeerConnection(source.peer_address, NodeId("x"), TrustDomain("lab"), StreamLimits(2.0, 2.0), SystemClock())

    def refuse(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patched:
        patched.setattr(threading.Thread, "start", refuse)
        turned_away = connect()
        with pytest.raises(PeerBusy, match="can't start new thread"):
            turned_away.size_of(digest)
        turned_away.close()
    served = connect()
    assert served.size_of(digest) == 5000
    served.close()


def test_what_is_reclaimed_while_it_is_sent_counts_until_it_is_sent(nodes: Any) -> None:
    store, source = nodes.giver()
    budget, size = store.status().budget_bytes, 32 * MIB  # more than the kernel takes off the sender's hands
    digest = put(store, blob_of(0, size))
    host, _, port = source.peer_address.rpartition(":")
    with socket.create_connection((host, int(port)), timeout=10) as connection, connection.makefile("rb") as stream:
        connection.sendall(encode_hello(NodeId("x"), TrustDomain("lab")) + encode_ask(Ask(Wish.SEND, digest)))
        stream.read(WELCOME_HEAD.size + len("giver-0") + ANSWER_HEAD.size)
        with pytest.raises(ResourceExhausted, match=f"unlinked but still mapped {size}"):
            store.make_room(budget)
        assert (store.has(digest), store.status().unlinked_bytes) == (False, size)
        assert store.make_room(budget - size) == []
        assert digest_of(stream.read(size)) == digest
        until(lambda: store.status().unlinked_bytes == 0)
    assert store.make_room(budget) == []
