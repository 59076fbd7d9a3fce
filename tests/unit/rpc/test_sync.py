"""The blocking channel, from a thread, against the same server."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import grpc
import pytest

from tessera import telemetry
from tessera.domain import errors
from tessera.rpc import RpcServer, connect_sync, error_of_rpc

ECHO = "/tessera.test.v1.Echo"


async def in_thread(server: RpcServer, use: Any, token: str | None = None) -> Any:
    def work() -> Any:
        with connect_sync(server.address, token) as channel:
            return use(channel)

    return await asyncio.to_thread(work)


async def test_every_shape_answers(server: RpcServer) -> None:
    def use(channel: grpc.Channel) -> list[Any]:
        answer, call = channel.unary_unary(f"{ECHO}/Unary").with_call(b"ok")  # type: ignore[var-annotated]
        assert call.code() is grpc.StatusCode.OK
        return [
            answer,
            channel.unary_unary(f"{ECHO}/Unary")(b"a"),
            list(channel.unary_stream(f"{ECHO}/StreamOut")(b"count 2")),
            channel.stream_unary(f"{ECHO}/StreamIn")(iter([b"x", b"y"])),
            list(channel.stream_stream(f"{ECHO}/Both")(iter([b"p", b"q"]))),
        ]

    assert await in_thread(server, use) == [b"ok", b"a", [b"0", b"1"], b"x,y", [b"p", b"q"]]


@pytest.mark.parametrize("shape", ["unary", "with_call", "stream_out", "stream_in", "both"])
async def test_every_shape_raises_the_domain_error(server: RpcServer, shape: str) -> None:
    text = b"raise stale_term"

    def use(channel: grpc.Channel) -> Any:
        calls: dict[str, Any] = {
            "unary": lambda: channel.unary_unary(f"{ECHO}/Unary")(text),
            "with_call": lambda: channel.unary_unary(f"{ECHO}/Unary").with_call(text),
            "stream_out": lambda: list(channel.unary_stream(f"{ECHO}/StreamOut")(text)),
            "stream_in": lambda: channel.stream_unary(f"{ECHO}/StreamIn")(iter([text])),
            "both": lambda: list(channel.stream_stream(f"{ECHO}/Both")(iter([text]))),
        }
        return calls[shape]()

    with pytest.raises(errors.StaleTerm, match="about stale_term"):
        await in_thread(server, use)


async def test_a_future_gives_the_plain_error_which_can_be_turned(server: RpcServer) -> None:
    def use(channel: grpc.Channel) -> errors.TesseraError:
        future = channel.unary_unary(f"{ECHO}/Unary").future(b"raise conflict")  # type: ignore[var-annotated]
        with pytest.raises(grpc.RpcError) as caught:
            future.result()
        return error_of_rpc(caught.value)

    assert isinstance(await in_thread(server, use), errors.Conflict)


async def test_cancelling_a_stream(server: RpcServer, echo: Any) -> None:
    def use(channel: grpc.Channel) -> Iterator[bytes]:
        stream: Any = channel.unary_stream(f"{ECHO}/StreamOut")(b"then-wait")
        assert next(stream) == b"first"
        stream.cancel()
        with pytest.raises(errors.Cancelled):
            next(stream)
        return iter(())

    await in_thread(server, use)
    await asyncio.wait_for(echo.cancelled.wait(), 5)


async def test_token_and_trace_context_are_sent(start_server: Any, echo: Any) -> None:
    server = await start_server(token="right")
    with telemetry.span("outside"):
        trace_id = telemetry.current_trace_id()
        assert await in_thread(server, lambda channel: channel.unary_unary(f"{ECHO}/Unary")(b"ok"), "right") == b"ok"
    assert echo.metadata[-1]["traceparent"].split("-")[1] == trace_id
    with pytest.raises(errors.Unauthenticated):
        await in_thread(server, lambda channel: channel.unary_unary(f"{ECHO}/Unary")(b"ok"), "wrong")


async def test_nobody_there_is_unavailable(server: RpcServer) -> None:
    await server.stop(0)
    with pytest.raises(errors.Unavailable):
        await in_thread(server, lambda channel: channel.unary_unary(f"{ECHO}/Unary")(b"ok", timeout=5))
