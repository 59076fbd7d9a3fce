from __future__ import annotations

import socket

from tessera.frames import FrameClient, FrameResponse, FrameServer


def silence_s(transport) -> tuple[float, float]:
    """After how long the kernel ends the connection: idle, and with something sent."""
    own = transport.get_extra_info("socket")
    assert own.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 1
    idle, interval, probes, unacknowledged_ms = (
        own.getsockopt(socket.IPPROTO_TCP, option)
        for option in (socket.TCP_KEEPIDLE, socket.TCP_KEEPINTVL, socket.TCP_KEEPCNT, socket.TCP_USER_TIMEOUT)
    )
    return idle + interval * probes, unacknowledged_ms / 1000


async def test_both_ends_of_a_tcp_connection_notice_a_silent_peer():
    async def handler(header, body):
        return FrameResponse(0)

    server = await FrameServer.serve_tcp("127.0.0.1", 0, handler)
    client = await FrameClient.connect_tcp("127.0.0.1", server.port, target="")
    (connection,) = server.connections
    try:
        assert silence_s(client._protocol.transport) == silence_s(connection.transport) == (10, 10)
    finally:
        client.close()
        await server.close()
