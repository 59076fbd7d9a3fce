"""The relay: routes by the hello, moves bytes both ways, refuses what it cannot route."""

from __future__ import annotations

import asyncio
import json
import shutil
import socket
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tessera.clock import SystemClock
from tessera.domain.errors import TesseraError
from tessera.domain.ids import TrustDomain
from tessera.frames import FrameClient, FrameResponse, FrameServer, RequestHeader, silence
from tessera.frames.codec import Hello, decode_goaway, encode_hello
from tessera.node_agent import relay
from tessera.node_agent.core.runtimes import Purpose, domain_folder, domain_folder_of, runtime_id_for

GENERATION = 7
RT1, RT2, RT9 = (f"rt-ort-0000aa-{number:010x}" for number in (1, 2, 9))
FOLDER = "d-0000aa"


class RunningRelay:
    def __init__(self, run: Path) -> None:
        self.run = run
        self.stop = asyncio.Event()
        self.served: list[bytes] = []

    @property
    def port(self) -> int:
        return int(json.loads((self.run / relay.INFO_FILE).read_text())["address"].rpartition(":")[2])

    async def runtime(self, runtime_id: str) -> FrameServer:
        (self.run / FOLDER / runtime_id).mkdir(parents=True)

        async def echo(header: RequestHeader, body: memoryview) -> FrameResponse:
            data = bytes(body)
            self.served.append(data[:16])
            return FrameResponse(0, body=data)

        return await FrameServer.serve_unix(str(self.run / FOLDER / runtime_id / "data.sock"), echo, target=runtime_id)

    async def raw(self, data: bytes) -> bytes:
        """What the relay answers to `data`, until it closes."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        try:
            writer.write(data)
            async with asyncio.timeout(5):
                return await reader.read()
        finally:
            writer.close()


@pytest.fixture
async def running() -> AsyncIterator[RunningRelay]:
    run = Path(tempfile.mkdtemp(prefix="relay-", dir="/tmp"))
    found = RunningRelay(run)
    async with asyncio.TaskGroup() as group:
        group.create_task(relay.serve("127.0.0.1:0", run, 600.0, SystemClock(), found.stop))
        while not (run / relay.INFO_FILE).exists():  # noqa: ASYNC110 - as a starting agent does
            await asyncio.sleep(0.005)
        yield found
        found.stop.set()
    assert not (run / relay.INFO_FILE).exists()
    shutil.rmtree(run)


async def test_requests_of_any_size_come_back_whole(running: RunningRelay) -> None:
    server = await running.runtime(RT1)
    client = await FrameClient.connect_tcp("127.0.0.1", running.port, target=RT1)
    bodies = [bytes([number]) * size for number, size in enumerate((0, 1, 300_000, 5_000_000, 17))]
    answers = await asyncio.gather(*[client.request(RequestHeader(GENERATION, 10_000_000), body) for body in bodies])
    assert [bytes(answer.body) for answer in answers] == bodies
    client.close()
    await server.close(0)


async def test_each_connection_goes_to_the_runtime_it_names(running: RunningRelay) -> None:
    servers = [await running.runtime(name) for name in (RT1, RT2)]
    for name in (RT1, RT2, RT1):
        client = await FrameClient.connect_tcp("127.0.0.1", running.port, target=name)
        answer = await client.request(RequestHeader(GENERATION, 10_000_000), name.encode())
        assert bytes(answer.body) == name.encode()
        client.close()
    for server in servers:
        await server.close(0)


async def test_the_tcp_side_notices_a_silent_peer(running: RunningRelay, monkeypatch: pytest.MonkeyPatch) -> None:
    """Set on a real connection, which is looked at from inside."""
    seen: list[socket.socket] = []

    def look(own: socket.socket) -> None:
        silence.end_on_silence(own)
        seen.append(own)

    monkeypatch.setattr(relay, "end_on_silence", look)
    _, writer = await asyncio.open_connection("127.0.0.1", running.port)
    writer.write(b"\0")
    async with asyncio.timeout(5):
        while not seen:  # noqa: ASYNC110 - the relay tells nobody of a connection
            await asyncio.sleep(0.005)
    assert seen[0].getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) == 10_000
    writer.close()


async def test_a_hello_in_pieces_is_put_together(running: RunningRelay) -> None:
    server = await running.runtime(RT1)
    hello = encode_hello(Hello(RT1))
    reader, writer = await asyncio.open_connection("127.0.0.1", running.port)
    for at in range(len(hello)):
        writer.write(hello[at : at + 1])
        await writer.drain()
        await asyncio.sleep(0)
    async with asyncio.timeout(5):
        assert await reader.readexactly(4)  # the runtime's own hello
    writer.close()
    await server.close(0)


@pytest.mark.parametrize("target", ["../etc", "rt/1", "", "RT-1", "a" * 49, "rt-1", f"../{RT1}", f"{RT1}/..", f"{RT1}\0", RT1.upper()])
async def test_a_target_that_is_no_runtime_id_is_refused(running: RunningRelay, target: str) -> None:
    answer = await running.raw(encode_hello(Hello(target)))
    assert "a runtime id is PURPOSE-FLAVOUR-DOMAIN-NUMBER" in decode_goaway(answer[12:])


async def test_an_unknown_runtime_is_refused_with_its_name(running: RunningRelay) -> None:
    assert f"runtime {RT9} is not on this node" in decode_goaway((await running.raw(encode_hello(Hello(RT9))))[12:])
    with pytest.raises(TesseraError, match=RT9):
        await FrameClient.connect_tcp("127.0.0.1", running.port, target=RT9)


async def test_what_is_no_hello_is_refused(running: RunningRelay) -> None:
    assert "must be HELLO" in decode_goaway((await running.raw(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"))[12:])


async def test_a_runtime_that_goes_takes_its_connections_along(running: RunningRelay) -> None:
    server = await running.runtime(RT1)
    client = await FrameClient.connect_tcp("127.0.0.1", running.port, target=RT1)
    await client.request(RequestHeader(GENERATION, 10_000_000), b"x")
    await server.close(0)
    async with asyncio.timeout(5):
        while not client.closed:  # noqa: ASYNC110 - the client shows it as a property only
            await asyncio.sleep(0.01)


async def test_what_a_runtime_says_at_last_is_read_whole_by_who_still_sends(running: RunningRelay) -> None:
    (running.run / FOLDER / RT1).mkdir(parents=True)
    heard: list[bytes] = []

    async def leaving(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(bytes(2 << 20))
        writer.write_eof()
        heard.append(await reader.read())
        writer.close()

    server = await asyncio.start_unix_server(leaving, running.run / FOLDER / RT1 / "data.sock")
    reader, writer = await asyncio.open_connection("127.0.0.1", running.port)
    writer.write(encode_hello(Hello(RT1)))
    await asyncio.sleep(0.2)
    for _ in range(20):
        writer.write(b"late")
        await asyncio.sleep(0.005)
    async with asyncio.timeout(10):
        assert len(await reader.read()) == 2 << 20
        writer.close()
        while not heard:  # noqa: ASYNC110 - the relay closes the runtime's side after this one
            await asyncio.sleep(0.005)
    assert heard == [encode_hello(Hello(RT1)) + b"late" * 20]
    server.close()


async def test_a_slow_reader_pauses_the_sender(running: RunningRelay) -> None:
    """Back-pressure: the relay holds some megabytes at most, whatever one side sends."""
    (running.run / FOLDER / RT1).mkdir(parents=True)
    taken = 0
    resume = asyncio.Event()
    done = asyncio.Event()

    async def lazy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal taken
        await resume.wait()
        while data := await reader.read(1 << 20):
            taken += len(data)
        writer.close()
        done.set()

    server = await asyncio.start_unix_server(lazy, running.run / FOLDER / RT1 / "data.sock")
    _, writer = await asyncio.open_connection("127.0.0.1", running.port)
    writer.write(encode_hello(Hello(RT1)))
    sent = 0
    try:
        async with asyncio.timeout(1.0):
            while sent < 256 << 20:
                writer.write(bytes(1 << 20))
                sent += 1 << 20
                await writer.drain()
    except TimeoutError:
        pass
    assert sent < 64 << 20
    resume.set()
    await writer.drain()
    writer.close()
    async with asyncio.timeout(20):
        await done.wait()
    assert taken == sent + len(encode_hello(Hello(RT1)))
    server.close()


async def test_it_listens_at_a_host_in_brackets(tmp_path: Path) -> None:
    """As addresses of IPv6 are written, which not every machine has."""
    stop = asyncio.Event()
    async with asyncio.timeout(10), asyncio.TaskGroup() as group:
        group.create_task(relay.serve("[127.0.0.1]:0", tmp_path, 600.0, SystemClock(), stop))
        while not (tmp_path / relay.INFO_FILE).exists():  # noqa: ASYNC110 - as a starting agent does
            await asyncio.sleep(0.005)
        host, _, port = json.loads((tmp_path / relay.INFO_FILE).read_text())["address"].rpartition(":")
        _, writer = await asyncio.open_connection("127.0.0.1", int(port))
        writer.close()
        stop.set()
    assert host == "[127.0.0.1]"


async def test_it_ends_when_nothing_needs_it_or_its_folder_is_gone(tmp_path: Path) -> None:
    async with asyncio.timeout(10):
        await relay.serve("127.0.0.1:0", tmp_path, 0.0, SystemClock(), asyncio.Event())
        run = tmp_path / "run"
        run.mkdir()
        async with asyncio.TaskGroup() as group:
            group.create_task(relay.serve("127.0.0.1:0", run, 600.0, SystemClock(), asyncio.Event()))
            await asyncio.sleep(0.1)
            shutil.rmtree(run)


def test_ids_agree_with_what_the_agent_makes() -> None:
    for purpose in Purpose:
        made = runtime_id_for(purpose, "aten", TrustDomain("default"), bytes(5))
        assert relay.folder_of(made) == domain_folder(TrustDomain("default")) == domain_folder_of(made)


async def test_a_domain_cannot_pass_a_runtime_of_its_own_off_as_anothers(running: RunningRelay) -> None:
    """Whatever lies in a domain's folder: the id says in whose folder the runtime is looked for."""
    (running.run / "d-0000bb").mkdir()
    (running.run / FOLDER).mkdir()
    taken: list[bytes] = []

    async def thief(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        taken.append(await reader.read(1))

    (running.run / "d-0000bb" / RT1).mkdir()
    server = await asyncio.start_unix_server(thief, running.run / "d-0000bb" / RT1 / "data.sock")
    assert f"runtime {RT1} is not on this node" in decode_goaway((await running.raw(encode_hello(Hello(RT1))))[12:])
    assert taken == []
    server.close()
