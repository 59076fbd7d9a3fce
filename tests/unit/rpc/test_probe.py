"""What a container's health check says."""

from __future__ import annotations

import asyncio

import pytest

from tessera.probe import main, probe
from tessera.rpc import RpcServer
from tessera.testing.etcd import free_port


async def test_a_probe_tells_what_health_says(capsys: pytest.CaptureFixture[str]) -> None:
    server = RpcServer("127.0.0.1:0", handlers=[], service_names=[])
    await server.start()
    try:
        assert await asyncio.to_thread(probe, server.address) == "SERVING"
        assert await asyncio.to_thread(main, [server.address]) == 0
        await server.set_serving(False)
        assert await asyncio.to_thread(main, [server.address]) == 1
        assert f"{server.address}: NOT_SERVING" in capsys.readouterr().err
    finally:
        await server.stop(0)


def test_nobody_there_is_a_reason(capsys: pytest.CaptureFixture[str]) -> None:
    address = f"127.0.0.1:{free_port()}"
    assert main([address]) == 1
    assert f"{address}: UNAVAILABLE: " in capsys.readouterr().err
    assert main([]) == 2
