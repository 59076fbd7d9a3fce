"""Errors cross the wire by kind, for every shape of call, and cancellation stays cancellation."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import Any

import grpc
import grpc.aio
import pytest

from tessera.domain import errors
from tessera.rpc import KIND_METADATA, RpcServer, connect, status_of
from tessera.rpc._status import error_of_status, shortened

KINDS = sorted(errors._all_kinds(errors.TesseraError))


async def requests(*texts: str) -> AsyncIterator[bytes]:
    for text in texts:
        yield text.encode()


async def call_unary(client: Any, text: str) -> list[bytes]:
    return [await client.unary(text.encode())]


async def call_untouched(client: Any, text: str) -> list[bytes]:
    return [await client.untouched(text.encode())]


async def call_stream_out(client: Any, text: str) -> list[bytes]:
    return [message async for message in client.stream_out(text.encode())]


async def call_written_out(client: Any, text: str) -> list[bytes]:
    return [message async for message in client.written_out(text.encode())]


async def call_stream_in(client: Any, text: str) -> list[bytes]:
    return [await client.stream_in(requests("ok", text))]


async def call_both(client: Any, text: str) -> list[bytes]:
    return [message async for message in client.both(requests("ok", text))]


Shape = Callable[[Any, str], Coroutine[Any, Any, list[bytes]]]
SHAPES = [call_unary, call_stream_out, call_written_out, call_stream_in, call_both]


@pytest.mark.parametrize("shape", SHAPES)
async def test_every_kind_comes_back_as_its_class(client: Any, shape: Shape) -> None:
    for kind in KINDS:
        with pytest.raises(errors.TesseraError) as caught:
            await shape(client, f"raise {kind}")
        assert type(caught.value) is type(errors.error_of(kind, ""))
        assert str(caught.value) == f"about {kind}"
        assert caught.value.__suppress_context__, "a gRPC error must not show below the domain's"


@pytest.mark.parametrize("shape", SHAPES)
async def test_unexpected_error_is_internal_and_logged_but_not_told(client: Any, shape: Shape, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(errors.Internal) as caught:
        await shape(client, "bug")
    assert "ZeroDivisionError" in str(caught.value)
    assert "secret detail" not in str(caught.value)
    logged = capsys.readouterr().err
    assert "secret detail" in logged
    assert "Traceback" in logged


@pytest.mark.parametrize("shape", SHAPES)
async def test_abort_by_hand_keeps_its_status(client: Any, shape: Shape, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING), pytest.raises(errors.NotFound, match="by hand"):
        await shape(client, "abort")
    assert not [record for record in caplog.records if record.levelno >= logging.ERROR]


async def test_abort_with_kind_in_an_untouched_method(client: Any) -> None:
    assert await client.untouched(b"ok") == b"ok"
    with pytest.raises(errors.StaleTerm, match="by hand"):
        await client.untouched(b"abort-kind stale_term")


async def test_stream_delivers_what_came_before_the_error(client: Any) -> None:
    seen: list[bytes] = []

    async def collect() -> None:
        async for message in client.stream_out(b"raise-after 3 data_corrupted"):
            seen.append(message)  # noqa: PERF401 - what arrived before the error is the point

    with pytest.raises(errors.DataCorrupted):
        await collect()
    assert seen == [b"0", b"1", b"2"]


async def test_read_and_write_translate_too(client: Any) -> None:
    call = client.both()
    await call.write(b"ok")
    assert await call.read() == b"ok"
    await call.write(b"raise conflict")
    with pytest.raises(errors.Conflict):
        await call.read()
    assert await call.code() is grpc.StatusCode.ABORTED
    assert (KIND_METADATA, "conflict") in tuple(await call.trailing_metadata())

    call = client.stream_out(b"count 1")
    assert await call.read() == b"0"
    assert await call.read() is grpc.aio.EOF

    call = client.stream_in()
    await call.write(b"a")
    await call.write(b"b")
    await call.done_writing()
    assert await call == b"a,b"


async def test_unknown_method_is_unsupported(client: Any) -> None:
    with pytest.raises(errors.Unsupported):
        await client.missing(b"")


async def test_nobody_there_is_unavailable(server: RpcServer, client: Any) -> None:
    await server.stop(0)
    with pytest.raises(errors.Unavailable):
        await client.unary(b"ok", timeout=5)


@pytest.mark.parametrize("shape", [call_unary, call_stream_out, call_stream_in, call_both])
async def test_cancelling_the_caller_cancels_the_handler(client: Any, echo: Any, shape: Shape) -> None:
    task = asyncio.create_task(shape(client, "wait"))
    await asyncio.wait_for(echo.started.wait(), 5)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await asyncio.wait_for(echo.cancelled.wait(), 5)


@pytest.mark.parametrize("shape", SHAPES)
async def test_a_cancelled_dependency_is_an_answer_not_a_silence(
    client: Any, echo: Any, shape: Shape, monkeypatch: pytest.MonkeyPatch
) -> None:
    shared: asyncio.Future[str] = asyncio.get_running_loop().create_future()
    shared.cancel()

    async def wait_for_shared(_text: str, _context: Any) -> str:
        return await shared

    monkeypatch.setattr(echo, "_act", wait_for_shared)
    with pytest.raises(errors.Unavailable, match="waited for was cancelled"):
        await asyncio.wait_for(shape(client, "ok"), 5)


@pytest.mark.parametrize("text", ["wait", "then-wait"])
async def test_leaving_a_stream_cancels_the_handler(client: Any, echo: Any, text: str) -> None:
    call = client.stream_out(text.encode())
    if text == "then-wait":
        assert await call.read() == b"first"
    await asyncio.wait_for(echo.started.wait(), 5)
    call.cancel()
    await asyncio.wait_for(echo.cancelled.wait(), 5)


async def test_a_stream_cut_while_sending_cleans_up_in_its_own_task(client: Any, echo: Any) -> None:
    call = client.stream_out(b"flood")
    assert len(await call.read()) == 1 << 20
    # Nobody reads on: the server now waits for window, outside of the handler's code.
    await asyncio.sleep(0.1)
    call.cancel()
    assert await asyncio.wait_for(echo.closed_by, 5)


@pytest.mark.parametrize("shape", [call_unary, call_untouched])
async def test_deadline_of_the_caller_ends_both_sides(client: Any, echo: Any, shape: Shape) -> None:
    method = client.unary if shape is call_unary else client.untouched
    with pytest.raises(errors.DeadlineExceeded):
        await method(b"wait", timeout=0.2)
    await asyncio.wait_for(echo.cancelled.wait(), 5)


async def test_too_large_a_message_says_so(start_server: Any) -> None:
    server = await start_server(max_message_bytes=1000)
    async with connect(server.address) as channel:
        unary = channel.unary_unary("/tessera.test.v1.Echo/Unary")
        with pytest.raises(errors.TooLarge, match="larger than max") as caught:
            await unary(b"x" * 200_000)
        assert not caught.value.retryable
        assert await unary(b"x" * 1000) == b"x" * 1000


def test_every_kind_has_a_code_and_a_way_back() -> None:
    for kind in KINDS:
        code, message, metadata = status_of(errors.error_of(kind, "words"))
        assert code is not grpc.StatusCode.UNKNOWN
        assert error_of_status(code, message, metadata).kind == kind


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        (grpc.StatusCode.INVALID_ARGUMENT, "invalid_input"),
        (grpc.StatusCode.OUT_OF_RANGE, "invalid_input"),
        (grpc.StatusCode.ABORTED, "conflict"),
        (grpc.StatusCode.RESOURCE_EXHAUSTED, "resource_exhausted"),
        (grpc.StatusCode.UNIMPLEMENTED, "unsupported"),
        (grpc.StatusCode.UNKNOWN, "internal"),
    ],
)
def test_a_foreign_status_maps_by_its_code(code: grpc.StatusCode, kind: str) -> None:
    assert error_of_status(code, "words", ()).kind == kind
    assert error_of_status(code, "words", ((KIND_METADATA, "a-kind-of-the-future"),)).kind == kind


def test_a_long_message_fits_into_a_header() -> None:
    assert shortened("a" * 4096) == "a" * 4096
    assert shortened("a" * 5000) == "a" * 4096 + "..."
    assert len(shortened("ü%\n" * 5000)) < 1500


async def test_a_long_message_arrives(client: Any, echo: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    async def fail(_text: str, _context: Any) -> str:
        raise errors.Conflict("é" * 100_000)

    monkeypatch.setattr(echo, "_act", fail)
    with pytest.raises(errors.Conflict) as caught:
        await client.unary(b"")
    assert str(caught.value).endswith("é...")
