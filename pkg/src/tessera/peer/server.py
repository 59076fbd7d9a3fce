"""Sends blobs of this node's stores to other agents: one thread per connection, the bytes by `sendfile` from the store's file.

A blob is mapped, not held: reclaiming unlinks and never truncates, so what is being sent stays whole, and what was unlinked counts in
the store's budget until it is sent. Which blobs there are is told to the trust domain that owns them alone: to any other every digest
is "not here". The bytes are not verified here; whoever takes them does that.
"""

from __future__ import annotations

import mmap
import os
import socket
import threading
from collections.abc import Callable
from dataclasses import dataclass

from tessera import failpoint
from tessera.domain.errors import FailedPrecondition, InvalidInput, NotFound, TesseraError
from tessera.domain.ids import NodeId, TrustDomain
from tessera.peer import codec
from tessera.peer.channel import limit_waiting, read_exactly, split_address
from tessera.peer.codec import Ask, Finding, Verdict, Wish
from tessera.telemetry import get_logger
from tessera.tensorstore.interface import TensorReader

Stores = Callable[[TrustDomain], TensorReader | None]
"""The store of a trust domain, None where this node has none."""

SEND_BYTES = 4 << 20
BACKLOG = 64
JOIN_S = 5.0
ACCEPT_PAUSE_S = 0.5
"""Between tries to take a connection where none can be taken: most often there are no descriptors left for the moment."""

_log = get_logger(__name__)


@dataclass(frozen=True, slots=True)
class ServerLimits:
    """`connections` at a time, each with one blob under way at most. `idle_s`: how long one may ask for nothing, or not take what is
    sent."""

    connections: int = 16
    idle_s: float = 30.0


