"""The asking side of a control socket: requests by number, replies as results or as the domain error they carry."""

from __future__ import annotations

import asyncio
import socket
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

from tessera.domain.errors import InvalidInput, Unavailable
from tessera.runtime.control import ControlDecoder, Message, answer_of, encode

_PEER = struct.Struct("iII")
"""pid, user id, group id (unix(7), SO_PEERCRED)."""


class ControlClient(asyncio.Protocol):
    """One connection. Calls may overlap. `on_event` hears what the other side says unasked, `on_event` of a call what it says before the
    answer."""

    def __init__(self, name: str) -> None:
        self.on_event: Callable[[Message], None] = lambda message: None
        self._name = name
        self._transport: asyncio.Transport | None = None
        self._decoder = ControlDecoder()
        self._waiting: dict[int, asyncio.Future[Message]] = {}
        self._listening: dict[int, Callable[[Message], None]] = {}
        self._next_id = 0

    @classmethod
    async def connect(cls, path: Path, name: str, timeout_s: float) -> ControlClient:
        """`name` is what error messages say.

        Raises:
            Unavailable: nobody listens there, or nobody takes the connection in time.
        """
        try:
            async with asyncio.timeout(timeout_s):
                _, client = await asyncio.get_running_loop().create_unix_connection(lambda: cls(name), str(path))
        except (OSError, TimeoutError) as error:
            raise Unavailable(f"{name} cannot be reached at {path}: {error or type(error).__name__}") from error
        return client

    @property
    def closed(self) -> bool:
        return self._transport is None or self._transport.is_closing()

    @property
    def peer_pid(self) -> int:
        """The process that listens there, as this process sees it; 0 when it lives where we cannot see it, or the connection is closed."""
        return self._peer()[0]

    @property
    def peer_user(self) -> int:
        """Its user id, as the kernel has it; -1 when the connection is closed."""
        return self._peer()[1]

    def _peer(self) -> tuple[int, int]:
        if self._transport is None or self._transport.is_closing():
            return 0, -1
        raw: bytes = self._transport.get_extra_info("socket").getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _PEER.size)
        pid, user, _ = _PEER.unpack(raw)
        return pid, user

    async def call(self, op: str, timeout_s: float, on_event: Callable[[Message], None] | None = None, **fields: Any) -> Message:
        """Sends a request and waits for its answer.

        Raises:
            Unavailable: the connection is or gets lost, or `timeout_s` passes.
            TesseraError: what the other side answered.
        """
        if self._transport is None or self._transport.is_closing():
            raise Unavailable(f"{self._name}: its control connection is closed")
        self._next_id += 1
        number = self._next_id
        future: asyncio.Future[Message] = asyncio.get_running_loop().create_future()
        self._waiting[number] = future
        if on_event is not None:
            self._listening[number] = on_event
        try:
            self._transport.write(encode({"id": number, "op": op, **fields}))
            async with asyncio.timeout(timeout_s):
                message = await future
        except TimeoutError as error:
            raise Unavailable(f"{self._name} did not answer {op!r} within {timeout_s:g} s") from error
        finally:
            self._waiting.pop(number, None)
            self._listening.pop(number, None)
        return answer_of(message)

    def close(self) -> None:
        if self._transport is not None:
            self._transport.close()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is none by inheritance

    def data_received(self, data: bytes) -> None:
        try:
            for message in self._decoder.feed(data):
                if "event" in message:
                    listener = self._listening.get(message["id"], _deaf) if "id" in message else self.on_event
                    listener(message)
                    continue
                future = self._waiting.get(message.get("id", 0))  # answers that nobody waits for any more are passed over
                if future is not None and not future.done():
                    future.set_result(message)
        except InvalidInput as error:
            self._fail(str(error))
            self.close()

    def connection_lost(self, error: Exception | None) -> None:
        self._transport = None
        self._fail("its control connection was lost")

    def _fail(self, reason: str) -> None:
        for future in self._waiting.values():
            if not future.done():
                future.set_exception(Unavailable(f"{self._name}: {reason}"))


def _deaf(message: Message) -> None:
    """Nobody waits for the answer any more."""
