"""A container engine that is killed and comes back: one of the test's own, so that nobody else's containers die with it."""

from __future__ import annotations

import asyncio
import shutil
import subprocess
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tessera.domain.errors import TesseraError, Unavailable

pytestmark = [pytest.mark.docker, pytest.mark.root, pytest.mark.slow]

ANSWERS_WITHIN_S = 60.0


class EngineOfOwn:
    """A dockerd and its containerd with folders of their own. `kill` is the dockerd's alone.

    In a network of its own: beside another engine it would take that one's default bridge away."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.url = f"unix://{folder}/docker.sock"
        self.containerd = self._spawn(
            "containerd", "--address", f"{folder}/containerd.sock", "--root", f"{folder}/containers", "--state", f"{folder}/state"
        )
        self.dockerd: subprocess.Popen[bytes] | None = None

    def _spawn(self, *command: str) -> subprocess.Popen[bytes]:
        with (self.folder / "log").open("ab") as log:
            return subprocess.Popen(command, stdout=log, stderr=log, stdin=subprocess.DEVNULL)

    def docker(self, *arguments: str) -> str:
        done = subprocess.run(["docker", "--host", self.url, *arguments], check=True, capture_output=True, text=True)
        return done.stdout.strip()

    def start(self) -> None:
        folders = ["--data-root", f"{self.folder}/data", "--exec-root", f"{self.folder}/exec", "--pidfile", f"{self.folder}/pid"]
        nothing = ["--bridge=none", "--iptables=false", "--ip-forward=false", "--ip-masq=false"]
        (self.folder / "pid").unlink(missing_ok=True)
        self.dockerd = self._spawn(
            "unshare", "--net", "dockerd", "--host", self.url, "--containerd", f"{self.folder}/containerd.sock", *folders, *nothing
        )
        until = time.monotonic() + ANSWERS_WITHIN_S
        while subprocess.run(["docker", "--host", self.url, "version"], capture_output=True, check=False).returncode:
            if self.dockerd.poll() is not None or time.monotonic() > until:
                raise AssertionError((self.folder / "log").read_text()[-2000:])
            time.sleep(0.1)

    def kill(self) -> None:
        assert self.dockerd is not None
        self.dockerd.kill()
        self.dockerd.wait(30)

    def end(self) -> None:
        if self.dockerd is not None and self.dockerd.poll() is None:
            left = self.docker("ps", "-aq").split()
            if left:
                self.docker("rm", "-f", *left)
            self.dockerd.terminate()
            self.dockerd.wait(30)
        self.containerd.terminate()
        self.containerd.wait(30)
        for line in reversed(Path("/proc/self/mounts").read_text().splitlines()):  # a killed dockerd leaves its own
            if line.split()[1].startswith(str(self.folder)):
                subprocess.run(["umount", line.split()[1]], check=True)

    def take(self, image: str) -> None:
        """Copies an image from the machine's engine."""
        with subprocess.Popen(["docker", "save", image], stdout=subprocess.PIPE) as saving:
            subprocess.run(["docker", "--host", self.url, "load", "-q"], stdin=saving.stdout, capture_output=True, check=True)


@pytest.fixture
def engine(ort_image: str) -> Iterator[EngineOfOwn]:
    folder = Path(tempfile.mkdtemp(prefix="tsrd-"))
    found = EngineOfOwn(folder)
    try:
        found.start()
        found.take(ort_image)
        yield found
    finally:
        found.end()
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
async def node(agent: Any, ort_image: str, engine: EngineOfOwn) -> AsyncIterator[Any]:
    agent.settings |= {"runtimes": "container", "engine_url": engine.url, "runtime_images": {"ort": ort_image}, "drain_ms": 100}
    yield agent
    await agent.end()


async def test_the_agent_outlives_its_engine(node: Any, kit: Any, engine: EngineOfOwn) -> None:
    model = kit.make_linear(node.repository, "ort")
    await node.start()
    instance = await node.start_instance("a", model.artifact)
    client = await kit.direct(instance)
    x = np.ones((1, kit.width), np.float32)

    engine.kill()
    np.testing.assert_allclose(await kit.ask(client, instance.generation, x), model.expected(x), atol=1e-4)
    with pytest.raises(Unavailable, match=f"container engine {engine.url} does not answer"):
        await node.start_instance("b", model.artifact, start_path="container")
    assert (await node.start_instance("c", model.artifact)).start_path == "bind"  # what is warm is used as before

    await asyncio.to_thread(engine.start)  # it ends the containers that it finds running

    async def lost() -> Any:
        shown = await node.instance("a")
        return shown is not None and shown.state == "failed"

    await node.until(lost)
    with pytest.raises(TesseraError):
        await kit.ask(client, instance.generation, x)
    client.close()

    async def again() -> Any:
        try:
            return await node.start_instance("d", model.artifact)
        except Unavailable:  # the engine is not done with itself
            return None

    fresh = await node.until(again)
    client = await kit.direct(fresh)
    np.testing.assert_allclose(await kit.ask(client, fresh.generation, x), model.expected(x), atol=1e-4)
    client.close()

    async def swept() -> Any:
        return len(engine.docker("ps", "-aq").split()) == len((await node.status()).runtimes)

    await node.until(swept)
    assert await node.terminate() == 0
    assert engine.docker("ps", "-aq") == ""
