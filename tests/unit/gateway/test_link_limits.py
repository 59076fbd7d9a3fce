"""What connections to runtimes take, and where they lead, over real sockets."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tessera.clock import SystemClock
from tessera.config import read
from tessera.domain.errors import InvalidInput
from tessera.frames import FrameResponse, FrameServer, RequestHeader
from tessera.frames.codec import Buffer
from tessera.gateway.adapters.links import FrameLinks
from tessera.gateway.config import GatewayConfig
from tessera.gateway.core.slots import InstanceSlot, slot_of
from tessera.program import Stop, Tasks
from tessera.rpc import MAX_MESSAGE_BYTES, MESSAGE_OVERHEAD_BYTES
from tessera.testing.builders import an_instance


async def echo(header: RequestHeader, body: Buffer) -> FrameResponse:
    return FrameResponse(0, body=body)


def slot_at(relay_address: str) -> InstanceSlot:
    return slot_of(an_instance(host_id="another", unix_path="", relay_address=relay_address))


@pytest.fixture
async def links() -> AsyncIterator[FrameLinks]:
    stop = Stop()
    async with Tasks(stop) as tasks:
        found = FrameLinks(
            "here", tasks, SystemClock(), max_message_bytes=MAX_MESSAGE_BYTES,
            on_change=lambda runtime, connected: None, wanted=lambda runtime: False,
        )  # fmt: skip
        yield found
        found.close()
    assert stop.error is None


@pytest.mark.parametrize("host", ["127.0.0.1", "[127.0.0.1]"])
async def test_a_relay_is_reached_at_a_host_in_brackets(links: FrameLinks, host: str) -> None:
    """As addresses of IPv6 are written, which not every machine has."""
    server = await FrameServer.serve_tcp("127.0.0.1", 0, echo)
    client = await links.connect(slot_at(f"{host}:{server.port}"))
    assert bytes((await client.request(RequestHeader(1, 10_000_000), b"x")).body) == b"x"
    client.close()
    await server.close()


async def test_what_grpc_takes_runtimes_take(links: FrameLinks) -> None:
    server = await FrameServer.serve_tcp("127.0.0.1", 0, echo)
    client = await links.connect(slot_at(f"127.0.0.1:{server.port}"))
    body = bytes(MAX_MESSAGE_BYTES + MESSAGE_OVERHEAD_BYTES)
    answer = await client.request(RequestHeader(1, 60_000_000), body)
    assert (answer.error(), len(answer.body)) == (None, len(body))
    client.close()
    await server.close()


def test_a_limit_beyond_what_runtimes_take_is_refused(tmp_path: Path) -> None:
    assert GatewayConfig(token_file=tmp_path, max_message_bytes=MAX_MESSAGE_BYTES).max_message_bytes == MAX_MESSAGE_BYTES
    path = tmp_path / "gateway.yaml"
    path.write_text(f"token_file: x\nmax_message_bytes: {MAX_MESSAGE_BYTES + 1}\n")
    with pytest.raises(InvalidInput, match=f"max_message_bytes.*{MAX_MESSAGE_BYTES}"):
        read(GatewayConfig, path)
