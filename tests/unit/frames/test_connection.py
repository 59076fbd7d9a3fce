from __future__ import annotations

import asyncio
import contextlib
import struct

import pytest

from tessera.domain.errors import Cancelled, FailedPrecondition, Internal, InvalidInput, TooLarge, Unavailable, WrongGeneration
from tessera.frames import FrameClient, FrameResponse, FrameServer, RequestHeader, codec
from tessera.frames.codec import Hello
from tessera.frames.reader import FrameDecoder

HEADER = RequestHeader(generation=5, budget_us=1_000_000, trace_id=b"t" * 16, span_id=b"s" * 8, flags=1)
KIB = 1024
MIB = 1024 * KIB


@contextlib.asynccontextmanager
async def pair(folder, handler, *, server=None, client=None, target="runtime-1"):
    path = str(folder / "data.sock")
    listening = await FrameServer.serve_unix(path, handler, target=target, **(server or {}))
    asking = await FrameClient.connect_unix(path, target=target, **(client or {}))
    try:
        yield asking, listening
    finally:
        asking.close()
        await listening.close()


async def echo(header, body):
    return FrameResponse(0, 1, 2, 0, 3, body)


@pytest.mark.parametrize("size", [0, 1, KIB, 256 * KIB, 256 * KIB + 1, 600_000, 9 * MIB])
async def test_body_of_any_size_comes_back(socket_folder, size):
    body = bytes(range(256)) * (size // 256) + b"z" * (size % 256)
    seen = []

    async def handler(header, received):
        seen.append(header)
        return FrameResponse(0, 1, 2, 0, 3, received)

    async with pair(socket_folder, handler) as (client, _):
        response = await client.request(HEADER, body)
        assert bytes(response.body) == body
        assert (response.status, response.batch_size, response.queue_us, response.run_us) == (0, 1, 2, 3)
        assert seen == [HEADER]
        assert client.in_flight == 0


@pytest.mark.parametrize("window", [1000, 8 * MIB])
@pytest.mark.parametrize("size", [0, 1, KIB, 200 * KIB, 600_000])
async def test_a_suffix_ends_the_body_of_an_answer_and_none_of_an_error(socket_folder, size, window):
    async def handler(header, body):
        if bytes(body[:1]) == b"!":
            raise InvalidInput("x", None, "y" * size)
        return FrameResponse(0, body=body)

    async with pair(socket_folder, handler, client={"window_bytes": window}) as (client, _):
        body = (await client.request(HEADER, b"z" * size, b"suffix")).body
        assert type(body) is bytes
        assert body == b"z" * size + b"suffix"
        assert str((await client.request(HEADER, b"!", b"suffix")).error()).endswith("y" * min(size, 10))


@pytest.mark.parametrize("window", [1000, 100 * KIB, 8 * MIB])
async def test_many_sizes_at_once_under_any_window(socket_folder, window):
    """Large and small ones interleave and nothing locks up, also where the window is far below a message."""

    async def handler(header, body):
        await asyncio.sleep(0)
        return FrameResponse(0, body=bytes(body)[::-1])

    options = {"window_bytes": window, "max_message_bytes": 2 * MIB}
    async with pair(socket_folder, handler, server=options, client=options) as (client, server):
        bodies = [struct.pack("<I", n) * size for n, size in enumerate([1, 200_000, 5, 90_000, 300_000, 1000, 70_000, 0, 400_000])]
        async with asyncio.timeout(30):
            answers = await asyncio.gather(*(client.request(HEADER, body) for body in bodies))
        assert [bytes(answer.body) for answer in answers] == [body[::-1] for body in bodies]
        assert server.in_flight == 0


async def test_small_request_passes_a_large_one(socket_folder):
    order = []

    async def handler(header, body):
        order.append(len(body))
        return FrameResponse(0)

    options = {"window_bytes": 300 * KIB}
    async with pair(socket_folder, handler, server=options) as (client, _):
        large = client.request(HEADER, b"l" * 8 * MIB)
        await asyncio.sleep(0)
        await asyncio.gather(large, client.request(HEADER, b"s"))
    assert order == [1, 8 * MIB]


async def test_receiver_withholds_credit_beyond_its_budget_and_goes_on_when_answered(socket_folder):
    gate = asyncio.Event()
    started = []

    async def handler(header, body):
        started.append(len(body))
        await gate.wait()
        return FrameResponse(0)

    options = {"window_bytes": MIB, "max_message_bytes": MIB, "held_budget_bytes": 3 * MIB}
    async with pair(socket_folder, handler, server=options) as (client, _):
        requests = [client.request(HEADER, b"x" * MIB) for _ in range(12)]
        await asyncio.sleep(0.3)
        assert 3 <= len(started) <= 5, "the sender must stop near the receiver's budget"
        gate.set()
        async with asyncio.timeout(10):
            await asyncio.gather(*requests)
    assert len(started) == 12


async def test_cancelling_the_caller_cancels_the_handler(socket_folder):
    entered, cancelled = asyncio.Event(), asyncio.Event()

    async def handler(header, body):
        if bytes(body) == b"quick":
            return FrameResponse(0, body=b"answer")
        entered.set()
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            cancelled.set()
            raise
        return FrameResponse(0)

    async with pair(socket_folder, handler) as (client, server):
        request = asyncio.ensure_future(client.request(HEADER, b"slow"))
        await entered.wait()
        assert client.in_flight == 1
        request.cancel()
        with pytest.raises(asyncio.CancelledError):
            await request
        async with asyncio.timeout(5):
            await cancelled.wait()
        assert client.in_flight == 0
        assert bytes((await client.request(HEADER, b"quick")).body) == b"answer"
        assert server.in_flight == 0


async def test_cancelling_half_a_message_gives_the_window_back(socket_folder):
    """What was sent of a cancelled message must not stay spent, else the connection starves after some of them."""
    blocked = asyncio.Event()

    async def handler(header, body):
        await blocked.wait()
        return FrameResponse(0)

    options = {"window_bytes": 300 * KIB, "max_message_bytes": 4 * MIB, "held_budget_bytes": 100 * KIB}
    async with pair(socket_folder, handler, server=options) as (client, server):
        for _ in range(10):
            request = asyncio.ensure_future(client.request(HEADER, b"x" * 4 * MIB))
            await asyncio.sleep(0.02)
            request.cancel()
            with pytest.raises(asyncio.CancelledError):
                await request
        blocked.set()
        async with asyncio.timeout(10):
            response = await client.request(HEADER, b"x" * 64 * KIB)
        assert response.status == 0
        assert server.in_flight == 0


async def test_lost_connection_fails_what_is_in_flight(socket_folder):
    entered = asyncio.Event()

    async def handler(header, body):
        entered.set()
        await asyncio.sleep(60)
        return FrameResponse(0)

    async with pair(socket_folder, handler) as (client, server):
        request = asyncio.ensure_future(client.request(HEADER, b"x"))
        await entered.wait()
        for connection in list(server.connections):
            connection.transport.abort()
        with pytest.raises(Unavailable, match="runtime-1"):
            await request
        assert client.closed
        with pytest.raises(Unavailable):
            await client.request(HEADER, b"x")
        async with asyncio.timeout(5):
            await client.wait_closed()


async def test_goaway_lets_what_is_in_flight_finish_and_takes_nothing_new(socket_folder):
    entered, gate = asyncio.Event(), asyncio.Event()

    async def handler(header, body):
        entered.set()
        await gate.wait()
        return FrameResponse(0, body=b"done")

    async with pair(socket_folder, handler) as (client, server):
        request = asyncio.ensure_future(client.request(HEADER, b"x"))
        await entered.wait()
        closing = asyncio.ensure_future(server.close(drain_s=5, reason="moving house"))
        await asyncio.sleep(0.05)
        assert client.draining
        with pytest.raises(Unavailable, match="moving house"):
            await client.request(HEADER, b"x")
        gate.set()
        assert bytes((await request).body) == b"done"
        await closing


@pytest.mark.parametrize(
    ("raised", "kind", "status"),
    [
        (InvalidInput("inputs.shape", [1], "rank 4"), InvalidInput, 1),
        (WrongGeneration("gone"), WrongGeneration, 2),
        (ValueError("odd"), Internal, 1),
    ],
)
async def test_errors_of_the_handler_are_answers(socket_folder, raised, kind, status):
    async def handler(header, body):
        raise raised

    async with pair(socket_folder, handler) as (client, _):
        response = await client.request(HEADER, b"")
        assert response.status == status
        assert isinstance(response.error(), kind)
        assert str(raised) in str(response.error())


async def test_too_large_is_refused_on_both_sides_without_ending_the_connection(socket_folder):
    async def handler(header, body):
        return FrameResponse(0, body=b"y" * 5000)

    async with pair(socket_folder, handler, server={"max_message_bytes": 1000}, client={"max_message_bytes": 4000}) as (client, _):
        with pytest.raises(TooLarge, match="1001 bytes: at most 1000"):
            await client.request(HEADER, b"x" * 1001)
        answer = (await client.request(HEADER, b"x")).error()
        assert isinstance(answer, TooLarge)
        assert "5000 bytes" in str(answer)
        assert not client.closed


async def test_server_refuses_too_large_a_message_itself(socket_folder):
    async with pair(socket_folder, echo, server={"max_message_bytes": 600_000}) as (client, _):
        client._protocol.max_message_bytes = 1 << 30  # a client that does not keep to it
        answer = (await client.request(HEADER, b"x" * 900_000)).error()
        assert isinstance(answer, TooLarge)
        assert bytes((await client.request(HEADER, b"fine")).body) == b"fine"


async def test_another_target_is_refused_with_both_names(socket_folder):
    path = str(socket_folder / "data.sock")
    server = await FrameServer.serve_unix(path, echo, target="runtime-1")
    with pytest.raises(FailedPrecondition, match="runtime-1, not runtime-2"):
        await FrameClient.connect_unix(path, target="runtime-2")
    await server.close()


async def test_nothing_listening_is_unavailable(socket_folder):
    with pytest.raises(Unavailable, match=r"data\.sock"):
        await FrameClient.connect_unix(str(socket_folder / "data.sock"), target="r")


async def test_who_gives_up_while_the_hello_is_awaited_leaves_no_connection(socket_folder):
    begun, ended = asyncio.Event(), asyncio.Event()

    async def silent(reader, writer):
        begun.set()
        await reader.read()  # until the other side has gone
        ended.set()
        writer.close()

    path = str(socket_folder / "silent.sock")
    server = await asyncio.start_unix_server(silent, path)
    connecting = asyncio.create_task(FrameClient.connect_unix(path))
    async with asyncio.timeout(10):
        await begun.wait()
        connecting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await connecting
        await ended.wait()
    server.close()


async def test_tcp(socket_folder):
    server = await FrameServer.serve_tcp("127.0.0.1", 0, echo)
    client = await FrameClient.connect_tcp("127.0.0.1", server.port, target="whoever")
    assert bytes((await client.request(HEADER, b"over tcp" * 100_000)).body) == b"over tcp" * 100_000
    client.close()
    await server.close()


async def raw_exchange(folder, *pieces) -> list:
    """Frames that the server answers to these bytes before it closes."""
    path = str(folder / "data.sock")
    server = await FrameServer.serve_unix(path, echo, window_bytes=1000, max_message_bytes=100_000)
    reader, writer = await asyncio.open_unix_connection(path)
    writer.write(b"".join(pieces))
    async with asyncio.timeout(5):
        data = await reader.read(-1)
    writer.close()
    await server.close()
    return list(FrameDecoder().feed(data))


HELLO = codec.encode_hello(Hello(""))
FIRST = codec.frame_head(codec.REQUEST, 1, codec.REQUEST_HEADER_BYTES + 4, False) + codec.request_header(HEADER, 10) + b"abcd"


@pytest.mark.parametrize(
    ("pieces", "reason"),
    [
        ((codec.encode_cancel(1),), "must be HELLO"),
        ((codec.encode_frame(0, 0, b"HTTP" + bytes(14)),), "must be b'TSRA'"),
        ((codec.encode_frame(0, 0, b"TSRA" + struct.pack("<HHIIH", 9, 0, 1, 1, 0)),), "version 9: this side speaks version 1"),
        ((HELLO, struct.pack("<IBBHI", 2**31, 1, 0, 0, 1)), "at most"),
        ((HELLO, codec.encode_frame(codec.REQUEST, 1, b"short")), "request header of 5 bytes"),
        ((HELLO, FIRST, codec.frame_head(codec.REQUEST, 1, 9, True), b"x" * 9), "13 bytes: its header said 10"),
        ((HELLO, FIRST, codec.frame_head(codec.REQUEST, 1, 2, True), b"x" * 2), "6 bytes: its header said 10"),
        ((HELLO, codec.whole_request_head(1, HEADER, 2000) + b"x" * 2000), "beyond the credit"),
        ((HELLO, codec.encode_frame(codec.CREDIT, 0, b"12")), "credit of 2 bytes"),
        ((HELLO, HELLO), "may not come now"),
    ],
)
async def test_broken_peers_are_told_why_and_cut_off(socket_folder, pieces, reason):
    frames = await raw_exchange(socket_folder, *pieces)
    assert frames[-1].type == codec.GOAWAY
    assert reason in codec.decode_goaway(frames[-1].payload)


@pytest.mark.parametrize(
    ("answer", "kind", "words"),
    [
        (codec.encode_frame(0, 0, b"TSRA" + struct.pack("<HHIIH", 3, 0, 1, 1, 0)), FailedPrecondition, "version 3"),
        (codec.encode_goaway("full"), FailedPrecondition, "full"),
        (b"", Unavailable, "connection closed"),
    ],
)
async def test_client_names_why_a_server_did_not_take_it(socket_folder, answer, kind, words):
    async def serve(reader, writer):
        await reader.read(100)
        writer.write(answer)
        writer.close()

    path = str(socket_folder / "data.sock")
    server = await asyncio.start_unix_server(serve, path)
    with pytest.raises(kind, match=words):
        await FrameClient.connect_unix(path, target="r")
    server.close()


async def test_answer_on_an_unknown_stream_ends_the_connection(socket_folder):
    async def serve(reader, writer):
        await reader.read(100)
        writer.write(codec.encode_hello(Hello("")) + codec.whole_response_head(99, FrameResponse(0), 0))
        await reader.read(-1)
        writer.close()

    path = str(socket_folder / "data.sock")
    server = await asyncio.start_unix_server(serve, path)
    client = await FrameClient.connect_unix(path, target="r")
    async with asyncio.timeout(5):
        await client.wait_closed()
    with pytest.raises(Unavailable, match="stream 99"):
        await client.request(HEADER, b"")
    server.close()


async def test_cancelled_handler_is_answered_so_that_the_stream_ends(socket_folder):
    async def handler(header, body):
        raise asyncio.CancelledError

    async with pair(socket_folder, handler) as (client, _):
        assert isinstance((await client.request(HEADER, b"")).error(), Cancelled)


@pytest.mark.parametrize("size", [100_000, 700_000])
async def test_a_chunk_longer_than_the_message_is_refused_before_it_is_read(socket_folder, size):
    head = codec.frame_head(codec.REQUEST, 1, codec.REQUEST_HEADER_BYTES + size % 300_000, False) + codec.request_header(HEADER, 50)
    frames = await raw_exchange(socket_folder, HELLO, head, bytes(1000))
    assert frames[-1].type == codec.GOAWAY
    assert "its header said 50" in codec.decode_goaway(frames[-1].payload)
