"""The address, the token, health, and a stop that lets calls end."""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path
from typing import Any

import grpc.aio
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from tessera.domain.errors import FailedPrecondition, InvalidInput, Unauthenticated, Unavailable
from tessera.rpc import HEALTH_SERVICE, RpcServer, connect, connect_sync

SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING
UNARY = "/tessera.test.v1.Echo/Unary"
STREAM_OUT = "/tessera.test.v1.Echo/StreamOut"


async def test_port_zero_becomes_a_port(start_server: Any) -> None:
    server = await start_server()
    assert server.port > 0
    assert server.address == f"127.0.0.1:{server.port}"
    other = await start_server()
    assert other.port != server.port


async def test_a_port_in_use_is_named(start_server: Any, server: RpcServer) -> None:
    with pytest.raises(FailedPrecondition, match=server.address):
        await start_server(server.address)


async def test_an_address_that_is_not_ours_is_named(start_server: Any) -> None:
    with pytest.raises(FailedPrecondition, match=r"256\.1\.1\.1:80"):
        await start_server("256.1.1.1:80")


async def test_the_port_is_free_after_a_stop(start_server: Any, server: RpcServer) -> None:
    address = server.address
    await server.stop(0)
    again = await start_server(address)
    assert again.address == address


async def test_a_unix_socket(start_server: Any, tmp_path: Path) -> None:
    server = await start_server(f"unix:{tmp_path}/s")
    assert server.port == 0
    async with connect(server.address) as channel:
        assert await channel.unary_unary(UNARY)(b"ok") == b"ok"


async def test_without_the_token_only_health_answers(start_server: Any) -> None:
    server = await start_server(token="right")
    for token in (None, "wrong", "righ", "rightt"):
        async with connect(server.address, token) as channel:
            with pytest.raises(Unauthenticated, match="Bearer"):
                await channel.unary_unary(UNARY)(b"ok")
            with pytest.raises(Unauthenticated):
                _ = [message async for message in channel.unary_stream(STREAM_OUT)(b"count 3")]
            answer = await health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest())
            assert answer.status == SERVING
    async with connect(server.address, "right") as channel:
        assert await channel.unary_unary(UNARY)(b"ok") == b"ok"
        assert [message async for message in channel.unary_stream(STREAM_OUT)(b"count 2")] == [b"0", b"1"]


async def test_a_token_of_the_call_wins_over_the_channel(start_server: Any) -> None:
    server = await start_server(token="right")
    async with connect(server.address, "wrong") as channel:
        assert await channel.unary_unary(UNARY)(b"ok", metadata=(("authorization", "Bearer right"),)) == b"ok"


@pytest.mark.parametrize("token", ["", "two\nlines", "naïve", "x" * 5000])
def test_a_token_that_no_header_carries_is_refused_unseen(token: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        connect_sync("127.0.0.1:1", token)
    assert not token or token not in str(caught.value)


async def test_health_follows_and_ends_in_not_serving(server: RpcServer, channel: grpc.aio.Channel) -> None:
    health = health_pb2_grpc.HealthStub(channel)
    watch = health.Watch(health_pb2.HealthCheckRequest(service="tessera.test.v1.Echo"))
    assert (await watch.read()).status == SERVING
    assert (await health.Check(health_pb2.HealthCheckRequest(service=HEALTH_SERVICE))).status == SERVING
    await server.set_serving(False, "tessera.test.v1.Echo")
    assert (await watch.read()).status == NOT_SERVING
    await server.set_serving(True, "tessera.test.v1.Echo")
    assert (await watch.read()).status == SERVING
    await server.drain()
    assert (await watch.read()).status == NOT_SERVING
    await server.set_serving(True)
    assert (await health.Check(health_pb2.HealthCheckRequest())).status == NOT_SERVING
    watch.cancel()


async def test_stop_lets_a_call_end(start_server: Any, echo: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    go_on = asyncio.Event()

    async def slow(text: str, _context: Any) -> str:
        echo.started.set()
        await go_on.wait()
        return text

    monkeypatch.setattr(echo, "_act", slow)
    server = await start_server()
    async with connect(server.address) as channel:
        unary = channel.unary_unary(UNARY)
        call = asyncio.ensure_future(unary(b"last"))
        await asyncio.wait_for(echo.started.wait(), 5)
        stopping = asyncio.ensure_future(server.stop(10))
        await asyncio.sleep(0.05)
        assert not stopping.done()
        with pytest.raises(Unavailable):
            await unary(b"too late", timeout=5)
        go_on.set()
        assert await call == b"last"
        await asyncio.wait_for(stopping, 5)


async def test_stop_cancels_what_does_not_end(server: RpcServer, client: Any, echo: Any, caplog: pytest.LogCaptureFixture) -> None:
    call = asyncio.ensure_future(client.unary(b"wait"))
    await asyncio.wait_for(echo.started.wait(), 5)
    with caplog.at_level(logging.ERROR):
        await server.stop(0.05)
        with pytest.raises(Unavailable):
            await call
        await asyncio.wait_for(echo.cancelled.wait(), 5)
    assert not caplog.records
    await server.stop(0)


async def test_a_call_without_timeout_gets_the_default_one(server: RpcServer) -> None:
    async with connect(server.address, default_deadline_s=33, stream_deadline_s=44) as channel:
        unary = channel.unary_unary(UNARY)(b"wait")
        remaining = unary.time_remaining()
        assert remaining is not None
        assert 25 < remaining <= 33
        unary.cancel()
        stream = channel.unary_stream(STREAM_OUT)(b"wait")
        remaining = stream.time_remaining()
        assert remaining is not None
        assert 36 < remaining <= 44
        stream.cancel()
        given = channel.unary_unary(UNARY)(b"wait", timeout=7)
        remaining = given.time_remaining()
        assert remaining is not None
        assert remaining <= 7
        given.cancel()
        both = channel.stream_stream("/tessera.test.v1.Echo/Both")()
        assert both.time_remaining() is None
        both.cancel()


async def test_methods_that_generated_code_registers_by_name_need_the_token_too() -> None:
    async def answer(request: bytes, _context: Any) -> bytes:
        return request

    def add(server: grpc.aio.Server) -> None:
        handlers = {"Unary": grpc.unary_unary_rpc_method_handler(answer)}
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("tessera.test.v1.Echo", handlers),))
        server.add_registered_method_handlers("tessera.test.v1.Echo", handlers)

    server = RpcServer("127.0.0.1:0", handlers=[add], service_names=["tessera.test.v1.Echo"], token="secret")
    await server.start()
    async with connect(server.address) as stranger, connect(server.address, "secret") as friend:
        with pytest.raises(Unauthenticated):
            await stranger.unary_unary(UNARY)(b"hello")
        assert await friend.unary_unary(UNARY)(b"hello") == b"hello"
    await server.stop(0)
