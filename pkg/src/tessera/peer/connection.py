"""The taking end of one peer stream. Used by one thread at a time."""

from __future__ import annotations

import socket
from collections.abc import Callable
from dataclasses import dataclass

from tessera.clock import Clock
from tessera.domain.errors import InvalidInput, TesseraError, Unavailable
from tessera.domain.ids import Digest, NodeId, TrustDomain
from tessera.peer import codec
from tessera.peer.channel import limit_waiting, read_exactly, split_address
from tessera.peer.codec import AnswerHead, Ask, Finding, Verdict, Wish
from tessera.tensorstore.interface import Writer

PULL_BYTES = 1 << 20


class PeerBusy(Unavailable):
    """It has as many connections as it may have; nothing is wrong with it."""


class PeerLacks(Unavailable):
    """It has not got this blob (any more)."""


class PeerDiffers(Unavailable):
    """It has a blob of this name and another size: one of those who told us is wrong, which one is not known."""


class PeerEnded(Unavailable):
    """A connection that has served before is over: another one may well be had."""


class PeerFails(Unavailable):
    """It cannot be reached, fell silent, went away in the middle, or answers what makes no sense."""


@dataclass(frozen=True, slots=True)
class StreamLimits:
    """A stream that brings less than `least_bytes` in `stall_s` counts as stalled, unless less was left to come."""

    connect_s: float = 2.0
    stall_s: float = 2.0
    least_bytes: int = 64 << 10


class PeerConnection:
    def __init__(self, address: str, node_id: NodeId, trust_domain: TrustDomain, limits: StreamLimits, clock: Clock) -> None:
        """Connects and says hello; the welcome is read with the first answer, so that it costs no round trip.

        Raises:
            PeerFails: it cannot be reached.
        """
        self._address = address
        self._limits = limits
        self._clock = clock
        self._welcomed = False
        try:
            self._socket = socket.create_connection(split_address(address), timeout=limits.connect_s)
        except (OSError, ValueError) as error:
            raise PeerFails(f"peer {address}: {error}") from error
        self._socket.setblocking(True)
        limit_waiting(self._socket, limits.stall_s, limits.stall_s)
        self._hello = codec.encode_hello(node_id, trust_domain)

    def size_of(self, digest: Digest) -> int:
        """Raises: PeerLacks, PeerBusy, PeerEnded, PeerFails."""
        return self._ask(Ask(Wish.SIZE, digest)).size_bytes

    def pull(self, writer: Writer, moved: Callable[[int], None]) -> None:
        """Brings what `writer` lacks of its blob; `moved` hears of each part and may raise to end it. What came before an error stays
        in the writer. The connection must not be used again after an error other than `PeerLacks`.

        Raises:
            PeerLacks, PeerDiffers, PeerBusy, PeerEnded, PeerFails.
            ResourceExhausted: the store's file system is full.
        """
        found = self._ask(Ask(Wish.SEND, writer.digest, writer.written_bytes))
        if found.size_bytes != writer.size_bytes:
            raise PeerDiffers(f"peer {self._address} says that blob {writer.digest} has {found.size_bytes} bytes, not {writer.size_bytes}")
        window_ends_s, in_window = self._clock.monotonic_s() + self._limits.stall_s, 0
        while (left := writer.size_bytes - writer.written_bytes) > 0:
            try:
                count = writer.pull(self._socket.fileno(), min(left, PULL_BYTES))
            except BlockingIOError as error:
                raise self._stalled(writer) from error
            except OSError as error:
                raise PeerFails(f"peer {self._address}: {error}") from error
            if count == 0:
                raise PeerFails(f"peer {self._address} went away with {left} bytes of blob {writer.digest} to come")
            moved(count)
            in_window += count
            now_s = self._clock.monotonic_s()
            if now_s >= window_ends_s:
                if in_window < self._limits.least_bytes and writer.written_bytes < writer.size_bytes:
                    raise self._stalled(writer)
                window_ends_s, in_window = now_s + self._limits.stall_s, 0

    def close(self) -> None:
        self._socket.close()

    def _ask(self, ask: Ask) -> AnswerHead:
        served = self._welcomed
        try:
            hello, self._hello = self._hello, b""
            self._socket.sendall(hello + codec.encode_ask(ask))
            if not self._welcomed:
                self._read_welcome()
            head = codec.decode_answer_head(read_exactly(self._socket, codec.ANSWER_HEAD.size))
            words = read_exactly(self._socket, head.words_bytes).decode(errors="replace")
        except ConnectionError as error:
            raise self._turned_away(error, served) from error
        except BlockingIOError as error:
            raise PeerFails(f"peer {self._address} did not answer within {self._limits.stall_s:g} s") from error
        except (PeerBusy, PeerFails):
            raise
        except Unavailable as error:
            raise (PeerEnded if served else PeerFails)(f"peer {self._address}: {error}") from error
        except (OSError, InvalidInput) as error:
            raise PeerFails(f"peer {self._address}: {error}") from error
        if head.finding is Finding.NOT_HERE:
            raise PeerLacks(f"peer {self._address} has no blob {ask.digest}")
        if head.finding is Finding.ERROR:
            raise PeerFails(f"peer {self._address}: {words}")
        return head

    def _read_welcome(self) -> None:
        verdict, length = codec.decode_welcome_head(read_exactly(self._socket, codec.WELCOME_HEAD.size))
        words = read_exactly(self._socket, length).decode(errors="replace")
        if verdict is Verdict.BUSY:
            raise PeerBusy(f"peer {self._address} is busy: {words}")
        if verdict is Verdict.REFUSED:
            raise PeerFails(f"peer {self._address} refuses: {words}")
        self._welcomed = True

    def _turned_away(self, error: OSError, served: bool) -> TesseraError:
        """Who is turned away while he is still asking finds the connection reset, and the reason in what had arrived before."""
        if served:
            return PeerEnded(f"peer {self._address}: {error}")
        if not self._welcomed:
            try:
                self._read_welcome()
            except PeerBusy as busy:
                return busy
            except (OSError, TesseraError):
                pass
        return PeerFails(f"peer {self._address}: {error}")

    def _stalled(self, writer: Writer) -> PeerFails:
        return PeerFails(
            f"peer {self._address} stalled at {writer.written_bytes} of {writer.size_bytes} bytes of blob {writer.digest}: "
            f"less than {self._limits.least_bytes} bytes in {self._limits.stall_s:g} s"
        )
