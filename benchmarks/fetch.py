"""A blob from another node's store and from the repository, against bare streams: make bench NAME=fetch

Two processes on loopback, stores on tmpfs. The giver holds one blob of 256 MiB and sends it; the taker takes it in one of these ways:

    bare splice    sendfile -> TCP -> splice into a tmpfs file: no copy through either process. The strongest stream that we know of
    bare recv      sendall of a private buffer -> TCP -> recv_into a mapping of a tmpfs file: what one writes without thinking about it
    peer           `Fetcher` with that peer as its source, into a tensor store: hashed, verified, sealed, held
    repository     `Fetcher` from `file://`, page cache warm, and dropped before (root only)

Rounds alternate, so that the machine's moods meet all alike; a ratio is the median of the rounds' ratios. CPU is of both processes.
"""

from __future__ import annotations

import multiprocessing
import os
import socket
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection
from pathlib import Path

import psutil

from benchmarks.report import Report, median
from tessera.clock import SystemClock
from tessera.domain.artifact import Blob
from tessera.domain.ids import NodeId, TrustDomain
from tessera.domain.source import Source
from tessera.peer import Peers, PeerServer
from tessera.repository import Repository
from tessera.repository.fetch import Fetcher
from tessera.tensorstore.local import LocalTensorStore
from tessera.tensorstore.mount import prepare_store_folder, remove_store_folder
from tessera.testing.blobs import put

