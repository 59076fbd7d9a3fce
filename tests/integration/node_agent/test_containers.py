"""A real node agent with containers for runtimes: what they may not do, what ends them, what survives what."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

from tessera.domain.errors import TesseraError
from tessera.domain.ids import TrustDomain, domain_tag

pytestmark = pytest.mark.docker

DOMAIN = TrustDomain("default")


def docker(*arguments: str, host: str = "") -> str:
    command = ["docker", *(["--host", host] if host else []), *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


def inspect(container_id: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(docker("inspect", container_id))[0]
    return found


def containers_of(run: Path) -> list[str]:
    """Those with a run folder below `run`."""
    found = docker("ps", "-a", "--no-trunc", "--filter", "label=tessera.node=n1", "--format", '{{.ID}} {{.Label "tessera.run"}}')
    return [line.split()[0] for line in found.splitlines() if line.split()[1].startswith(f"bind:{run}/")]


@pytest.fixture
async def node(agent: Any, ort_image: str) -> AsyncIterator[Any]:
    agent.settings |= {"runtimes": "container", "runtime_images": {"ort": ort_image}, "drain_ms": 100}
    yield agent
    await agent.end()
    left = containers_of(agent.run)
    if left:
        docker("rm", "-f", *left)


async def answers(kit: Any, instance: Any, model: Any) -> None:
    x = np.ones((1, kit.width), np.float32)
    client = await kit.direct(instance)
    try:
        np.testing.assert_allclose(await kit.ask(client, instance.generation, x), model.expected(x), atol=1e-4)
    finally:
        client.close()


async def warm(node: Any) -> Any:
    """The pool has a runtime."""

    async def found() -> Any:
        return next((item for item in (await node.status()).runtimes if item.instances == 0), None)

    return await node.until(found)


async def failed(node: Any, name: str) -> Callable[[], Any]:
    async def found() -> Any:
        shown = await node.instance(name)
        return shown if shown is not None and shown.state == "failed" and ": " in shown.error else None

    return found


async def test_a_start_goes_into_a_warm_container_and_makes_one_where_there_is_none(node: Any, kit: Any) -> None:
    models = [kit.make_linear(node.repository, "ort", seed) for seed in range(3)]
    await node.start(warm_runtimes=0, max_instances_per_runtime=2)
    first = await node.start_instance("a", models[0].artifact)
    second = await node.start_instance("b", models[1].artifact)
    third = await node.start_instance("c", models[2].artifact)
    assert [item.start_path for item in (first, second, third)] == ["container", "bind", "container"]
    assert first.runtime_id == second.runtime_id != third.runtime_id
    assert [time.stage for time in first.stages] == ["fetch", "container", "map", "load"]
    for instance, model in zip((first, second, third), models, strict=True):
        await answers(kit, instance, model)
    status = await node.status()
    assert status.new_runtimes == "container"
    assert sorted(item.container_id for item in status.runtimes) == sorted(containers_of(node.run))
    assert {item.kind for item in status.runtimes} == {"container"}
    assert await node.terminate() == 0
    assert containers_of(node.run) == []
    assert not node.run.exists()


async def test_a_container_may_do_nothing_but_serve(node: Any, kit: Any) -> None:
    await node.start(runtime_memory_bytes=256 << 20, runtime_cpus=1.5, runtime_pids=100)
    runtime = await warm(node)
    found = inspect(runtime.container_id)
    host = found["HostConfig"]
    user, domain = found["Config"]["User"], node.run / f"d-{domain_tag(DOMAIN)}"
    assert int(user.split(":")[0]) >= 60600
    assert (host["NetworkMode"], host["ReadonlyRootfs"], host["CapDrop"], host["Privileged"]) == ("none", True, ["ALL"], False)
    assert (host["Memory"], host["MemorySwap"], host["NanoCpus"], host["PidsLimit"]) == (256 << 20, 256 << 20, 1_500_000_000, 100)
    assert (host["SecurityOpt"], host["Init"], host["IpcMode"]) == (["no-new-privileges"], True, "none")
    assert host["LogConfig"]["Config"] == {"max-size": "1m", "max-file": "2"}
    mounts = {item["Destination"]: (item["Source"], item["RW"]) for item in found["Mounts"]}
    assert mounts == {
        "/store": (str(node.run / f"store-{domain_tag(DOMAIN)}"), False),
        f"/run/tessera/{runtime.runtime_id}": (str(domain / runtime.runtime_id), True),
    }
    labels = found["Config"]["Labels"]
    assert labels["tessera.node"] == "n1"
    assert (labels["tessera.trust-domain"], labels["tessera.flavour"]) == ("default", "ort")
    status = dict(line.split(":\t", 1) for line in Path(f"/proc/{runtime.pid}/status").read_text().splitlines() if ":\t" in line)
    assert status["Uid"].split() == user.split(":")[:1] * 4
    assert {int(status[name], 16) for name in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb")} == {0}
    assert status["NoNewPrivs"] == "1"
    assert status["Seccomp"] == "2"
    tries = {
        "write to its root": "open('/opt/x', 'w')",
        "write to the store": "open('/store/blobs/x', 'w')",
        "run what it wrote": "open('/tmp/x', 'w').write('#!/bin/sh'); import os; os.chmod('/tmp/x', 0o755); os.execv('/tmp/x', ['x'])",
        "reach the network": "import socket; socket.create_connection(('1.1.1.1', 53), 2)",
        "see another runtime's folder": "import os; assert len(os.listdir('/run/tessera')) != 1",
    }
    for what, code in tries.items():
        with pytest.raises(subprocess.CalledProcessError):
            print(what, docker("exec", runtime.container_id, "python", "-c", code))
    devices = docker("exec", runtime.container_id, "python", "-c", "import os; print(*sorted(os.listdir('/sys/class/net')))")
    assert devices == "lo"


async def test_a_container_removed_by_hand_costs_its_instances_and_says_so(node: Any, kit: Any) -> None:
    model = kit.make_linear(node.repository, "ort")
    await node.start()
    instance = await node.start_instance("a", model.artifact)
    runtime = next(item for item in (await node.status()).runtimes if item.runtime_id == instance.runtime_id)
    removing = asyncio.get_running_loop().run_in_executor(None, docker, "rm", "-f", runtime.container_id)

    async def is_dead() -> bool:
        return not psutil.pid_exists(instance.pid)

    await node.until(is_dead)
    shown = await node.until(await failed(node, "a"))
    await removing
    assert "removed" in shown.error or "killed by signal 9" in shown.error  # whichever the engine tells first
    assert not Path(instance.endpoint.unix_path).parent.exists()
    again = await node.start_instance("b", model.artifact)
    assert (again.state, again.fetched) == ("ready", False)
    await answers(kit, again, model)


async def test_a_runtime_that_runs_out_of_memory_says_so_and_is_backed_off(node: Any, kit: Any) -> None:
    """The identity model gives back what it got: a request larger than the limit allows is what kills it."""
    await node.start(runtime_memory_bytes=96 << 20, warm_runtimes=0)
    instance = await node.start_instance("a")
    client = await kit.direct(instance)
    x = np.ones((60 << 20) // 4, np.float32)
    with pytest.raises(TesseraError):
        await kit.ask(client, instance.generation, x, "INPUT0")
    client.close()
    shown = await node.until(await failed(node, "a"))
    assert "out of memory: killed at its limit of 96 MiB (runtime_memory_bytes)" in shown.error


async def test_weights_count_as_the_agents_memory_not_as_the_containers(node: Any, kit: Any) -> None:
    """A model of more bytes than its container may have: pages of a tmpfs are charged to whoever wrote them."""
    width = 6144
    model = kit.make_linear(node.repository, "ort", width=width)
    assert model.weight.nbytes > 128 << 20
    await node.start(runtime_memory_bytes=128 << 20, stores=[{"budget_bytes": 512 << 20}])
    instance = await node.start_instance("a", model.artifact)
    x = np.ones((1, width), np.float32)
    client = await kit.direct(instance)
    np.testing.assert_allclose(await kit.ask(client, instance.generation, x), model.expected(x), rtol=1e-2, atol=1e-2)
    client.close()
    runtime = next(item for item in (await node.status()).runtimes if item.runtime_id == instance.runtime_id)
    charged = memory_of(runtime.container_id)
    assert charged < 128 << 20
    rollup = Path(f"/proc/{runtime.pid}/smaps_rollup").read_text()
    resident = next(int(line.split()[1]) << 10 for line in rollup.splitlines() if line.startswith("Rss:"))
    assert resident > model.weight.nbytes, "it has read every weight"


def memory_of(container_id: str) -> int:
    """What the kernel charges the container, either version of control groups."""
    v1 = Path(f"/sys/fs/cgroup/memory/docker/{container_id}/memory.usage_in_bytes")
    if v1.exists():
        return int(v1.read_text())
    pid = inspect(container_id)["State"]["Pid"]
    group = Path(f"/proc/{pid}/cgroup").read_text().strip().rpartition(":")[2]
    return int(Path(f"/sys/fs/cgroup{group}/memory.current").read_text())


async def test_the_next_agent_adopts_the_containers_and_sweeps_what_is_no_use(node: Any, kit: Any) -> None:
    model = kit.make_linear(node.repository, "ort")
    await node.start()
    instance = await node.start_instance("a", model.artifact)
    await warm(node)
    doomed = next(item for item in (await node.status()).runtimes if item.instances == 0)
    await node.hang_up()
    node.kill()
    await answers(kit, instance, model)  # nobody is at home
    os.kill(doomed.pid, 9)
    labels = inspect(doomed.container_id)["Config"]["Labels"] | {"tessera.runtime-id": "rt-ort-old", "tessera.store": "0:0"}
    image = node.settings["runtime_images"]["ort"]
    old = docker(
        "run",
        "-d",
        "--network",
        "none",
        *(word for name, value in labels.items() for word in ("--label", f"{name}={value}")),
        image,
        "sleep",
        "600",
    )
    try:
        await node.start()
        shown = await node.instance("a")
        assert (shown.pid, shown.generation, shown.runtime_id) == (instance.pid, instance.generation, instance.runtime_id)
        await answers(kit, shown, model)
        kept = containers_of(node.run)
        assert old not in kept
        assert doomed.container_id not in kept
    finally:
        if old in containers_of(node.run):
            docker("rm", "-f", old)
    await node.start_instance("b", model.artifact)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (
            {"engine_url": "unix:///nowhere/docker.sock"},
            "runtimes are to be containers, and container engine unix:///nowhere/docker.sock does not answer",
        ),
        ({"runtime_images": {"ort": "tessera-nothing:none"}}, "image tessera-nothing:none is not at the container engine"),
        ({"runtime_images": {"aten": "x"}}, "runtime_images names no image for flavour ort"),
    ],
)
async def test_containers_that_cannot_be_had_are_refused_at_the_start(node: Any, settings: dict[str, Any], words: str) -> None:
    process = node.spawn(**settings)
    assert await asyncio.to_thread(process.wait, 90) != 0
    assert words in node.log.read_text()


async def test_an_image_that_does_not_serve_says_its_last_words(node: Any) -> None:
    """The right image with a store that is none: what it says stands in the error."""
    await node.start(warm_runtimes=0, flavours=["ort"], runtime_images={"ort": "tessera-base:bookworm"})
    with pytest.raises(TesseraError, match="python"):
        await node.start_instance("a")
    assert containers_of(node.run) == []


async def test_processes_never_touch_an_engine(agent: Any) -> None:
    await agent.start(engine_url="unix:///nowhere/docker.sock")
    assert (await agent.start_instance("a")).state == "ready"
    assert {item.kind for item in (await agent.status()).runtimes} == {"process"}
