"""Takes blobs from the nodes that have them: each source in turn, from where the last one stopped.

A source that fails is not asked again for a while, by anybody of this node; one that sent wrong bytes neither. At most so many streams
go from this node to one peer at a time: who finds none free takes the next source, and waits when there is no other.
Where nobody said which nodes have the blobs, all that there are are asked, each with one question.
"""

from __future__ import annotations

import threading
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import TracebackType
from typing import Self

from tessera.clock import Clock
from tessera.domain.ids import Digest, NodeId, TrustDomain
from tessera.domain.source import Source
from tessera.peer.connection import PeerBusy, PeerConnection, PeerDiffers, PeerEnded, PeerFails, PeerLacks, StreamLimits
from tessera.telemetry import get_logger
from tessera.tensorstore.interface import Writer

POLL_S = 0.05

_log = get_logger(__name__)


@dataclass(frozen=True, slots=True)
class PeerSettings:
    """`streams`: to one peer at a time. `suspect_s`: how long a peer that failed is not asked. `busy_s`: how long sources that are all
    busy are tried before the repository is. `enough`: so many neighbours that have a blob are sources; `find_streams` are asked at a
    time, and none more after `find_s`."""

    streams: int = 4
    suspect_s: float = 30.0
    busy_s: float = 1.0
    enough: int = 4
    find_streams: int = 8
    find_s: float = 2.0
    limits: StreamLimits = field(default_factory=StreamLimits)


class Peers:
    """One per node and trust domain; implements `tessera.repository.interface.BlobSources`."""

    def __init__(self, node_id: NodeId, trust_domain: TrustDomain, clock: Clock, settings: PeerSettings | None = None) -> None:
        self._node_id = node_id
        self._trust_domain = trust_domain
        self._clock = clock
        self._settings = settings or PeerSettings()
        self._changed = threading.Condition()
        self._streams: defaultdict[str, int] = defaultdict(int)
        self._suspected_until_s: dict[str, float] = {}
        self._idle: defaultdict[str, list[PeerConnection]] = defaultdict(list)
        self._sessions = 0

    def session(self, sources: Iterable[Source], check: Callable[[], None]) -> PeerSession:
        """`check` is called while waiting and between parts; what it raises ends the call."""
        with self._changed:
            self._sessions += 1
        return PeerSession(self, self.others(sources), check)

    def others(self, sources: Iterable[Source]) -> list[Source]:
        """Without this node itself."""
        return [source for source in sources if source.node_id != self._node_id]

    def session_ended(self) -> None:
        with self._changed:
            self._sessions -= 1
            unused = [] if self._sessions else [connection for kept in self._idle.values() for connection in kept]
            if unused:
                self._idle.clear()
        for connection in unused:
            connection.close()

    def suspects(self, source: Source) -> bool:
        with self._changed:
            return self._suspected_until_s.get(source.peer_address, 0.0) > self._clock.monotonic_s()

    def suspect(self, source: Source, reason: str) -> None:
        with self._changed:
            self._suspected_until_s[source.peer_address] = self._clock.monotonic_s() + self._settings.suspect_s
        _log.warning("peer suspected", peer=source.node_id, address=source.peer_address, for_s=self._settings.suspect_s, reason=reason)

    @contextmanager
    def stream_to_one_of(self, sources: list[Source], check: Callable[[], None]) -> Iterator[Source]:
        """The first of `sources` to which a stream more may go, waiting until there is one."""
        with self._changed:
            while (free := self._free(sources)) is None:
                self._changed.wait(POLL_S)
                check()
            self._streams[free.peer_address] += 1
        try:
            yield free
        finally:
            with self._changed:
                self._streams[free.peer_address] -= 1
                self._changed.notify_all()

    @contextmanager
    def connection(self, source: Source) -> Iterator[PeerConnection]:
        """To be asked for with a stream in hand, so that there are no more connections than streams. One that is kept for the next, as
        long as there is a session, unless its use fails.

        Raises:
            PeerFails: it cannot be reached.
        """
        with self._changed:
            kept = self._idle[source.peer_address]
            found = kept.pop() if kept else None
        if found is None:
            found = PeerConnection(source.peer_address, self._node_id, self._trust_domain, self._settings.limits, self._clock)
        try:
            yield found
        except PeerLacks:
            self._keep(source, found)
            raise
        except BaseException:
            found.close()
            raise
        self._keep(source, found)

    def _keep(self, source: Source, connection: PeerConnection) -> None:
        with self._changed:
            self._idle[source.peer_address].append(connection)

    def hang_up(self, sources: Iterable[Source]) -> None:
        """Closes the connections to these that nobody uses at the moment."""
        with self._changed:
            unused = [connection for source in sources for connection in self._idle.pop(source.peer_address, [])]
        for connection in unused:
            connection.close()

    def _free(self, sources: list[Source]) -> Source | None:
        return next((source for source in sources if self._streams[source.peer_address] < self._settings.streams), None)

    @property
    def settings(self) -> PeerSettings:
        return self._settings

    @property
    def clock(self) -> Clock:
        return self._clock