SIZE_BYTES = int(os.environ.get("TESSERA_BENCH_FETCH_MIB", "256")) << 20
FAMILY = (32, SIZE_BYTES // 32)
"""Blobs of a family that several starts fetch at once, and the length of each."""
ROUNDS = int(os.environ.get("TESSERA_BENCH_ROUNDS", "9"))
GOAL = 0.7
DOMAIN = TrustDomain("bench")
PULL_BYTES = 1 << 20
READ_BYTES = 256 << 10
MIB = 1 << 20


def _data(size_bytes: int) -> bytes:
    return os.urandom(size_bytes)


@contextmanager
def _store(folder: Path, name: str) -> Iterator[LocalTensorStore]:
    mount = folder / name
    prepared = prepare_store_folder(mount, 3 * SIZE_BYTES)
    try:
        with LocalTensorStore(prepared.path, 3 * SIZE_BYTES, SystemClock()) as store:
            yield store
    finally:
        remove_store_folder(mount)


def _give(folder: Path, ready: Connection) -> None:
    """The other process: a peer server over a store, and bare streams of the same file. Ends when it is told so."""
    with _store(folder, "giver") as store:
        data = _data(SIZE_BYTES)
        blob = put(store, data)
        count, length = FAMILY
        family = [put(store, data[n * length : (n + 1) * length]) for n in range(count)]
        server = PeerServer("127.0.0.1:0", NodeId("giver"), {DOMAIN: store}.get)
        server.start()
        bare = {"splice": _listen(_sending(store.path(blob))), "recv": _listen(lambda connection: connection.sendall(data))}
        ready.send((blob, family, server.address, bare))
        ready.recv()
        server.stop()


def _sending(path: Path) -> Callable[[socket.socket], None]:
    def send(connection: socket.socket) -> None:
        with path.open("rb") as file:
            sent = 0
            while sent < SIZE_BYTES:
                sent += os.sendfile(connection.fileno(), file.fileno(), sent, SIZE_BYTES - sent)

    return send


def _listen(send: Callable[[socket.socket], None]) -> int:
    listener = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        while True:
            connection, _ = listener.accept()
            with connection:
                connection.recv(1)
                send(connection)

    threading.Thread(target=serve, daemon=True).start()
    return int(listener.getsockname()[1])


def _bare_splice(port: int, file: int) -> None:
    outlet, inlet = os.pipe()
    with socket.create_connection(("127.0.0.1", port)) as connection:
        connection.send(b"x")
        moved = 0
        while moved < SIZE_BYTES:
            there = os.splice(connection.fileno(), inlet, PULL_BYTES)
            while there:
                done = os.splice(outlet, file, there, offset_dst=moved)
                moved, there = moved + done, there - done
    os.close(outlet)
    os.close(inlet)


def _bare_recv(port: int, file: int) -> None:
    import mmap

    with (
        socket.create_connection(("127.0.0.1", port)) as connection,
        mmap.mmap(file, SIZE_BYTES) as mapped,
        memoryview(mapped) as view,
    ):
        connection.send(b"x")
        moved = 0
        while moved < SIZE_BYTES:
            with view[moved : moved + READ_BYTES] as part:
                moved += connection.recv_into(part)


class _Bench:
    def __init__(self, store: LocalTensorStore, repository: Repository, ready: Connection, giver: int) -> None:
        self.blob, self.family, address, self.bare = ready.recv()
        self.store = store
        self.processes = [psutil.Process(), psutil.Process(giver)]
        self.source = Source(NodeId("giver"), address)
        self.fetcher = Fetcher(repository, store, 4, peers=Peers(NodeId("taker"), DOMAIN, SystemClock()))
        self.seconds: dict[str, list[float]] = {}
        self.cpu_s: dict[str, list[float]] = {}

    def measure(self, name: str, call: Callable[[], object]) -> None:
        before = self._cpu()
        begun = time.perf_counter()
        call()
        self.seconds.setdefault(name, []).append(time.perf_counter() - begun)
        self.cpu_s.setdefault(name, []).append(self._cpu() - before)
        self.store.unpin("bench", None)
        self.store.make_room(3 * SIZE_BYTES)

    def _cpu(self) -> float:
        return sum(sum(process.cpu_times()[:2]) for process in self.processes)

    def bare_stream(self, way: str) -> None:
        """Into a file on the store's file system, in full length from the start, as the store makes them."""
        path = self.store.root / f"bare-{way}"
        file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL)
        os.ftruncate(file, SIZE_BYTES)
        try:
            self.measure(f"bare {way}", lambda: {"splice": _bare_splice, "recv": _bare_recv}[way](self.bare[way], file))
        finally:
            os.close(file)
            path.unlink()

    def fetch(self, name: str, sources: list[Source]) -> None:
        def call() -> None:
            fetched = self.fetcher.fetch([Blob(self.blob, SIZE_BYTES)], "bench", sources=sources)
            assert fetched.bytes_from_peers == (SIZE_BYTES if sources else 0)

        self.measure(name, call)

    def fetch_family(self, name: str, starts: int) -> None:
        """So many starts at once that want the same blobs; each byte comes once."""
        blobs = [Blob(digest, FAMILY[1]) for digest in self.family]

        def call() -> None:
            found: list[int] = []

            def start() -> None:
                found.append(self.fetcher.fetch(blobs, "bench", sources=[self.source]).bytes_fetched)

            threads = [threading.Thread(target=start) for _ in range(starts)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            assert sum(found) == SIZE_BYTES, "each byte once"

        self.measure(name, call)

    def ratio(self, one: str, other: str) -> float:
        """Of the throughput of `one` to that of `other`."""
        return median([b / a for a, b in zip(self.seconds[one], self.seconds[other], strict=True)])


def main() -> None:
    report = Report("fetch")
    with tempfile.TemporaryDirectory(prefix="tessera-bench-") as name:
        folder = Path(name)
        repository = Repository((folder / "repository").as_uri())
        ours, theirs = multiprocessing.Pipe()
        giver = multiprocessing.get_context("fork").Process(target=_give, args=(folder, theirs), daemon=True)
        giver.start()
        with _store(folder, "taker") as store:
            assert giver.pid is not None
            bench = _Bench(store, repository, ours, giver.pid)
            bench.fetch("warm-up", [bench.source])
            bench.fetcher.fetch([Blob(bench.blob, SIZE_BYTES)], "bench", sources=[bench.source])
            with store.path(bench.blob).open("rb") as file:
                repository.put(bench.blob, iter(lambda: file.read(MIB), b""))
            store.unpin("bench", None)
            store.make_room(3 * SIZE_BYTES)
            for _ in range(ROUNDS):
                bench.bare_stream("splice")
                bench.fetch("peer", [bench.source])
                bench.bare_stream("recv")
                bench.fetch("repository, page cache warm", [])
                bench.fetch_family("peer, 32 blobs, 1 start", 1)
                bench.fetch_family("peer, 32 blobs, 8 starts at once", 8)
                if os.geteuid() == 0:
                    os.sync()
                    Path("/proc/sys/vm/drop_caches").write_text("3")
                    bench.fetch("repository, page cache dropped", [])
        ours.send("over")
        giver.join()
    bench.seconds.pop("warm-up")
    for way, seconds in bench.seconds.items():
        rates = [SIZE_BYTES / 1e9 / each for each in seconds]
        report.row(
            way=way,
            gb_per_s_median=median(rates),
            gb_per_s_best=max(rates),
            ms_median=median(seconds) * 1e3,
            cpu_ms_median=median(bench.cpu_s[way]) * 1e3,
            against_bare_splice=bench.ratio(way, "bare splice"),
            against_bare_recv=bench.ratio(way, "bare recv"),
        )
    report.goal("peer_vs_bare", bench.ratio("peer", "bare splice"), ">=", GOAL, "of the bare splice stream")
    report.goal("peer_vs_bare_recv", bench.ratio("peer", "bare recv"), ">=", GOAL, "of the bare recv stream")
    report.finish()


if __name__ == "__main__":
    main()
