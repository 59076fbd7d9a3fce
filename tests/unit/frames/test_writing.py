"""What is written together, in which order, and what becomes of what nobody waits for."""

from __future__ import annotations

import asyncio
import contextlib

import pytest

from tessera.domain.errors import Unavailable
from tessera.frames import FrameClient, FrameResponse, FrameServer, NeverSent, RequestHeader
from tessera.frames.codec import encode_cancel

HEADER = RequestHeader(generation=5, budget_us=1_000_000)


@contextlib.asynccontextmanager
async def pair(folder, handler, **server):
    path = str(folder / "data.sock")
    listening = await FrameServer.serve_unix(path, handler, **server)
    asking = await FrameClient.connect_unix(path)
    try:
        yield asking, listening
    finally:
        asking.close()
        await listening.close()


async def test_requests_made_together_are_written_together_and_in_order(socket_folder):
    seen = []

    async def handler(header, body):
        seen.append(int(bytes(body)))
        return FrameResponse(0)

    async with pair(socket_folder, handler) as (client, _):
        written = []
        transport = client._protocol.transport
        client._protocol.sender._transport = Recording(transport, written)
        await asyncio.gather(*(client.request(HEADER, b"%d" % number) for number in range(50)))
        assert seen == list(range(50))
        assert len(written) <= 2
        written.clear()
        await client.request(HEADER, b"50")
        assert len(written) == 1


class Recording:
    """A transport that notes what is written."""

    def __init__(self, transport, written):
        self._transport = transport
        self._written = written

    def write(self, data):
        self._written.append(len(data))
        self._transport.write(data)

    def __getattr__(self, name):
        return getattr(self._transport, name)


async def test_a_request_cancelled_before_it_was_written_is_cancelled_behind_it(socket_folder):
    """CANCEL must not overtake its request, which would then run to its end."""
    running = []

    def handler(header, body):
        if bytes(body) == b"fence":
            return answered()
        running.append(asyncio.get_running_loop().create_future())
        return running[-1]

    async def answered():
        return FrameResponse(0)

    async with pair(socket_folder, handler) as (client, server):
        client.request(HEADER, b"x").cancel()
        async with asyncio.timeout(5):
            await client.request(HEADER, b"fence")
        assert [future.cancelled() for future in running] == [True]
        assert not client._protocol.streams
        assert server.in_flight == 0


async def test_a_handler_cancelled_before_it_ran_leaves_nothing_behind(socket_folder):
    async def handler(header, body):
        return FrameResponse(0, body=body)

    async with pair(socket_folder, handler) as (client, server):
        client.request(HEADER, b"x").cancel()
        async with asyncio.timeout(5):
            assert bytes((await client.request(HEADER, b"next")).body) == b"next"
        assert server.in_flight == 0


async def test_what_lacks_credit_for_its_last_byte_when_the_connection_is_lost_was_never_sent(socket_folder):
    taken = asyncio.Event()

    async def handler(header, body):
        taken.set()
        await asyncio.Event().wait()

    # No credit comes back while one byte is unanswered.
    async with pair(socket_folder, handler, window_bytes=1000, held_budget_bytes=1) as (client, server):
        requests = [client.request(HEADER, bytes(size)) for size in (600, 300_000, 500, 10, 0)]
        async with asyncio.timeout(5):
            await taken.wait()
            (connection,) = server.connections
            connection.transport.abort()
            errors = await asyncio.gather(*requests, return_exceptions=True)
        assert [type(error) for error in errors] == [Unavailable, NeverSent, NeverSent, NeverSent, NeverSent]
        assert {error.kind for error in errors} == {"unavailable"}


async def test_what_the_transport_was_not_given_when_the_connection_is_lost_was_never_sent(socket_folder):
    async def handler(header, body):
        await asyncio.Event().wait()

    async with pair(socket_folder, handler) as (client, _):
        alone, *company = [client.request(HEADER, b"x" * size) for size in (1, 0, 1, 200_000, 300_000)]
        # A frame of another kind between them: a stream's number alone does not say that its message is here.
        client._protocol.sender.put(encode_cancel(1))
        client.close()
        errors = await asyncio.gather(alone, *company, return_exceptions=True)
        assert [type(error) for error in errors] == [Unavailable, NeverSent, NeverSent, NeverSent, NeverSent]
        with pytest.raises(NeverSent):
            client.request(HEADER, b"x")


async def test_answer_of_a_cancelled_large_request_is_passed_over(socket_folder):
    gate = asyncio.Event()

    async def handler(header, body):
        if bytes(body) == b"large":
            try:
                await gate.wait()
            except asyncio.CancelledError:
                return FrameResponse(0, body=b"z" * 700_000)
        return FrameResponse(0, body=body)

    async with pair(socket_folder, handler) as (client, _):
        request = client.request(HEADER, b"large")
        await asyncio.sleep(0.02)
        request.cancel()
        async with asyncio.timeout(5):
            assert bytes((await client.request(HEADER, b"next")).body) == b"next"
            await client.request(HEADER, b"fence")
            assert not client._protocol.streams
        assert not client.closed


async def test_large_bodies_and_small_ones_keep_their_content_in_both_directions(socket_folder):
    async def handler(header, body):
        await asyncio.sleep(0)
        return FrameResponse(0, body=body)

    async with pair(socket_folder, handler) as (client, _):
        bodies = [
            bytes([number]) * size for number, size in enumerate([40, 300_000, 1000, 33_000, 1_500_000, 0, 262_144, 262_145, 65_536] * 4)
        ]
        answers = await asyncio.gather(*(client.request(HEADER, body) for body in bodies))
        assert [bytes(answer.body) for answer in answers] == bodies
