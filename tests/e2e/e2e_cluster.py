"""A cluster by Compose, brought up as `make compose-up` does, under a name and on ports of its own."""

from __future__ import annotations

import os
import secrets
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from e2e_platform import free_port_base, until, until_services_ready

from deploy.compose import engine
from deploy.compose.cluster import Cluster
from tessera.sdk import Client

ROOT = Path(__file__).resolve().parents[2]
TAG = os.environ.get("TESSERA_TEST_TAG", "test")
SERVICES = ("etcd", "gateway", "node-a", "node-b", "profiler", "registry", "scheduler-a", "scheduler-b")
NODES = 2
UP_S = 240.0


def build_images() -> None:
    """Of this working tree; only what changed since they were built last."""
    subprocess.run([sys.executable, "-m", "deploy.images", "--tag", TAG], cwd=ROOT, check=True)


class ComposeCluster:
    """`folder` takes its secret and the words of Compose; `overrides` and `settings` as `Cluster` has them."""

    def __init__(self, folder: Path, overrides: Sequence[str] = (), settings: Mapping[str, str] | None = None) -> None:
        self.said: list[str] = []
        given = {
            "TESSERA_TAG": TAG,
            "TESSERA_ETCD_IMAGE": f"tessera-etcd:{TAG}",
            "TESSERA_STORE_BYTES": str(256 << 20),
            "TESSERA_STORE_TMPFS": "320m",
            **(settings or {}),
        }
        self._cluster = Cluster(
            f"tessera-test-{secrets.token_hex(3)}",
            free_port_base(),
            folder / "secrets",
            overrides=overrides,
            settings=given,
            say=self.said.append,
        )
        self.project = self._cluster.project
        self.endpoint = self._cluster.endpoint

    def up(self) -> None:
        self._cluster.up(UP_S)

    def down(self) -> list[str]:
        return self._cluster.down()

    def logs(self) -> str:
        return self._cluster.logs()

    def connect(self) -> Client:
        return Client(self.endpoint, token=self._cluster.token)

    @contextmanager
    def client(self) -> Iterator[Client]:
        with self.connect() as client:
            yield client

    def container(self, service: str) -> str:
        return self._cluster.container(service)

    def state(self, service: str) -> Any:
        """What the engine says: pid and start of the container's first process."""
        return engine.docker("inspect", "-f", "{{.State.Pid}} {{.State.StartedAt}}", self.container(service))

    def kill(self, service: str) -> str:
        """kill -9 of a container's first process, as a crash would have it (`docker kill` would keep it from being restarted); returns
        what `state` was."""
        before = self.state(service)
        os.kill(int(before.split()[0]), signal.SIGKILL)
        return str(before)

    def until_restarted(self, service: str, before: str) -> None:
        until(lambda: self.state(service) != before and not self.state(service).startswith("0 "), f"{service} is started again")
        self.until_ready()

    def until_ready(self, within_s: float = 90.0) -> None:
        """Until every service says through the gateway that it is ready."""
        with self.client() as client:
            until_services_ready(client, NODES, within_s)

    def runtimes(self) -> list[str]:
        """Ids of the containers that node agents made."""
        return engine.runtimes(self.project)
