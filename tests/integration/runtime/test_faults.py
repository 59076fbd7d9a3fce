from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tessera.domain.errors import AlreadyExists, FailedPrecondition, Internal, InvalidInput, Unavailable, Unsupported
from tessera.frames import FrameClient


async def gone(pid: int, within_s: float = 20) -> None:
    """Waits until a process has ended (reaped or zombie of somebody else)."""
    async with asyncio.timeout(within_s):
        while True:
            try:
                if Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z":
                    return
            except FileNotFoundError:
                return
            await asyncio.sleep(0.02)


async def begun(runtime) -> None:
    """Waits until the first request runs or has been answered."""
    async with asyncio.timeout(20):
        while True:
            (instance,) = (await runtime.control.call("status"))["instances"]
            if instance["executing"] or instance["served"]:
                return


async def taken_in(runtime, requests: int) -> None:
    """Waits until so many requests have come, whatever has become of them."""
    async with asyncio.timeout(20):
        while True:
            (instance,) = (await runtime.control.call("status"))["instances"]
            if instance["queue"] + instance["executing"] + instance["served"] >= requests:
                return


async def test_killed_runtime_fails_what_is_in_flight_and_the_zygote_says_so(zygotes, store, kit):
    zygote = zygotes("ort")
    agent = await zygote.connect()
    runtime = await zygote.fork(agent)
    generation = await runtime.load(kit.linear(store, "ort", depth=5000, max_batch=1).artifact)
    client = await runtime.data()
    x = np.ones((1, kit.width), np.float32)
    requests = [asyncio.ensure_future(client.request(kit.header(generation), kit.request(x))) for _ in range(200)]
    await begun(runtime)
    os.kill(runtime.pid, signal.SIGKILL)
    results = await asyncio.gather(*requests, return_exceptions=True)
    assert sum(isinstance(result, Unavailable) for result in results) >= 1
    assert all(isinstance(result, Unavailable) or result.status == 0 for result in results)
    assert client.closed
    event = await agent.event("exit")
    assert (event["runtime_id"], event["pid"], event["code"]) == (runtime.runtime_id, runtime.pid, -signal.SIGKILL)
    assert not os.path.exists(f"/proc/{runtime.pid}"), "the zygote must have reaped it"


async def test_runtimes_outlive_their_zygote(zygotes, store, kit):
    zygote = zygotes("ort")
    killed, asked = await zygote.fork(), await zygote.fork()
    generation = await killed.load(store.put_artifact(kit.identity), variant="identity@1/any")
    zygote.process.kill()
    zygote.process.wait()
    client = await killed.data()
    x = np.ones((1, kit.width), np.float32)
    assert (await client.request(kit.header(generation), kit.request(x, name="INPUT0"))).status == 0
    assert (await asked.control.call("hello"))["pid"] == asked.pid
    await asked.control.call("shutdown", drain_ms=0)
    await gone(asked.pid)
    assert not asked.folder.exists()


async def test_zygote_ends_when_asked_and_leaves_its_children(zygotes):
    zygote = zygotes("ort")
    agent = await zygote.connect()
    runtime = await zygote.fork(agent)
    assert (await agent.call("hello"))["runtimes"] == [runtime.runtime_id]
    await agent.call("shutdown")
    assert await asyncio.to_thread(zygote.process.wait, 10) == 0
    assert not zygote.socket.exists()
    assert (await runtime.control.call("hello"))["runtime_id"] == runtime.runtime_id


async def test_runtime_without_an_agent_ends_after_its_time(zygotes):
    zygote = zygotes("ort")
    agent = await zygote.connect()
    runtime = await zygote.fork(agent, seconds_orphan=2.0)
    await asyncio.sleep(3.0)
    assert (await runtime.control.call("hello"))["pid"] == runtime.pid, "a connected agent keeps it"
    runtime.control.close()
    assert (await agent.event("exit"))["code"] == 0
    assert not runtime.folder.exists()


async def test_shutdown_drains_what_is_in_flight(zygotes, store, kit):
    runtime = await zygotes("ort").fork()
    model = kit.linear(store, "ort", depth=3000, max_batch=1)
    generation = await runtime.load(model.artifact)
    client = await runtime.data()
    x = np.ones((1, kit.width), np.float32) / 1000
    requests = [asyncio.ensure_future(client.request(kit.header(generation), kit.request(x))) for _ in range(5)]
    await taken_in(runtime, len(requests))
    await runtime.control.call("shutdown", drain_ms=20_000)
    answers = await asyncio.gather(*requests)
    assert [answer.status for answer in answers] == [0] * 5
    with pytest.raises(Unavailable):
        await client.request(kit.header(generation), kit.request(x))
    await gone(runtime.pid)


async def test_unload_drains_its_queue_then_others_are_rerouted(zygotes, store, kit):
    runtime = await zygotes("ort").fork()
    generation = await runtime.load(kit.linear(store, "ort", depth=5000, max_batch=1).artifact)
    client = await runtime.data()
    x = np.ones((1, kit.width), np.float32)
    requests = [asyncio.ensure_future(client.request(kit.header(generation), kit.request(x))) for _ in range(200)]
    await begun(runtime)
    await runtime.control.call("unload", instance_id="i-1", drain_ms=0)
    statuses = [answer.status for answer in await asyncio.gather(*requests)]
    assert set(statuses) == {0, 2}
    assert statuses == sorted(statuses), "first come, first served; the rest is rerouted"


