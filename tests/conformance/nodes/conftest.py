"""Node providers with real agents and a real etcd: processes of this machine, and containers of the engine."""

from __future__ import annotations

import asyncio
import os
import secrets
import shutil
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tessera.clock import SystemClock
from tessera.coord import keys
from tessera.coord.etcd import EtcdCoordinator
from tessera.coord.records import decode
from tessera.domain.ids import NodeId, TrustDomain
from tessera.domain.records import NodeRecord
from tessera.engine import EngineCalls
from tessera.scheduler.adapters.docker_nodes import DockerNodes
from tessera.scheduler.adapters.local_nodes import LocalNodes
from tessera.scheduler.core.pool import POOL_LABEL
from tessera.scheduler.ports import NodeProvider
from tessera.testing.agents import agent_settings, below
from tessera.testing.etcd import running_etcd

ROOT = Path(__file__).resolve().parents[3]
TAG = os.environ.get("TESSERA_TEST_TAG", "test")
ENGINE = os.environ.get("DOCKER_HOST", "unix:///var/run/docker.sock")
TMPFS = ("-o", "type=tmpfs", "-o", "device=tmpfs", "-o", "o=size=64m,uid=10001,gid=10001,mode=0750")


@dataclass(frozen=True)
class World:
    """`make()`: a provider over the same nodes, as each scheduler has one. `kill`: kill -9 of a node's agent. `left`: of nodes."""

    etcd: str
    make: Callable[[], NodeProvider]
    kill: Callable[[NodeId], object]
    left: Callable[[], Sequence[object]]


@dataclass(frozen=True)
class Pool:
    world: World
    coordinator: EtcdCoordinator
    made: list[NodeProvider] = field(default_factory=list)

    def provider(self) -> NodeProvider:
        self.made.append(self.world.make())
        return self.made[-1]

    async def until(self, provider: NodeProvider, *names: str) -> None:
        """Until the provider has these nodes, and etcd too."""
        async with asyncio.timeout(60):
            while not await provider.nodes() == await self._registered() == set(names):  # noqa: ASYNC110 - others change it
                await asyncio.sleep(0.1)

    async def until_nothing_is_left(self) -> None:
        async with asyncio.timeout(10):
            while self.world.left():  # noqa: ASYNC110 - others change it
                await asyncio.sleep(0.1)

    async def _registered(self) -> set[str]:
        items = (await self.coordinator.list(keys.nodes(TrustDomain("default")))).items
        return {decode(NodeRecord, item.value).node_id for item in items}


@contextmanager
def processes(folder: Path) -> Iterator[World]:
    run = Path(tempfile.mkdtemp(prefix="tspn-", dir="/tmp"))

    def kill(node_id: NodeId) -> None:
        for process in below(run / "added" / node_id):
            process.kill()

    try:
        with running_etcd(folder / "etcd") as etcd:
            template = agent_settings(folder, run, etcd.endpoint)
            make = lambda: LocalNodes(template, run / "added", "extra", SystemClock())  # noqa: E731
            yield World(etcd.endpoint, make, kill, lambda: [*below(run / "added"), *below(run / "extra-0"), *below(run / "extra-1")])
    finally:
        for process in below(run):
            process.kill()
            process.wait(10)
        subprocess.run(["umount", "-l", *map(str, run.glob("*/store-*"))], capture_output=True, check=False)
        shutil.rmtree(run, ignore_errors=True)


def docker(*words: str) -> str:
    done = subprocess.run(["docker", *words], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@contextmanager
def containers(folder: Path) -> Iterator[World]:
    """The template is made and never started."""
    subprocess.run([sys.executable, "-m", "deploy.images", "node-agent", "etcd", "--tag", TAG], cwd=ROOT, check=True)
    name = f"tspn-{secrets.token_hex(3)}"
    mine = f"label={POOL_LABEL}={name}"

    def left() -> list[str]:
        return [*docker("ps", "-aq", "--filter", mine).split(), *docker("volume", "ls", "-q", "--filter", mine).split()]

    with ExitStack() as stack:
        docker("network", "create", "--internal", name)
        stack.callback(docker, "network", "rm", name)
        for volume, options in (("repository", ()), ("state", ()), ("run", ()), ("store", TMPFS)):
            docker("volume", "create", *options, f"{name}-{volume}")
            stack.callback(docker, "volume", "rm", f"{name}-{volume}")
        etcd = ("etcd", "--listen-client-urls=http://0.0.0.0:2379", "--advertise-client-urls=http://etcd:2379", "--data-dir=/tmp/etcd")
        docker(
            "run",
            "-d",
            "--name",
            f"{name}-etcd",
            "--network",
            name,
            "--network-alias",
            "etcd",
            "--entrypoint",
            etcd[0],
            f"tessera-etcd:{TAG}",
            *etcd[1:],
        )
        stack.callback(docker, "rm", "-f", "-v", f"{name}-etcd")
        settings = {
            "ETCD_ENDPOINTS": '["etcd:2379"]', "NODE_ID": "n1", "ADVERTISE_HOST": "n1", "ADDRESS": "0.0.0.0:8020",
            "START_ADDRESS": "0.0.0.0:8060",
            "RELAY_ADDRESS": "0.0.0.0:8021", "PEER_ADDRESS": "0.0.0.0:8040", "REPOSITORY_URL": "file:///var/lib/tessera/repository",
            "STATE_FOLDER": "/var/lib/tessera/state", "RUN_FOLDER": "/run/tessera", "FLAVOURS": '["ort"]', "LEASE_TTL_S": "2",
            "STORES": '[{"folder": "/var/lib/tessera/store", "budget_bytes": 16777216}]',
        }  # fmt: skip
        words = [word for key, value in settings.items() for word in ("-e", f"TESSERA_{key}={value}")]
        words += ["-v", f"{name}-repository:/var/lib/tessera/repository:ro", "-v", f"{name}-state:/var/lib/tessera/state"]
        words += ["-v", f"{name}-run:/run/tessera", "-v", f"{name}-store:/var/lib/tessera/store"]
        words += ["--health-cmd", "python -m tessera.probe 127.0.0.1:8020", "--health-interval", "1s", "--health-retries", "60"]
        docker("create", "--name", name, "--network", name, "--memory", "1g", *words, f"tessera-node-agent:{TAG}")
        stack.callback(docker, "rm", "-f", name)
        address = docker("inspect", "-f", f'{{{{(index .NetworkSettings.Networks "{name}").IPAddress}}}}', f"{name}-etcd")
        try:
            make = lambda: DockerNodes(EngineCalls(ENGINE), name, "extra", SystemClock())  # noqa: E731
            yield World(f"{address}:2379", make, lambda node_id: docker("kill", f"{name}-{node_id}"), left)
        finally:
            for each in docker("ps", "-aq", "--filter", mine).split():
                docker("rm", "-f", "-v", each)


@pytest.fixture(params=[pytest.param(processes, id="local"), pytest.param(containers, id="docker", marks=pytest.mark.docker)])
def world(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[World]:
    with request.param(tmp_path) as found:
        yield found


@pytest.fixture
async def pool(world: World) -> AsyncIterator[Pool]:
    coordinator = EtcdCoordinator([world.etcd])
    found = Pool(world, coordinator)
    yield found
    for provider in found.made:
        await provider.close()
    await coordinator.close()
