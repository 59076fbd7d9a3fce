"""Calls in frames: the same errors, budgets and trace context as over gRPC."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from types import SimpleNamespace
from typing import Any

import pytest

from tessera import telemetry
from tessera.api.scheduler.v1 import scheduler_pb2
from tessera.domain.errors import (
    DeadlineExceeded,
    FailedPrecondition,
    Internal,
    InvalidInput,
    NotFound,
    StaleTerm,
    Unavailable,
    Unsupported,
)
from tessera.program import Stop, Tasks
from tessera.rpc import FramedCalls, FramedServer

METHOD = "/tessera.api.scheduler.v1.Scheduler/StartInstance"
Request, Response = scheduler_pb2.StartInstanceRequest, scheduler_pb2.StartInstanceResponse
Behaviour = Callable[[Any, Any], Awaitable[Any]]


@asynccontextmanager
async def serving(behaviour: Behaviour, address: str = "127.0.0.1:0") -> AsyncIterator[FramedServer]:
    server = FramedServer(address, {METHOD: (Request, behaviour)})
    await server.start()
    try:
        yield server
    finally:
        await server.stop(0)


@pytest.fixture
async def calls() -> AsyncIterator[FramedCalls]:
    stop = Stop()
    async with Tasks(stop) as tasks:
        found = FramedCalls(tasks)
        yield found
        found.close()
    assert stop.error is None


async def echo(request: Any, _context: Any) -> Any:
    return Response(instance_id=request.request_id)


async def ask(calls: FramedCalls, address: str, name: str = "r", timeout_s: float = 5.0) -> Any:
    return await calls.call(address, METHOD, Request(request_id=name), Response, timeout_s)


async def test_a_call_is_answered_and_the_connection_is_kept(calls: FramedCalls) -> None:
    async with serving(echo) as server:
        answers = await asyncio.gather(*(ask(calls, server.address, f"r{number}") for number in range(20)))
        assert [answer.instance_id for answer in answers] == [f"r{number}" for number in range(20)]
        assert server._server is not None
        assert len(server._server.connections) == 1


@pytest.mark.parametrize("error", [StaleTerm("term 3 is older than 4"), NotFound("no such thing"), FailedPrecondition("not now")])
async def test_domain_errors_keep_their_class_and_words(calls: FramedCalls, error: Exception) -> None:
    async def refuse(_request: Any, _context: Any) -> Any:
        raise error

    async with serving(refuse) as server:
        with pytest.raises(type(error), match=str(error)):
            await ask(calls, server.address)


async def test_an_unexpected_error_is_internal(calls: FramedCalls) -> None:
    async def fail(_request: Any, _context: Any) -> Any:
        raise ZeroDivisionError("oops")

    async with serving(fail) as server:
        with pytest.raises(Internal, match="ZeroDivisionError in StartInstance") as raised:
            await ask(calls, server.address)
    assert "oops" not in str(raised.value)  # what the log says is not everybody's


async def test_an_unknown_method_is_named_with_those_there_are(calls: FramedCalls) -> None:
    async with serving(echo) as server:
        with pytest.raises(Unsupported, match=r"Other/Method.*StartInstance"):
            await calls.call(server.address, "/x.Other/Method", Request(), Response, 5.0)


async def test_bytes_that_are_no_message_are_refused_by_name(calls: FramedCalls) -> None:
    garbage: Any = SimpleNamespace(SerializeToString=lambda: b"\xff\xff")
    async with serving(echo) as server:
        with pytest.raises(InvalidInput, match="StartInstanceRequest: 2 bytes that are no such message"):
            await calls.call(server.address, METHOD, garbage, Response, 5.0)


async def test_the_deadline_ends_the_call_on_both_sides(calls: FramedCalls) -> None:
    ended = asyncio.Event()

    async def hang(_request: Any, _context: Any) -> Any:
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()

    async with serving(hang) as server:
        with pytest.raises(DeadlineExceeded, match=r"StartInstance at 127\.0\.0\.1:\d+: no answer within 0\.050 s"):
            await ask(calls, server.address, timeout_s=0.05)
        async with asyncio.timeout(5):
            await ended.wait()


async def test_cancelling_the_caller_cancels_the_handler(calls: FramedCalls) -> None:
    begun, ended = asyncio.Event(), asyncio.Event()

    async def hang(_request: Any, _context: Any) -> Any:
        begun.set()
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()

    async with serving(hang) as server, asyncio.timeout(5):
        call = asyncio.get_running_loop().create_task(ask(calls, server.address))
        await begun.wait()
        call.cancel()
        await ended.wait()


async def test_the_trace_goes_through(calls: FramedCalls) -> None:
    seen: list[telemetry.TraceContext | None] = []

    async def look(request: Any, _context: Any) -> Any:
        seen.append(telemetry.current_context())
        return Response()

    async with serving(look) as server:
        with telemetry.span("outer"):
            outer = telemetry.current_context()
            await ask(calls, server.address)
    assert outer is not None
    spans = {span.name: span for span in telemetry.spans_of(outer.trace_id)}
    assert seen[0] is not None
    assert seen[0].trace_id == outer.trace_id
    assert spans["tessera.start_instance"].parent_span_id == outer.span_id


async def test_nobody_there_is_unavailable_and_a_server_that_came_back_is_found(calls: FramedCalls) -> None:
    async with serving(echo) as server:
        address = server.address
        await ask(calls, address)
    with pytest.raises(Unavailable, match=address):
        await ask(calls, address)
    async with serving(echo, address):
        assert (await ask(calls, address, "again")).instance_id == "again"


async def test_a_server_that_goes_lets_what_is_in_flight_end(calls: FramedCalls) -> None:
    begun, go = asyncio.Event(), asyncio.Event()

    async def wait(request: Any, context: Any) -> Any:
        begun.set()
        await go.wait()
        return await echo(request, context)

    async with serving(wait) as server, asyncio.timeout(5):
        call = asyncio.get_running_loop().create_task(ask(calls, server.address, "slow"))
        await begun.wait()
        stopping = asyncio.get_running_loop().create_task(server.stop(5))
        await asyncio.sleep(0)
        go.set()
        assert (await call).instance_id == "slow"
        await stopping


async def test_an_address_in_use_or_malformed_is_named() -> None:
    async with serving(echo) as server:
        with pytest.raises(FailedPrecondition, match=server.address):
            async with serving(echo, server.address):
                pass
    with pytest.raises(FailedPrecondition, match="nowhere"):
        async with serving(echo, "nowhere"):
            pass


async def test_expect_connects_ahead(calls: FramedCalls) -> None:
    async with serving(echo) as server, asyncio.timeout(5):
        assert server._server is not None
        calls.expect(server.address)
        while not server._server.connections:  # noqa: ASYNC110 - the server tells nobody of a connection
            await asyncio.sleep(0.001)
        await ask(calls, server.address)
        assert len(server._server.connections) == 1