async def test_a_poisoned_request_does_not_spoil_its_batch(zygotes, store, kit):
    """Requests of one batch that fails run again one by one: only the one at fault gets the error."""
    from tessera.api.open_inference.inference_pb2 import ModelInferRequest
    from tessera.domain.artifact import Artifact, TensorRef
    from tessera.domain.signature import Signature, TensorSpec
    from tessera.tensorstore.artifact import digest_of

    table = np.arange(32, dtype=np.float32).reshape(16, 2)
    pack = store.put(table.tobytes())
    program = {
        "format": 1,
        "dialect": "aten",
        "slots": 3,
        "inputs": [{"name": "ids", "slot": 0}],
        "tensors": [{"name": "table", "slot": 1, "dtype": "FP32", "shape": [16, 2]}],
        "nodes": [["aten.embedding.default", [{"slot": 1}, {"slot": 0}], {}, 2]],
        "outputs": [{"name": "y", "slot": 2}],
    }
    graph = store.put(json.dumps(program, sort_keys=True, separators=(",", ":")).encode())
    signature = Signature((TensorSpec("ids", "INT64", (-1,)),), (TensorSpec("y", "FP32", (-1, 2)),))
    refs = (TensorRef("table", "FP32", (16, 2), digest_of(table.tobytes()), table.nbytes, 0),)
    artifact = store.put_artifact(Artifact("aten", "fp32", "aten", graph, pack, refs, signature, None, 8))
    runtime = await zygotes("aten").fork()
    generation = await runtime.load(artifact, max_delay_us=200_000)
    client = await runtime.data()

    def body(index: int) -> bytes:
        message = ModelInferRequest(model_name="m", raw_input_contents=[np.array([index], np.int64).tobytes()])
        message.inputs.add(name="ids", datatype="INT64", shape=[1])
        return message.SerializeToString()

    good, bad, other = await asyncio.gather(*(client.request(kit.header(generation), body(index)) for index in (3, 99, 5)))
    assert kit.output(good).tolist() == [[6.0, 7.0]]
    assert kit.output(other).tolist() == [[10.0, 11.0]]
    assert isinstance(bad.error(), InvalidInput)
    assert good.batch_size == 1


async def test_max_delay_gathers_a_batch(zygotes, store, kit):
    runtime = await zygotes("ort").fork()
    model = kit.linear(store, "ort", max_batch=4)
    generation = await runtime.load(model.artifact, max_delay_us=2_000_000)
    client = await runtime.data()
    x = np.ones((1, kit.width), np.float32)
    answers = await asyncio.gather(*(client.request(kit.header(generation), kit.request(x * n)) for n in range(4)))
    assert [answer.batch_size for answer in answers] == [4] * 4
    for n, answer in enumerate(answers):
        assert np.abs(kit.output(answer) - model.expected(x * n)).max() < 1e-4


async def test_zygote_refuses_what_it_cannot_do(zygotes, store):
    zygote = zygotes("ort")
    agent = await zygote.connect()
    with pytest.raises(InvalidInput, match="runtime_id"):
        await agent.call("fork", runtime_id="../up", trust_domain="default")
    with pytest.raises(InvalidInput, match="107 bytes"):
        await agent.call("fork", runtime_id="x" * 90, trust_domain="default")
    with pytest.raises(Unsupported, match="a zygote knows"):
        await agent.call("load")
    await zygote.fork(agent)
    zygote._numbers = iter([1])
    with pytest.raises(AlreadyExists):
        await zygote.fork(agent)
    assert (await agent.call("hello"))["flavour"] == "ort"


async def test_runtime_that_cannot_start_is_an_error_of_its_fork(zygotes, run_folder):
    zygote = zygotes("ort")
    agent = await zygote.connect()
    shutil.rmtree(run_folder)
    with pytest.raises(Internal, match="ended with 1 before it served"):
        await zygote.fork(agent)
    run_folder.mkdir()
    assert (await zygote.fork(agent)).pid > 0


async def test_broken_control_message_ends_that_connection_alone(zygotes, kit):
    runtime = await zygotes("ort").fork()
    for path in (zygotes("ort").socket, runtime.folder / "control.sock"):
        reader, writer = await asyncio.open_unix_connection(path)
        writer.write(b"\x05\x00\x00\x00[1,2]")
        async with asyncio.timeout(5):
            data = await reader.read(-1)
        assert b"must be a JSON object" in data
        writer.close()
        await writer.wait_closed()
    assert (await runtime.control.call("hello"))["pid"] == runtime.pid


async def test_info_file_and_unknown_target(zygotes):
    runtime = await zygotes("ort").fork(threads=2)
    await runtime.control.call("hello")  # it writes the file before it answers anything, but says earlier that it listens
    info = json.loads((runtime.folder / "info.json").read_text())
    assert (info["runtime_id"], info["pid"], info["flavour"], info["threads"]) == (runtime.runtime_id, runtime.pid, "ort", 2)
    assert os.getsid(runtime.pid) == runtime.pid
    with pytest.raises(FailedPrecondition, match=f"this is runtime {runtime.runtime_id}"):
        await FrameClient.connect_unix(str(runtime.folder / "data.sock"), target="another")


def test_unknown_flavour_ends_with_words():
    command = [
        sys.executable,
        "-m",
        "tessera.runtime.zygote",
        "--flavour",
        "tpu",
        "--socket",
        "/tmp/x",
        "--run-folder",
        "/tmp",
        "--store",
        "/tmp",
    ]
    found = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert found.returncode == 2
    assert "there are ort, aten" in found.stderr
