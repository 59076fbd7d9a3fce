"""A platform of two nodes, in the foreground, with settings of its own: where starts go, what it says, what is left of it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import e2e_models
import numpy as np
import pytest
from e2e_platform import Platform, environment, tessera, until

from tessera.sdk import Client

INPUTS = {"net": {"image": e2e_models.images(1)}, "wide": {"x": np.ones((1, 1024), np.float32)}}
"""Two models that share no bytes."""
ENV = {"TESSERA_MAY_MOUNT": "0", "TESSERA_LEASE_TTL_S": "3"}
"""The stores lie where they do for users who may not mount; a lost lease is soon noticed."""


@pytest.fixture(scope="module")
def said(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("said") / "stderr"


@contextmanager
def only_node(platform: Platform, client: Client, index: int) -> Iterator[None]:
    """The other node's agent stands still meanwhile, and everybody knows: its lease is lost."""
    other = platform.process(f"node-agent-{1 - index}")["pid"]

    def with_lease() -> set[str]:
        return {service.id for service in client.platform().services if service.kind == "node-agent"}

    os.kill(other, signal.SIGSTOP)
    try:
        until(lambda: with_lease() == {f"node-{index}"}, "the other node counts as lost")
        yield
    finally:
        os.kill(other, signal.SIGCONT)
        platform.until_ready()


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory, said: Path, sources: Path) -> Iterator[Platform]:
    """With `net`, which node-0 baked and so has the bytes of, and `wide`, the same of node-1."""
    found = Platform(tmp_path_factory.mktemp("two") / "state", store="64M", env=ENV, nodes=2)
    command = [sys.executable, "-m", "tessera.cli", *found.up_words]
    with said.open("wb") as file, subprocess.Popen(command, stderr=file, stdout=file, env=environment(ENV), cwd="/") as process:
        try:
            until(lambda: "up: gRPC" in said.read_text() or process.poll() is not None, "it says that it is up", 120)
            assert process.poll() is None, said.read_text()
            with found.client() as client:
                wide = e2e_models.save(e2e_models.Wide(2), (1024,), said.parent / "wide.pt2")
                with only_node(found, client, 0):
                    client.register("net", sources / "net.pt2", wait=True)
                with only_node(found, client, 1):
                    client.register("wide", wide, wait=True)
            yield found
            found.check_stores()
            process.send_signal(signal.SIGINT)
            assert process.wait(60) == 0
        finally:
            found.end()
            process.kill()
    assert said.read_text().splitlines()[-1] == "down"
    assert found.leftovers() == []
    assert [found.store_folder(node).exists() for node in (0, 1)] == [False, False]


@pytest.fixture
def client(two: Platform) -> Iterator[Client]:
    with two.client() as found:
        yield found


def ask(client: Client, model: str) -> str:
    """The node that a first answer comes from."""
    answer = client.infer(f"{model}@1/ort-fp32", INPUTS[model], timeout_s=60)
    assert answer.start_path in {"bind", "fork"}
    return answer.node


def test_foreground_up_says_where_to_call_and_how_to_stop(two: Platform, said: Path) -> None:
    lines = said.read_text()
    assert f"up: gRPC (Open Inference) on {two.endpoint}" in lines
    assert f"Ctrl-C here, or anywhere with: tessera down --state {two.state}" in lines


def test_both_nodes_are_listed_with_a_store_of_their_own(two: Platform) -> None:
    nodes = two.json("node", "list")
    assert [(node["id"], node["stores"][0]["budget_bytes"]) for node in nodes] == [("node-0", 64 << 20), ("node-1", 64 << 20)]
    assert {two.store_folder(node).parent for node in (0, 1)} == {Path("/dev/shm")}
    assert sum(row["kind"] == "node-agent" and row["ready"] for row in two.json("status")) == 2


def test_settings_from_the_environment_of_up_are_shown(two: Platform) -> None:
    """`config show` runs in another environment than `up` did."""
    shown = two.json("config", "show")
    agents = [shown[f"node-agent-{node}"] for node in (0, 1)]
    assert [(agent["may_mount"], agent["lease_ttl_s"]) for agent in agents] == [(False, 3.0)] * 2
    assert [agent["run_folder"] for agent in agents] == [str(two.layout.node_run(node)) for node in (0, 1)]


def test_a_start_goes_to_the_node_where_the_bytes_are(two: Platform, client: Client) -> None:
    """Where neither bytes nor load speak for one of them, node-0 is taken: `wide` on node-1 is there for its bytes."""
    assert {model: ask(client, model) for model in INPUTS} == {"net": "node-0", "wide": "node-1"}
    for model, node in (("net", 0), ("wide", 1)):
        (used,) = [each.stores[0].used_bytes for each in client.nodes() if each.node_id == f"node-{node}"]
        assert used > 0, model


def test_more_nodes_than_fit_into_memory_are_refused(tmp_path: Path) -> None:
    done = tessera("up", "--detach", "--state", str(tmp_path / "state"), "--nodes", "16", "--store", "9999G")
    assert done.returncode == 1
    assert f"--nodes 16 with --store {9999 << 30} bytes need {16 * 9999 << 30} bytes of memory" in done.stderr
    assert not (tmp_path / "state").exists()
