from __future__ import annotations

import asyncio
import contextlib

import pytest

from tessera.frames import FrameClient, FrameResponse, FrameServer, RequestHeader
from tessera.frames.codec import Hello, encode_hello

HEADER = RequestHeader(generation=5, budget_us=1_000_000)
KIB = 1024
MIB = 1024 * KIB


@contextlib.asynccontextmanager
async def answering(folder, size, kind="unix", **client):
    """A server, a client, and a request whose handler has just answered."""
    answered = asyncio.Event()

    async def handler(header, body):
        answered.set()
        return FrameResponse(0, body=bytes(size))

    if kind == "unix":
        path = str(folder / "data.sock")
        server = await FrameServer.serve_unix(path, handler)
        asking = await FrameClient.connect_unix(path, **client)
    else:
        server = await FrameServer.serve_tcp("127.0.0.1", 0, handler)
        asking = await FrameClient.connect_tcp("127.0.0.1", server.port, target="", **client)
    try:
        async with asyncio.timeout(30):
            request = asking.request(HEADER, b"x")
            await answered.wait()
            await asyncio.sleep(0)
            yield server, asking, request
    finally:
        asking.close()
        await server.close()


@pytest.mark.parametrize("window", [100 * KIB, 8 * MIB])
@pytest.mark.parametrize("kind", ["unix", "tcp"])
@pytest.mark.parametrize("size", [KIB, 300 * KIB, 5 * MIB, 33 * MIB])
async def test_a_graceful_close_sends_answers_to_their_end(socket_folder, size, kind, window):
    async with answering(socket_folder, size, kind, window_bytes=window) as (server, client, request):
        await server.close(drain_s=20)
        assert len((await request).body) == size
        assert not server.connections
        await client.wait_closed()


async def test_a_graceful_close_waits_for_who_reads_slowly(socket_folder):
    async with answering(socket_folder, 5 * MIB) as (server, client, request):
        client._protocol.transport.pause_reading()
        closing = asyncio.ensure_future(server.close(drain_s=20))
        await asyncio.sleep(0.2)
        assert not closing.done()
        client._protocol.transport.resume_reading()
        assert len((await request).body) == 5 * MIB
        await closing


@pytest.mark.parametrize("size", [0, 5 * MIB])
async def test_who_never_closes_is_waited_for_as_long_as_was_said(socket_folder, size):
    async with answering(socket_folder, size) as (server, _, _):
        _, writer = await asyncio.open_unix_connection(str(socket_folder / "data.sock"))
        try:
            writer.write(encode_hello(Hello("")))
            await asyncio.sleep(0.05)
            began = asyncio.get_running_loop().time()
            await server.close(drain_s=0.3)
            # The loop counts whole milliseconds, and a difference of floats may lack the last bit.
            assert 0.29 <= asyncio.get_running_loop().time() - began < 10
        finally:
            writer.close()
