"""A TCP relay between a client and a server that can be cut, frozen and healed: a network fault for one client alone."""

from __future__ import annotations

import asyncio
from contextlib import suppress

_CHUNK_BYTES = 1 << 16


class FaultyProxy:
    """Listens on loopback and relays to `host:port`. Use: `await start()`, then `address`."""

    def __init__(self, host: str, port: int) -> None:
        self._target = (host, port)
        self._port = 0
        self._server: asyncio.Server | None = None
        self._writers: set[asyncio.StreamWriter] = set()
        self._requests_flow = asyncio.Event()
        self._answers_flow = asyncio.Event()
        self._thaw()

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self._port}"

    async def start(self) -> None:
        self._server = await asyncio.start_server(self._relay, "127.0.0.1", self._port)
        self._port = self._server.sockets[0].getsockname()[1]

    async def cut(self) -> None:
        """Refuses new connections and breaks those that are open."""
        if self._server is None:
            return
        server, self._server = self._server, None
        server.close()
        for writer in tuple(self._writers):
            writer.transport.abort()
        self._thaw()
        await server.wait_closed()

    async def heal(self) -> None:
        self._thaw()
        if self._server is None:
            await self.start()

    def freeze(self, *, answers_only: bool = False) -> None:
        """Connections stay open, and nothing passes any more; or requests still do, and their answers do not."""
        if not answers_only:
            self._requests_flow.clear()
        self._answers_flow.clear()

    def _thaw(self) -> None:
        self._requests_flow.set()
        self._answers_flow.set()

    async def _relay(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writers.add(writer)
        try:
            with suppress(OSError):
                far_reader, far_writer = await asyncio.open_connection(*self._target)
                self._writers.add(far_writer)
                try:
                    async with asyncio.TaskGroup() as group:
                        group.create_task(self._pump(reader, far_writer, self._requests_flow))
                        group.create_task(self._pump(far_reader, writer, self._answers_flow))
                finally:
                    self._writers.discard(far_writer)
                    far_writer.transport.abort()
        finally:
            self._writers.discard(writer)
            writer.transport.abort()

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, flow: asyncio.Event) -> None:
        """Copies until either side ends; then both are ended, as for the ends of a cut wire."""
        try:
            while data := await reader.read(_CHUNK_BYTES):
                await flow.wait()
                writer.write(data)
                await writer.drain()
        except OSError:
            pass
        finally:
            writer.transport.abort()