class PeerServer:
    """`start` and `stop` once each. `sent_bytes` counts blobs' bytes."""

    def __init__(self, address: str, node_id: NodeId, stores: Stores, limits: ServerLimits | None = None) -> None:
        self._address = address
        self._node_id = node_id
        self._stores = stores
        self._limits = limits or ServerLimits()
        self._listener: socket.socket | None = None
        self._lock = threading.Lock()
        self._open: dict[socket.socket, threading.Thread] = {}
        self._stopping = threading.Event()
        self._accepting: threading.Thread | None = None
        self.sent_bytes = 0

    @property
    def address(self) -> str:
        """HOST:PORT as configured, with the port that a configured port 0 became."""
        assert self._listener is not None
        return f"{self._address.rpartition(':')[0]}:{self._listener.getsockname()[1]}"

    def start(self) -> None:
        """Raises: FailedPrecondition when the address is in use or none of this machine."""
        host, port = split_address(self._address)
        try:
            self._listener = socket.create_server((host, port), backlog=BACKLOG, family=socket.AF_INET6 if ":" in host else socket.AF_INET)
        except OSError as error:
            raise FailedPrecondition(f"peer_address {self._address}: {error.strerror or error}") from error
        self._accepting = threading.Thread(target=self._accept, name="peers", daemon=True)
        self._accepting.start()

    def stop(self) -> None:
        """Ends every stream at once: who was taking a blob goes on elsewhere."""
        assert self._listener is not None
        self._stopping.set()
        _shut(self._listener)
        with self._lock:
            serving = dict(self._open)
        for connection in serving:
            _shut(connection)
        for thread in (self._accepting, *serving.values()):
            if thread is not None:
                thread.join(JOIN_S)
        self._listener.close()

    def _accept(self) -> None:
        assert self._listener is not None
        said = False  # once until the next one comes through
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError as error:
                if self._stopping.is_set():
                    return
                if not said:
                    _log.warning("peers cannot connect", reason=str(error))
                said = True
                self._stopping.wait(ACCEPT_PAUSE_S)
                continue
            said = False
            connection.setblocking(True)
            limit_waiting(connection, self._limits.idle_s, self._limits.idle_s)
            thread = threading.Thread(target=self._serve, args=(connection,), name="peer", daemon=True)
            with self._lock:
                room = len(self._open) < self._limits.connections and not self._stopping.is_set()
                if room:
                    self._open[connection] = thread
            if not room:
                _turn_away(connection, f"{self._limits.connections} connections are open")
                continue
            try:
                thread.start()
            except RuntimeError as error:  # no more threads for the moment
                with self._lock:
                    del self._open[connection]
                _turn_away(connection, str(error))

    def _serve(self, connection: socket.socket) -> None:
        peer = ""
        try:
            with connection:
                peer, store = self._greet(connection)
                while (ask := _next_ask(connection)) is not None:
                    self._answer(connection, store, ask)
        except InvalidInput as error:
            _log.warning("peer refused", peer=peer, reason=str(error))
        except (OSError, TesseraError) as error:
            if not self._stopping.is_set():
                _log.info("peer stream ended", peer=peer, reason=str(error))
        finally:
            with self._lock:
                self._open.pop(connection, None)

    def _greet(self, connection: socket.socket) -> tuple[str, TensorReader | None]:
        try:
            length = codec.decode_hello_head(read_exactly(connection, codec.HELLO_HEAD.size))
            node_id = read_exactly(connection, length).decode()
            (length,) = codec.LENGTH_U8.unpack(read_exactly(connection, codec.LENGTH_U8.size))
            domain = read_exactly(connection, length).decode()
        except UnicodeDecodeError:
            error = InvalidInput("hello", None, "names are in utf-8")
            connection.sendall(codec.encode_welcome(Verdict.REFUSED, str(error)))
            raise error from None
        except InvalidInput as error:
            connection.sendall(codec.encode_welcome(Verdict.REFUSED, str(error)))
            raise
        connection.sendall(codec.encode_welcome(Verdict.WELCOME, self._node_id))
        return node_id, self._stores(TrustDomain(domain))

    def _answer(self, connection: socket.socket, store: TensorReader | None, ask: Ask) -> None:
        try:
            if store is None:
                raise NotFound("another trust domain's")
            fd = os.open(store.path(ask.digest), os.O_RDONLY | os.O_CLOEXEC)
        except (NotFound, FileNotFoundError):
            connection.sendall(codec.encode_answer(Finding.NOT_HERE))
            return
        try:
            size_bytes = os.fstat(fd).st_size
            if ask.offset > size_bytes:
                words = f"offset {ask.offset} lies behind the end of blob {ask.digest} of {size_bytes} bytes"
                connection.sendall(codec.encode_answer(Finding.ERROR, size_bytes, words))
                return
            here = codec.encode_answer(Finding.HERE, size_bytes)
            if ask.wish is Wish.SIZE or ask.offset == size_bytes:
                connection.sendall(here)
                return
            # Nobody reads the mapping: the store finds in /proc/*/maps what it has unlinked and is not free yet.
            with mmap.mmap(fd, size_bytes, prot=mmap.PROT_READ):
                failpoint.hit("peer.before_send")
                connection.sendall(here, socket.MSG_MORE)
                self._send(connection, fd, ask.offset, size_bytes)
        finally:
            os.close(fd)

    def _send(self, connection: socket.socket, fd: int, offset: int, end: int) -> None:
        while offset < end:
            sent = os.sendfile(connection.fileno(), fd, offset, min(SEND_BYTES, end - offset))
            if sent == 0:
                raise NotFound("the file ended early")
            offset += sent
            with self._lock:
                self.sent_bytes += sent


def _next_ask(connection: socket.socket) -> Ask | None:
    first = connection.recv(codec.ASK.size)
    if not first:
        return None
    return codec.decode_ask(first + read_exactly(connection, codec.ASK.size - len(first)))


def _turn_away(connection: socket.socket, reason: str) -> None:
    with connection:
        try:
            connection.send(codec.encode_welcome(Verdict.BUSY, reason))
        except OSError:
            pass  # gone already


def _shut(sock: socket.socket) -> None:
    try:
        sock.shutdown(socket.SHUT_RDWR)
    except OSError:
        pass  # not connected any more
