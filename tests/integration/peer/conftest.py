"""Real stores, real sockets: nodes that give and one that takes, and peers that mean no good."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tessera.clock import SystemClock
from tessera.domain.ids import NodeId, TrustDomain
from tessera.domain.source import Source
from tessera.peer import Peers, PeerServer, PeerSettings, ServerLimits, codec
from tessera.peer.channel import read_exactly
from tessera.peer.codec import Ask
from tessera.peer.connection import StreamLimits
from tessera.repository import Repository
from tessera.repository.fetch import Fetcher
from tessera.repository.interface import BlobRepository
from tessera.tensorstore.local import LocalTensorStore

DOMAIN = TrustDomain("lab")
BUDGET = 64 << 20
STALL_S = 1.0


class Nodes:
    """`giver()` starts another node with a store of the trust domain; `taker` has a store and a repository."""

    def __init__(self, folder: Path, stack: ExitStack) -> None:
        self.folder = folder
        self.stack = stack
        self.repository = Repository((folder / "repository").as_uri())
        self.store = self.open("taker")
        self.peers = Peers(
            NodeId("taker"), DOMAIN, SystemClock(), PeerSettings(suspect_s=60.0, busy_s=0.2, limits=StreamLimits(2.0, STALL_S))
        )
        self.givers: list[tuple[LocalTensorStore, PeerServer]] = []

    def open(self, name: str, budget_bytes: int = BUDGET) -> LocalTensorStore:
        return self.stack.enter_context(LocalTensorStore(self.folder / name, budget_bytes, SystemClock()))

    def giver(self, limits: ServerLimits | None = None, domain: TrustDomain = DOMAIN) -> tuple[LocalTensorStore, Source]:
        name = f"giver-{len(self.givers)}"
        store = self.open(name)
        server = PeerServer("127.0.0.1:0", NodeId(name), {domain: store}.get, limits)
        server.start()
        self.stack.callback(server.stop)
        self.givers.append((store, server))
        return store, Source(NodeId(name), server.address)

    def sent(self, enough: Callable[[list[int]], bool]) -> bool:
        """Whether what each giver counted as sent is `enough`. A piece counts once the kernel has it: it may have been read before."""
        deadline = time.monotonic() + 5
        while not enough([server.sent_bytes for _, server in self.givers]):
            if time.monotonic() > deadline:
                return False
            time.sleep(0.005)
        return True

    def fetcher(self, repository: BlobRepository | None = None, store: LocalTensorStore | None = None) -> Fetcher:
        return Fetcher(repository or self.repository, store or self.store, peers=self.peers)

    def hostile(self, behave: Callable[[socket.socket, Ask], None]) -> Source:
        """A peer that greets as it should and answers each ask as `behave` wants; it hangs up when that returns."""
        listener = socket.create_server(("127.0.0.1", 0))
        self.stack.callback(listener.close)
        over = threading.Event()
        self.stack.callback(over.set)

        def serve() -> None:
            while True:
                try:
                    connection, _ = listener.accept()
                except OSError:
                    return
                with connection:
                    length = codec.decode_hello_head(read_exactly(connection, codec.HELLO_HEAD.size))
                    read_exactly(connection, length)
                    read_exactly(connection, read_exactly(connection, 1)[0])
                    connection.sendall(codec.encode_welcome(codec.Verdict.WELCOME, "hostile"))
                    try:
                        behave(connection, codec.decode_ask(read_exactly(connection, codec.ASK.size)))
                    except OSError:
                        pass  # who was asking has gone

        threading.Thread(target=serve, daemon=True).start()
        return Source(NodeId("hostile"), f"127.0.0.1:{listener.getsockname()[1]}")


@pytest.fixture
def nodes(tmp_path: Path) -> Iterator[Nodes]:
    with ExitStack() as stack:
        found = Nodes(tmp_path, stack)
        yield found
        assert found.store.check(deep=True) == []
        for store, _ in found.givers:
            assert store.check(deep=True) == []
