"""Connections to runtimes that go away, over real sockets."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from loops_world import REQUEST, Parts

from tessera.api.open_inference.inference_pb2 import ModelInferRequest
from tessera.domain.errors import Unavailable
from tessera.domain.ids import Generation, InstanceId, RuntimeId
from tessera.frames import FrameClient, FrameResponse, FrameServer, RequestHeader
from tessera.frames import client as frames_client
from tessera.frames.codec import Buffer
from tessera.gateway.adapters.links import FrameLinks
from tessera.gateway.core.slots import slot_of
from tessera.program import Stop, Tasks
from tessera.testing import LoopClock
from tessera.testing.builders import a_variant, an_instance

HEADER = RequestHeader(1, 5_000_000)


class BlockedRuntime:
    """Answers when it is let go."""

    def __init__(self) -> None:
        self.asked, self.go = asyncio.Event(), asyncio.Event()

    async def answer(self, header: RequestHeader, body: Buffer) -> FrameResponse:
        self.asked.set()
        await self.go.wait()
        return FrameResponse(0)


@dataclass
class World:
    tasks: Tasks
    links: FrameLinks
    changes: list[bool]


def really(test: Callable[[World], Awaitable[None]]) -> None:
    async def main() -> None:
        changes: list[bool] = []
        async with asyncio.timeout(20), Tasks(Stop()) as tasks:
            links = FrameLinks(
                "here", tasks, LoopClock(), max_message_bytes=1 << 20,
                on_change=lambda _runtime, connected: changes.append(connected), wanted=lambda _runtime: False,
            )  # fmt: skip
            try:
                await test(World(tasks, links, changes))
            finally:
                links.close()

    asyncio.run(main())


async def drained(server: FrameServer, client: FrameClient) -> asyncio.Task[None]:
    """Closes it, and returns when its client knows."""
    closing = asyncio.ensure_future(server.close(10.0))
    while not client.draining:  # noqa: ASYNC110 - the connection tells nobody
        await asyncio.sleep(0.001)
    return closing


def test_a_runtime_that_drains_answers_what_it_has_and_is_not_connected(tmp_path: Path) -> None:
    async def test(world: World) -> None:
        runtime = BlockedRuntime()
        slot = slot_of(an_instance(host_id="here", unix_path=str(tmp_path / "r.sock"), relay_address=""))
        server = await FrameServer.serve_unix(slot.unix_path, runtime.answer)
        client = await world.links.connect(slot)
        assert world.links.connected(slot) is client
        answer = client.request(HEADER, b"x")
        await runtime.asked.wait()
        closing = await drained(server, client)
        assert world.links.connected(slot) is None
        with pytest.raises(Unavailable):
            await world.links.connect(slot)
        runtime.go.set()
        assert (await answer).status == 0
        await closing

    really(test)


def test_the_end_of_a_connection_that_another_one_replaced_is_no_loss() -> None:
    """A relay that restarts lets its requests end, while the next one listens already."""

    async def test(world: World) -> None:
        runtime, next_one = BlockedRuntime(), BlockedRuntime()
        server = await FrameServer.serve_tcp("127.0.0.1", 0, runtime.answer)
        port = server.port
        slot = slot_of(an_instance(host_id="there", relay_address=f"127.0.0.1:{port}"))
        client = await world.links.connect(slot)
        answer = client.request(HEADER, b"x")
        await runtime.asked.wait()
        closing = await drained(server, client)
        successor = await FrameServer.serve_tcp("127.0.0.1", port, next_one.answer)
        newer = await world.links.connect(slot)
        assert newer is not client
        runtime.go.set()
        await answer
        await closing
        await client.wait_closed()
        await asyncio.sleep(0.01)
        assert world.links.connected(slot) is newer
        assert world.changes == [True, True]
        await successor.close()

    really(test)


def test_while_its_runtime_drains_a_model_is_started_elsewhere(tmp_path: Path) -> None:
    async def test(world: World) -> None:
        runtime, other = BlockedRuntime(), BlockedRuntime()
        other.go.set()
        parts = Parts(world.tasks)
        parts.inference._links = parts.starts._links = world.links
        paths = [str(tmp_path / name) for name in ("one.sock", "two.sock")]
        server = await FrameServer.serve_unix(paths[0], runtime.answer)
        elsewhere = await FrameServer.serve_unix(paths[1], other.answer)
        record = an_instance(variant=a_variant().key, host_id="here", unix_path=paths[0], relay_address="")
        parts.catalogue.put("i", record)
        parts.scheduler.delay_s = 0.0
        parts.scheduler.starts = replace(record, unix_path=paths[1], runtime_id=RuntimeId("other"))
        first = asyncio.ensure_future(parts.inference.infer(REQUEST, 10.0))
        await runtime.asked.wait()
        (slot,) = parts.catalogue.fleet.slots()
        client = world.links.connected(slot)
        assert client is not None
        closing = await drained(server, client)
        await parts.inference.infer(REQUEST, 10.0)
        assert parts.decisions._last[-1].outcome == "ok"
        assert len(parts.scheduler.calls) == 1
        runtime.go.set()
        await first
        await closing
        await elsewhere.close()
        parts.inference.close()

    really(test)


def test_requests_that_were_never_sent_as_a_whole_go_to_another_instance(tmp_path: Path) -> None:
    async def test(world: World) -> None:
        runtime, other = BlockedRuntime(), BlockedRuntime()
        other.go.set()
        parts = Parts(world.tasks)
        parts.inference._links = world.links
        paths = [str(tmp_path / name) for name in ("one.sock", "two.sock")]
        # It holds part of one request and gives no credit for the rest.
        server = await FrameServer.serve_unix(paths[0], runtime.answer, window_bytes=1024, held_budget_bytes=1)
        elsewhere = await FrameServer.serve_unix(paths[1], other.answer)
        record = an_instance(variant=a_variant().key, host_id="here", unix_path=paths[0], relay_address="")
        parts.catalogue.put("one", record)
        (slot,) = parts.catalogue.fleet.slots()
        client = await world.links.connect(slot)
        body = ModelInferRequest(model_name="digits", raw_input_contents=[bytes(4096)]).SerializeToString()
        waiting = [asyncio.ensure_future(parts.inference.infer(body, 10.0)) for _ in range(2)]
        while client.in_flight < 2:  # noqa: ASYNC110 - the connection tells nobody
            await asyncio.sleep(0)
        second = {"instance_id": InstanceId("two"), "generation": Generation(7), "runtime_id": RuntimeId("other"), "unix_path": paths[1]}
        parts.catalogue.put("two", replace(record, **second))
        (connection,) = server.connections
        connection.transport.abort()
        await asyncio.gather(*waiting)
        assert not runtime.asked.is_set()
        assert [(one.outcome, one.instance_id, one.attempts) for one in parts.decisions._last] == [("ok", "two", 2)] * 2
        assert slot.in_flight == 0
        await server.close()
        await elsewhere.close()
        parts.inference.close()

    really(test)


@asynccontextmanager
async def silent_listener(path: Path) -> AsyncIterator[asyncio.Queue[None]]:
    """Accepts and says nothing; the queue has one entry for each connection."""
    accepted: asyncio.Queue[None] = asyncio.Queue()
    serving = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        serving.append(asyncio.current_task())
        accepted.put_nowait(None)
        with suppress(OSError):
            await reader.read()  # until the other side has gone
            writer.close()
            await writer.wait_closed()

    server = await asyncio.start_unix_server(serve, path)
    try:
        yield accepted
    finally:
        server.close()
        await asyncio.gather(*serving)


def test_who_waits_for_a_connection_shares_its_failure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(frames_client, "CONNECT_TIMEOUT_S", 0.05)

    async def test(world: World) -> None:
        slot = slot_of(an_instance(host_id="here", unix_path=str(tmp_path / "r.sock"), relay_address=""))
        async with silent_listener(tmp_path / "r.sock") as accepted:
            errors = await asyncio.gather(*(world.links.connect(slot) for _ in range(5)), return_exceptions=True)
            assert all(isinstance(error, Unavailable) and "no hello" in error.message for error in errors)
            await accepted.get()
            assert accepted.empty(), "one try for all of them"
            assert not world.links._links, "nothing is left of what was never connected"
            with pytest.raises(Unavailable):
                await world.links.connect(slot)
            await accepted.get()  # who comes later tries anew

    really(test)


def test_who_waits_for_a_try_that_is_given_up_tries_itself(tmp_path: Path) -> None:
    async def test(world: World) -> None:
        slot = slot_of(an_instance(host_id="here", unix_path=str(tmp_path / "r.sock"), relay_address=""))
        async with silent_listener(tmp_path / "r.sock") as accepted:
            first, second = (asyncio.ensure_future(world.links.connect(slot)) for _ in range(2))
            await accepted.get()
            first.cancel()
            await accepted.get()
            assert not second.done()
            second.cancel()
            await asyncio.gather(first, second, return_exceptions=True)
            assert not world.links._links

    really(test)
