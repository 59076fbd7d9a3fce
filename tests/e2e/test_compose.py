"""The cluster of deploy/compose on a real engine: models served by real clients, kill -9 of every container, nothing left at the end."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import e2e_models
import numpy as np
import pytest
import tritonclient.grpc as triton
from e2e_cluster import SERVICES, ComposeCluster, build_images
from e2e_load import Load
from e2e_models import Net, agrees
from e2e_platform import until

from deploy.compose import engine
from tessera.sdk import Client, DeadlineExceeded, TesseraError, Unavailable

pytestmark = [pytest.mark.docker, pytest.mark.root, pytest.mark.slow, pytest.mark.timeout(900)]


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory, sources: Path) -> Iterator[ComposeCluster]:
    """With the model `net`. Nothing of it is left afterwards."""
    build_images()
    found = ComposeCluster(tmp_path_factory.mktemp("compose"))
    try:
        found.up()
        with found.client() as client:
            client.register("net", sources / "net.pt2", task="shapes", wait=True)
        yield found
    except TesseraError:
        print(found.logs())
        raise
    finally:
        left = found.down()
        assert left == []


@pytest.fixture
def client(cluster: ComposeCluster) -> Iterator[Client]:
    with cluster.client() as found:
        yield found


def ready(client: Client, variant: str) -> list[tuple[Any, Any]]:
    return [(node, each) for node, each in client.instances() if (each.variant.variant, each.state) == (variant, "ready")]


def test_every_service_came_up_and_said_so(cluster: ComposeCluster) -> None:
    assert sorted(line.split()[0] for line in cluster.said) == sorted(SERVICES)
    cluster.until_ready()


@pytest.mark.parametrize("variant", ["ort-fp32", "aten-fp32"])
def test_the_sdk_and_an_unmodified_client_get_right_answers(cluster: ComposeCluster, client: Client, net: Net, variant: str) -> None:
    asked = e2e_models.images(3)
    first = client.infer(f"net@1/{variant}", {"image": asked})
    (output,) = first.outputs.values()
    assert agrees(output, net.eager(asked))
    assert first.start_path in {"bind", "container"}
    other: Any = triton.InferenceServerClient(cluster.endpoint)
    try:
        given = triton.InferInput("image", list(asked.shape), "FP32")
        given.set_data_from_numpy(asked)
        answer = other.infer("net", [given])
        assert agrees(answer.as_numpy(next(iter(first.outputs))), net.eager(asked))
    finally:
        other.close()
    assert client.explain(first.request_id).stages
    assert cluster.runtimes(), "runtimes are containers of their own"


def test_only_the_gateway_is_reached_from_outside_and_only_nodes_have_the_engine(cluster: ComposeCluster) -> None:
    for each in engine.containers(cluster.project):
        ports = engine.docker("inspect", "-f", "{{json .NetworkSettings.Ports}}", each.container_id)
        assert ("HostPort" in ports) == (each.service == "gateway"), each.service
        mounts = engine.docker("inspect", "-f", "{{json .Mounts}}", each.container_id)
        assert ("docker.sock" in mounts) == each.service.startswith("node-"), each.service
        user = engine.docker("exec", each.container_id, "id", "-u")
        assert user == "10001", each.service
    for each in cluster.runtimes():
        assert engine.docker("inspect", "-f", "{{.HostConfig.NetworkMode}} {{.HostConfig.ReadonlyRootfs}}", each) == "none true"


@pytest.mark.parametrize("victim", [*SERVICES, "the instance's runtime"])
def test_a_killed_container_costs_no_wrong_answer_and_comes_back(cluster: ComposeCluster, client: Client, net: Net, victim: str) -> None:
    cluster.until_ready()
    with Load(cluster, "net@1/ort-fp32", net) as load:
        if victim in SERVICES:
            before = cluster.kill(victim)
            cluster.until_restarted(victim, before)
        else:
            ((_, instance), *_) = until(lambda: ready(client, "ort-fp32"), "an instance serves")
            (container,) = [
                each
                for each in cluster.runtimes()
                if engine.docker("inspect", "-f", "{{json .Config.Labels}}", each).find(instance.runtime_id) > 0
            ]
            engine.docker("kill", container)
        load.progress(within_s=90)
        after = len(load.errors)
        load.progress()
        assert len(load.errors) == after, f"errors end when {victim} is back: {load.errors[after:]}"
        assert all(isinstance(error, Unavailable | DeadlineExceeded) for error in load.errors), load.errors
    images = e2e_models.images(1)
    (output,) = client.infer("net@1/aten-fp32", {"image": images}, timeout_s=60).outputs.values()
    assert np.isfinite(output).all()
    assert agrees(output, net.eager(images))
