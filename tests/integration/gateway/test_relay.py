"""Instances of another host: the gateway reaches them through their node's relay, a real one."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import replace
from pathlib import Path

import grpc
import numpy as np
import pytest

from tessera.api.open_inference import inference_pb2 as pb
from tessera.domain.ids import RuntimeId
from tessera.domain.records import InstanceRecord
from tessera.testing.etcd import free_port

from .conftest import HOST, EchoRuntime, World, infer_request

Call = Callable[..., Awaitable[pb.ModelInferResponse]]
FAR = "rt-ort-0a1b2c-far"
WAIT_S = 20.0


class Relay:
    """The node agent's relay process over a run folder of its own."""

    def __init__(self, run: Path) -> None:
        self.run = run
        self.address = f"127.0.0.1:{free_port()}"
        self.process: subprocess.Popen[bytes] | None = None

    async def start(self) -> None:
        info = self.run / "relay.json"
        info.unlink(missing_ok=True)
        command = [sys.executable, "-m", "tessera.node_agent.relay", "--listen", self.address, "--run-folder", str(self.run)]
        self.process = subprocess.Popen(command)  # noqa: ASYNC220 - a fork of milliseconds, in a test
        async with asyncio.timeout(WAIT_S):
            while not info.exists():  # noqa: ASYNC110 - a file is all that it says
                await asyncio.sleep(0.02)
        assert json.loads(info.read_text())["pid"] == self.process.pid

    def kill(self) -> None:
        if self.process is not None:
            self.process.send_signal(signal.SIGKILL)
            self.process.wait(WAIT_S)
            self.process = None


@pytest.fixture
def relay() -> Iterator[Relay]:
    with tempfile.TemporaryDirectory(prefix="relay") as folder:  # short: socket paths end at 108 bytes
        found = Relay(Path(folder))
        yield found
        found.kill()


async def far_away(world: World, relay: Relay) -> tuple[EchoRuntime, InstanceRecord]:
    """Model `far` in a runtime of host `host-b`, whose socket only the relay may use."""
    folder = relay.run / "d-0a1b2c" / FAR
    folder.mkdir(parents=True)
    runtime = world.runtimes[FAR] = EchoRuntime(RuntimeId(FAR), str(folder / "data.sock"))
    await runtime.start()
    await world.add_model("far")
    near = await world.load("far", runtime, record=False)
    record = replace(near, host_id="host-b", unix_path="/nowhere/data.sock", relay_address=relay.address)
    await world.put(world.instance_key(record), record)
    return runtime, record


async def served_by_relay(call: Call, **options: object) -> pb.ModelInferResponse:
    """Asks until the instance is known and reached; nothing starts another one here."""
    async with asyncio.timeout(WAIT_S):
        while True:
            try:
                return await call(infer_request("far"), **options)
            except grpc.aio.AioRpcError as error:
                if error.code() is not grpc.StatusCode.UNAVAILABLE:
                    raise
                await asyncio.sleep(0.05)


async def test_a_runtime_of_another_host_answers_through_its_relay(served: World, call: Call, relay: Relay) -> None:
    await relay.start()
    runtime, record = await far_away(served, relay)
    answer = await served_by_relay(call, timeout=10)
    assert list(answer.raw_output_contents) == [bytes(16)]
    assert answer.parameters["start_path"].string_param == "warm"
    assert runtime.headers[-1].generation == record.generation
    assert 0 < runtime.headers[-1].budget_us <= 10_000_000
    big = np.random.default_rng(0).integers(0, 255, 3 << 20, dtype=np.uint8).tobytes()
    request = infer_request("far")
    request.inputs[0].shape[:] = [1, len(big) // 4]
    request.raw_input_contents[0] = big
    assert (await call(request)).raw_output_contents[0] == big, "many chunks, both ways"


async def test_a_runtime_of_this_host_whose_socket_is_not_seen_answers_through_its_relay(served: World, call: Call, relay: Relay) -> None:
    """Containers of one machine have one host id, and folders of their own."""
    await relay.start()
    runtime, record = await far_away(served, relay)
    await served.put(served.instance_key(record), replace(record, host_id=HOST))
    answer = await served_by_relay(call, timeout=10)
    assert list(answer.raw_output_contents) == [bytes(16)]
    assert runtime.headers[-1].generation == record.generation


async def test_cancelling_reaches_the_runtime_through_the_relay(served: World, call: Call, relay: Relay) -> None:
    await relay.start()
    runtime, _ = await far_away(served, relay)
    await served_by_relay(call)
    runtime.delay_s = 30.0
    runtime.entered.clear()
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call(infer_request("far"), timeout=0.3)
    assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    async with asyncio.timeout(WAIT_S):
        while not runtime.cancelled:  # noqa: ASYNC110 - counted by the runtime's handler
            await asyncio.sleep(0.01)


async def test_a_killed_relay_costs_what_was_executing_and_comes_back(served: World, call: Call, relay: Relay) -> None:
    await relay.start()
    runtime, _ = await far_away(served, relay)
    await served_by_relay(call)
    runtime.delay_s = 30.0
    runtime.entered.clear()
    executing = asyncio.get_running_loop().create_task(call(infer_request("far"), timeout=20))
    await asyncio.wait_for(runtime.entered.wait(), WAIT_S)
    relay.kill()
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await executing
    assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
    assert "may have been executing" in (caught.value.details() or "")
    runtime.delay_s = 0.0
    await relay.start()
    answer = await served_by_relay(call)
    assert answer.parameters["start_path"].string_param == "warm"
    assert os.path.exists(runtime.path)
