"""A platform for a benchmark: brought up with the CLI, its registry kept in `.demo/bench` so that models are imported once."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from benchmarks.models import BenchModel
from tessera.api.node.v1 import node_pb2
from tessera.sdk import Client

STATE = Path(".demo/bench").resolve()
PORT_BASE = 19000
SETTLE_S = 0.03
"""Between the agent's word that an instance is gone and the gateway's knowing it."""


@contextmanager
def platform(*words: str, env: Mapping[str, str] | None = None, store: str = "6G", state: Path = STATE) -> Iterator[Client]:
    """Up, a client, down. `words` are further options of `tessera up`, `env` settings of its processes (TESSERA_<FIELD>).

    Variants beside the base ones are made where `env` says so alone: making them beside a measurement would disturb it.
    """
    where = ["--state", str(state)]
    command = [sys.executable, "-m", "tessera.cli"]
    up = [*command, "up", "--detach", *where, "--port-base", str(PORT_BASE), "--store", store, *words]
    try:
        subprocess.run(up, check=True, stderr=subprocess.DEVNULL, env={**os.environ, "TESSERA_RECIPES": "[]", **(env or {})})
        with Client(state=state) as client:
            yield client
    finally:
        subprocess.run([*command, "down", *where], check=False, stderr=subprocess.DEVNULL)


def register(client: Client, model: BenchModel, *, lossy: bool | None = None) -> None:
    begun = time.monotonic()
    result = client.register(model.name, model.source, builder_args=model.arguments or None, seed=model.seed, lossy=lossy, wait=True)
    if not result.unchanged:
        print(f"registered {model.name} in {time.monotonic() - begun:.0f} s", flush=True)


def instances_of(client: Client, model: str) -> list[tuple[str, node_pb2.Instance]]:
    return [(node, found) for node, found in client.instances() if found.variant.model == model]


def stop_all(client: Client, model: str) -> None:
    """Stops every instance of a model and waits until they are gone."""
    for node, found in instances_of(client, model):
        client.stop_instance(node, found.instance_id)
    deadline = time.monotonic() + 30
    while any(found.state not in ("gone", "failed") for _, found in instances_of(client, model)):
        if time.monotonic() > deadline:
            raise SystemExit(f"instances of {model} do not go away")
        time.sleep(0.005)
    time.sleep(SETTLE_S)