class _Enough(Exception):
    """Whoever is not asked yet need not be."""


class PeerSession:
    """What one fetch has to do with its sources. For several threads at a time."""

    def __init__(self, peers: Peers, sources: list[Source], check: Callable[[], None]) -> None:
        self._peers = peers
        self._sources = sources
        self._check = check

    def find(self, digest: Digest, neighbours: Iterable[Source]) -> None:
        """Those of `neighbours` that have the blob are sources from here on, in the order in which they stand here, after the others."""
        settings, clock = self._peers.settings, self._peers.clock
        asked, have = self._peers.others(neighbours), set[Source]()
        ends_s = clock.monotonic_s() + settings.find_s

        def check() -> None:
            self._check()
            if len(have) >= settings.enough or clock.monotonic_s() >= ends_s:
                raise _Enough

        def ask(neighbour: Source) -> None:
            try:
                if PeerSession(self._peers, [neighbour], check).size_of(digest) is not None:
                    have.add(neighbour)
                else:  # it is asked for nothing more here, and a peer has few connections to give
                    self._peers.hang_up([neighbour])
            except _Enough:
                pass

        if not asked:
            return
        with ThreadPoolExecutor(min(settings.find_streams, len(asked)), thread_name_prefix="find") as pool:
            for answer in [pool.submit(ask, neighbour) for neighbour in asked]:
                answer.result()
        found = [neighbour for neighbour in asked if neighbour in have][: settings.enough]
        self._peers.hang_up(neighbour for neighbour in asked if neighbour not in found)
        self._sources += found

    def size_of(self, digest: Digest) -> tuple[int, Source] | None:
        """The size that the first source states that has the blob, and which one that is; None where none has it or answers."""
        stated: list[tuple[int, Source]] = []
        self._try_in_turn(lambda source, connection: stated.append((connection.size_of(digest), source)), lambda: bool(stated))
        return stated[0] if stated else None

    def bring(self, writer: Writer, moved: Callable[[int], None]) -> tuple[Source, ...]:
        """Brings as much of the blob as the sources have; the writer says how much that is. Returns who contributed bytes."""
        given: list[Source] = []

        def came(size_bytes: int) -> None:
            moved(size_bytes)
            self._check()

        def pull(source: Source, connection: PeerConnection) -> None:
            before = writer.written_bytes
            try:
                connection.pull(writer, came)
            finally:
                if writer.written_bytes > before:
                    given.append(source)

        self._try_in_turn(pull, lambda: writer.size_bytes == writer.written_bytes)
        return tuple(given)

    def blame(self, sources: Iterable[Source], reason: str) -> None:
        """What these gave was wrong."""
        for source in sources:
            self._peers.suspect(source, reason)

    def _try_in_turn(self, use: Callable[[Source, PeerConnection], None], done: Callable[[], bool]) -> None:
        """Each source once, or until it is `done`; busy ones again for a while, when no other is left."""
        left = [source for source in self._sources if not self._peers.suspects(source)]
        busy: list[Source] = []
        busy_until_s = self._peers.clock.monotonic_s() + self._peers.settings.busy_s
        while not done():
            self._check()
            if not left:
                if not busy or self._peers.clock.monotonic_s() >= busy_until_s:
                    return
                threading.Event().wait(POLL_S)
                left, busy = busy, []
            with self._peers.stream_to_one_of(left, self._check) as source:
                left = [other for other in left if other != source]
                try:
                    with self._peers.connection(source) as connection:
                        use(source, connection)
                except PeerBusy:
                    busy.append(source)
                except PeerEnded:
                    left.insert(0, source)  # kept connections come to an end, so this does
                except (PeerLacks, PeerDiffers):
                    pass
                except PeerFails as error:
                    self._peers.suspect(source, str(error))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._peers.session_ended()
