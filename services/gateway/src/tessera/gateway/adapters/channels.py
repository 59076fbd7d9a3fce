"""One gRPC channel per address, kept: a service that restarts is found again by the channel itself."""

from __future__ import annotations

import grpc.aio

from tessera.rpc import connect


class Channels:
    def __init__(self, max_message_bytes: int) -> None:
        self._max_message_bytes = max_message_bytes
        self._channels: dict[str, grpc.aio.Channel] = {}

    def to(self, address: str) -> grpc.aio.Channel:
        channel = self._channels.get(address)
        if channel is None:
            channel = self._channels[address] = connect(address, max_message_bytes=self._max_message_bytes)
        return channel

    async def close(self) -> None:
        channels, self._channels = list(self._channels.values()), {}
        for channel in channels:
            await channel.close()
