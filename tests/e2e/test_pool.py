"""A cluster by Compose whose nodes come and go with the load: containers like node-a, made and taken away by the schedulers."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from e2e_cluster import ComposeCluster, build_images
from e2e_load import BATCH, Load
from e2e_models import Net
from e2e_platform import until
from e2e_profiles import write_profile

from deploy.compose import engine
from tessera.sdk import Client, DeadlineExceeded, TesseraError, Unavailable

pytestmark = [pytest.mark.docker, pytest.mark.root, pytest.mark.slow, pytest.mark.timeout(600)]

VARIANT = "ort-fp32"
PEAK_PER_S = 20.0
THREADS = 4


@pytest.fixture
def cluster(tmp_path: Path, sources: Path) -> Iterator[ComposeCluster]:
    """With the model `net`, and one node of the two."""
    build_images()
    found = ComposeCluster(tmp_path, ["pool"], {"TESSERA_NODE_PERIOD_S": "0.5"})
    try:
        found.up()
        with found.client() as client:
            client.register("net", sources / "net.pt2", wait=True)
            engine.docker("stop", found.container("node-b"))
            until(lambda: nodes(client) == {"node-a"}, "one node is left")
        yield found
    except TesseraError:
        print(found.logs())
        raise
    finally:
        left = found.down()
        assert left == []


def nodes(client: Client) -> set[str]:
    return {node.node_id for node in client.nodes()}


def serving(client: Client) -> set[str]:
    return {node for node, one in client.instances() if (one.variant.variant, one.state) == (VARIANT, "ready")}


def test_a_container_node_comes_serves_and_goes(cluster: ComposeCluster, net: Net) -> None:
    etcd = engine.docker("inspect", "-f", "{{range .NetworkSettings.Networks}}{{.IPAddress}}{{end}}", cluster.container("etcd"))
    write_profile(f"{etcd}:2379", "net", VARIANT, PEAK_PER_S)
    with cluster.client() as client:
        with Load(cluster, f"net@1/{VARIANT}", net, threads=THREADS, pause_s=THREADS * BATCH / (3 * PEAK_PER_S)) as load:
            until(lambda: nodes(client) == {"node-a", "extra-0"}, "another node is there", 120)
            (added,) = engine.pooled(cluster.project)
            assert load.errors == []
            engine.docker("stop", cluster.container("node-a"))
            until(lambda: serving(client) == {"extra-0"}, "the added node serves", 90)
            load.progress(20)
            assert all(isinstance(error, Unavailable | DeadlineExceeded) for error in load.errors), load.errors
            for scheduler in ("scheduler-a", "scheduler-b"):
                cluster.kill(scheduler)
            engine.docker("start", cluster.container("node-a"))
            until(lambda: nodes(client) == {"node-a", "extra-0"}, "the other one is back", 90)
            load.progress(20)
            assert engine.pooled(cluster.project) == [added], "whoever leads found it"
        until(lambda: nodes(client) == {"node-a"}, "the added node is gone", 120)
        until(lambda: not engine.pooled(cluster.project), "its container too", 60)
    assert not [name for name in engine.volumes(cluster.project) if not name.startswith(cluster.project)]
