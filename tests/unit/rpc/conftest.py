"""A server whose methods do what the request says, over a loopback port, and channels to it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any

import grpc
import grpc.aio
import pytest

from tessera.domain.errors import error_of
from tessera.rpc import RpcServer, abort, connect

SERVICE = "tessera.test.v1.Echo"


class Echo:
    """Requests are text: "ok", "raise KIND", "bug", "abort", "wait", "count N", "raise-after N KIND", "flood". Keeps what befell it."""

    def __init__(self) -> None:
        self.cancelled = asyncio.Event()
        self.started = asyncio.Event()
        self.closed_by: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        self.metadata: list[dict[str, Any]] = []

    async def _act(self, text: str, context: Any) -> str:
        self.metadata.append(dict(context.invocation_metadata()))
        word, _, rest = text.partition(" ")
        if word == "raise":
            raise error_of(rest, f"about {rest}")
        if word == "bug":
            raise ZeroDivisionError("secret detail")
        if word == "abort":
            await context.abort(grpc.StatusCode.NOT_FOUND, "by hand")
        if word == "abort-kind":
            await abort(context, error_of(rest, "by hand"))
        if word == "wait":
            self.started.set()
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                self.cancelled.set()
                raise
        return text

    async def unary(self, request: bytes, context: Any) -> bytes:
        return (await self._act(request.decode(), context)).encode()

    async def stream_out(self, request: bytes, context: Any) -> AsyncIterator[bytes]:
        text = request.decode()
        word, _, rest = text.partition(" ")
        if word in {"count", "raise-after"}:
            number, _, kind = rest.partition(" ")
            for position in range(int(number)):
                yield str(position).encode()
            if kind:
                await self._act(f"raise {kind}", context)
            return
        if word == "flood":
            task = asyncio.current_task()
            try:
                while True:
                    yield bytes(1 << 20)
            finally:
                self.closed_by.set_result(asyncio.current_task() is task)
        if word == "then-wait":
            yield b"first"
            await self._act("wait", context)
        yield (await self._act(text, context)).encode()

    async def written_out(self, request: bytes, context: Any) -> None:
        await context.write(b"first")
        await context.write((await self._act(request.decode(), context)).encode())

    async def stream_in(self, requests: AsyncIterator[bytes], context: Any) -> bytes:
        seen = [await self._act(request.decode(), context) async for request in requests]
        return ",".join(seen).encode()

    async def both(self, requests: AsyncIterator[bytes], context: Any) -> AsyncIterator[bytes]:
        async for request in requests:
            yield (await self._act(request.decode(), context)).encode()

    def add(self, server: grpc.aio.Server) -> None:
        handlers = {
            "Unary": grpc.unary_unary_rpc_method_handler(self.unary),
            "Untouched": grpc.unary_unary_rpc_method_handler(self.unary),
            "StreamOut": grpc.unary_stream_rpc_method_handler(self.stream_out),
            "WrittenOut": grpc.unary_stream_rpc_method_handler(self.written_out),
            "StreamIn": grpc.stream_unary_rpc_method_handler(self.stream_in),
            "Both": grpc.stream_stream_rpc_method_handler(self.both),
        }
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, handlers),))


class Client:
    """The methods of `Echo`, called through a channel."""

    def __init__(self, channel: Any) -> None:
        self.unary = channel.unary_unary(f"/{SERVICE}/Unary")
        self.untouched = channel.unary_unary(f"/{SERVICE}/Untouched")
        self.missing = channel.unary_unary(f"/{SERVICE}/Missing")
        self.stream_out = channel.unary_stream(f"/{SERVICE}/StreamOut")
        self.written_out = channel.unary_stream(f"/{SERVICE}/WrittenOut")
        self.stream_in = channel.stream_unary(f"/{SERVICE}/StreamIn")
        self.both = channel.stream_stream(f"/{SERVICE}/Both")


StartServer = Callable[..., Any]


@pytest.fixture
async def echo() -> Echo:
    return Echo()


@pytest.fixture
async def start_server(echo: Echo) -> AsyncIterator[StartServer]:
    servers: list[RpcServer] = []

    async def start(address: str = "127.0.0.1:0", **options: Any) -> RpcServer:
        server = RpcServer(address, handlers=[echo.add], service_names=[SERVICE], **options)
        await server.start()
        servers.append(server)
        return server

    yield start
    for server in servers:
        await server.stop(0)


@pytest.fixture
async def server(start_server: StartServer) -> RpcServer:
    started: RpcServer = await start_server(untouched=[f"/{SERVICE}/Untouched"])
    return started


@pytest.fixture
async def channel(server: RpcServer) -> AsyncIterator[grpc.aio.Channel]:
    async with connect(server.address) as channel:
        yield channel


@pytest.fixture
def client(channel: grpc.aio.Channel) -> Client:
    return Client(channel)
