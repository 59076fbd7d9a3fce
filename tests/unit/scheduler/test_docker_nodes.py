"""Nodes as containers, over an engine that is a table: what a copy has, what goes with a node, what is refused and in which words."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from itertools import count
from typing import Any

import pytest
import requests
from docker.errors import APIError, NotFound

from tessera.domain.errors import FailedPrecondition, TesseraError, Unavailable
from tessera.domain.ids import NodeId
from tessera.domain.labels import POOL_LABEL, RUNTIME_LABEL
from tessera.engine import EngineCalls
from tessera.scheduler.adapters.docker_nodes import DockerNodes
from tessera.scheduler.core.pool import MEMBER_LABEL, copy_of, networks_of
from tessera.testing import VirtualClock

LIKE = "lab-node-a"
IMAGE = "tessera-node-agent:dev"
STORE = {"Driver": "local", "Options": {"type": "tmpfs", "device": "tmpfs", "o": "size=64m"}}
MOUNTS = [
    {"Type": "bind", "Source": "/var/run/docker.sock", "Destination": "/var/run/docker.sock", "RW": True},
    {"Type": "volume", "Name": "lab_repository", "Source": "/v/r", "Destination": "/repository", "RW": False},
    {"Type": "volume", "Name": "lab_store", "Source": "/v/s", "Destination": "/store", "RW": True},
]


def template(**changes: Any) -> dict[str, Any]:
    """A node agent's container, as the engine tells of it."""
    return {
        "Id": "t", "Name": f"/{LIKE}", "Mounts": MOUNTS, "NetworkSettings": {"Networks": {"lab_inside": {}}},
        "Config": {
            "Image": IMAGE, "Cmd": None, "Entrypoint": ["python", "-m", "tessera.node_agent"], "User": "tessera", "WorkingDir": "",
            "Env": ["TESSERA_NODE_ID=node-a", "TESSERA_ADVERTISE_HOST=node-a", "TESSERA_LOG_LEVEL=info"], "Labels": {"com.example": "x"},
        },
        "HostConfig": {
            "NetworkMode": "lab_inside", "Memory": 1 << 30, "PidMode": "host", "CapDrop": ["ALL"], "ReadonlyRootfs": True,
            "Binds": ["lab_store:/store:rw"], "PortBindings": {"8020/tcp": [{"HostPort": "8020"}]}, "GroupAdd": ["999"],
        },
        **changes,
    }  # fmt: skip


def refusal(status: int, words: str) -> APIError:
    response = requests.Response()
    response.status_code = status
    return (NotFound if status == 404 else APIError)("failed", response, words)


class FakeEngine:
    """Containers and volumes by name. `health`: of what starts; `crash`: it ends at once; `networks`: those that there are."""

    def __init__(self) -> None:
        self.items: dict[str, dict[str, Any]] = {LIKE: template()}
        self.volumes_by_name: dict[str, dict[str, Any]] = {"lab_store": {"Name": "lab_store", "Labels": None, **STORE}}
        self.networks = {"lab_inside"}
        self.images = {IMAGE}
        self.health = "healthy"
        self.crash = False
        self.stopped: list[str] = []
        self._numbers = count()

    def inspect_container(self, name: str) -> dict[str, Any]:
        for key, item in self.items.items():
            if name in (key, item["Id"]):
                return item
        raise refusal(404, f"No such container: {name}")

    def inspect_volume(self, name: str) -> dict[str, Any]:
        return self.volumes_by_name[name]

    def info(self) -> dict[str, Any]:
        return {"MemTotal": 4 << 30}

    def create_container_from_config(self, request: dict[str, Any], name: str) -> dict[str, Any]:
        if request["Image"] not in self.images:
            raise refusal(404, f"No such image: {request['Image']}")
        if name in self.items:
            raise refusal(409, f'Conflict. The container name "/{name}" is already in use')
        mounts = []
        for mount in request["HostConfig"]["Mounts"]:
            volume = mount.get("Source", "")
            if mount["Type"] == "volume" and not volume:
                volume = f"anonymous-{next(self._numbers)}"
                options = mount["VolumeOptions"]
                self.volumes_by_name[volume] = {"Name": volume, "Labels": options["Labels"], "Options": options["DriverConfig"]["Options"]}
            mounts.append({"Name": volume, "Destination": mount["Target"], "Anonymous": not mount.get("Source")})
        self.items[name] = {
            **request,
            "Id": f"id-{name}",
            "Name": f"/{name}",
            "State": {"Running": False},
            "RestartCount": 0,
            "Mounts": mounts,
        }
        return {"Id": f"id-{name}"}

    def start(self, container_id: str) -> None:
        item = self.inspect_container(container_id)
        for network in item["NetworkingConfig"]["EndpointsConfig"]:
            if network not in self.networks:
                raise refusal(404, f"network {network} not found")
        item["State"] = {"Running": not self.crash, "Health": {"Status": self.health}}

    def stop(self, container_id: str, timeout: int) -> None:
        self.stopped.append(container_id)
        self.inspect_container(container_id)["State"]["Running"] = False

    def logs(self, container_id: str, tail: int) -> bytes:
        return b"first\ncannot reach etcd\n"

    def remove_container(self, container_id: str, force: bool, v: bool) -> None:
        item = self.inspect_container(container_id)
        del self.items[item["Name"][1:]]
        for mount in item["Mounts"]:
            if v and mount.get("Anonymous"):
                del self.volumes_by_name[mount["Name"]]

    def remove_volume(self, name: str) -> None:
        if self.volumes_by_name.pop(name, None) is None:
            raise refusal(404, f"no such volume: {name}")

    def containers(self, all: bool, filters: dict[str, Any]) -> list[dict[str, Any]]:
        found = [item for item in self.items.values() if item["Id"] != "t" and self._has(item["Labels"], filters["label"])]
        found = [item for item in found if "volume" not in filters or filters["volume"] in [each["Name"] for each in item["Mounts"]]]
        return [
            {"Id": item["Id"], "Labels": item["Labels"], "State": "running" if item["State"]["Running"] else "exited"} for item in found
        ]

    def volumes(self, filters: dict[str, Any]) -> dict[str, Any]:
        return {"Volumes": [item for item in self.volumes_by_name.values() if self._has(item["Labels"] or {}, filters["label"])] or None}

    @staticmethod
    def _has(labels: dict[str, str], wanted: str | list[str]) -> bool:
        lines = [f"{name}={value}" for name, value in labels.items()]
        return all(one in labels or one in lines for one in ([wanted] if isinstance(wanted, str) else wanted))

    def close(self) -> None:
        pass

    def left(self) -> tuple[set[str], set[str]]:
        return set(self.items) - {LIKE}, set(self.volumes_by_name) - {"lab_store"}


@pytest.fixture
def engine() -> FakeEngine:
    return FakeEngine()


@pytest.fixture
async def provider(engine: FakeEngine) -> AsyncIterator[DockerNodes]:
    made = DockerNodes(EngineCalls("unix:///e.sock", lambda url: engine), LIKE, "extra", VirtualClock())
    yield made
    await made.close()


def test_a_copy_is_like_its_template_and_shares_what_it_only_reads() -> None:
    made = copy_of(template(), {"lab_store": STORE}, NodeId("extra-0"))
    assert (made["Image"], made["Entrypoint"], made["User"]) == (IMAGE, ["python", "-m", "tessera.node_agent"], "tessera")
    assert made["Env"] == ["TESSERA_LOG_LEVEL=info", "TESSERA_NODE_ID=extra-0", "TESSERA_ADVERTISE_HOST=extra-0"]
    labels = {POOL_LABEL: LIKE, MEMBER_LABEL: "extra-0"}
    assert made["Labels"] == labels
    host = made["HostConfig"]
    assert (host["Memory"], host["PidMode"], host["CapDrop"], host["ReadonlyRootfs"], host["GroupAdd"]) == (
        1 << 30,
        "host",
        ["ALL"],
        True,
        ["999"],
    )
    assert (host["Binds"], host["PortBindings"]) == (None, None), "ports are the template's"
    assert host["Mounts"] == [
        {"Type": "bind", "Target": "/var/run/docker.sock", "Source": "/var/run/docker.sock", "ReadOnly": False},
        {"Type": "volume", "Target": "/repository", "Source": "lab_repository", "ReadOnly": True},
        {
            "Type": "volume",
            "Target": "/store",
            "VolumeOptions": {"Labels": labels, "DriverConfig": {"Name": "local", "Options": STORE["Options"]}},
        },
    ]
    assert made["NetworkingConfig"] == {"EndpointsConfig": {"lab_inside": {"Aliases": ["extra-0"]}}}


def test_a_tmpfs_is_declared_as_it_was() -> None:
    declared = {"Type": "tmpfs", "Target": "/tmp", "TmpfsOptions": {"SizeBytes": 1 << 20}}
    given = template(Mounts=[{"Type": "tmpfs", "Destination": "/tmp", "RW": True}])
    given["HostConfig"]["Mounts"] = [declared]
    assert copy_of(given, {}, NodeId("extra-0"))["HostConfig"]["Mounts"] == [declared]


def test_what_two_nodes_cannot_share_is_refused() -> None:
    writes = template(Mounts=[{"Type": "bind", "Source": "/srv/state", "Destination": "/state", "RW": True}])
    with pytest.raises(
        FailedPrecondition, match=r"lab-node-a writes to /srv/state of the machine \(/state\), which two nodes cannot share"
    ):
        copy_of(writes, {}, NodeId("extra-0"))
    for network in ("host", "bridge"):
        with pytest.raises(FailedPrecondition, match=f"lab-node-a is in network {network}, where nodes have no names"):
            networks_of(template(NetworkSettings={"Networks": {network: {}}}))


async def test_nodes_are_made_found_and_taken_away_by_whoever_leads(engine: FakeEngine, provider: DockerNodes) -> None:
    assert [await provider.add(), await provider.add()] == ["extra-0", "extra-1"]
    other = DockerNodes(EngineCalls("unix:///e.sock", lambda url: engine), LIKE, "extra", VirtualClock())
    assert await other.nodes() == {"extra-0", "extra-1"}
    await other.remove(NodeId("extra-0"))
    assert engine.stopped == ["id-lab-node-a-extra-0"], "its agent takes its runtimes down first"
    assert await provider.nodes() == {"extra-1"}
    assert await provider.add() == "extra-0"
    for name in ("extra-0", "extra-1", "extra-7"):
        await other.remove(NodeId(name))
    assert engine.left() == (set(), set())
    await other.close()


async def test_another_pools_nodes_are_none_of_ours(engine: FakeEngine, provider: DockerNodes) -> None:
    await provider.add()
    engine.items["other"] = {**template(), "Name": "/other", "Id": "o"}
    other = DockerNodes(EngineCalls("unix:///e.sock", lambda url: engine), "other", "extra", VirtualClock())
    engine.items["other"]["Labels"] = {}
    assert await other.nodes() == frozenset()
    await other.remove(NodeId("extra-0"))
    assert await provider.nodes() == {"extra-0"}
    await other.close()


async def test_what_a_dead_node_left_goes_with_the_next_look(engine: FakeEngine, provider: DockerNodes) -> None:
    await provider.add()
    (store,) = [name for name in engine.volumes_by_name if name.startswith("anonymous")]
    engine.items["runtime"] = {
        "Id": "r", "Name": "/runtime", "Labels": {RUNTIME_LABEL: "rt-1"}, "State": {"Running": True},
        "Mounts": [{"Name": store, "Destination": "/store"}],
    }  # fmt: skip
    engine.items[f"{LIKE}-extra-0"]["State"]["Running"] = False
    assert await provider.nodes() == frozenset()
    assert engine.left() == (set(), set())
    await provider.add()
    del engine.items[f"{LIKE}-extra-0"]  # by hand, and not its volume
    assert await provider.nodes() == frozenset()
    assert engine.left() == (set(), set())


def no_template(engine: FakeEngine) -> None:
    del engine.items[LIKE]


def no_image(engine: FakeEngine) -> None:
    engine.images.clear()


def no_network(engine: FakeEngine) -> None:
    engine.networks.clear()


def name_taken(engine: FakeEngine) -> None:
    engine.items[f"{LIKE}-extra-0"] = {"Id": "x", "Name": "/x", "Labels": {}, "State": {"Running": True}, "Mounts": []}


def no_memory(engine: FakeEngine) -> None:
    engine.items[LIKE]["HostConfig"]["Memory"] = 3 << 30


def crash(engine: FakeEngine) -> None:
    engine.crash = True


def never_healthy(engine: FakeEngine) -> None:
    engine.health = "unhealthy"


@pytest.mark.parametrize(
    ("fault", "kind", "words"),
    [
        (no_template, FailedPrecondition, "node_like 'lab-node-a': the container engine unix:///e.sock has no container of this name"),
        (no_image, FailedPrecondition, f"refuses to make node extra-0: No such image: {IMAGE}"),
        (no_network, FailedPrecondition, "refuses to make node extra-0: network lab_inside not found"),
        (name_taken, FailedPrecondition, "refuses to make node extra-0: Conflict"),
        (no_memory, FailedPrecondition, "2 nodes like lab-node-a may take 3072 MiB each, more than the 4096 MiB of the engine's machine"),
        (crash, Unavailable, "node extra-0 ended at once: first / cannot reach etcd"),
        (never_healthy, Unavailable, "node extra-0 does not answer after 120 s: first / cannot reach etcd"),
    ],
)
async def test_what_goes_wrong_is_told_and_leaves_nothing(engine: FakeEngine, fault: Any, kind: type[TesseraError], words: str) -> None:
    fault(engine)
    before = engine.left()
    clock = VirtualClock()
    provider = DockerNodes(EngineCalls("unix:///e.sock", lambda url: engine), LIKE, "extra", clock)
    adding = asyncio.get_running_loop().create_task(provider.add())
    while not adding.done():
        await asyncio.sleep(0.001)
        await clock.advance(10.0)
    with pytest.raises(kind, match=words.replace("(", r"\(")):
        await adding
    assert engine.left() == before
    await provider.close()


async def test_an_engine_that_is_away_is_unavailable(engine: FakeEngine, provider: DockerNodes) -> None:
    def refuse(**filters: Any) -> Any:
        raise requests.exceptions.ConnectionError("refused")

    engine.containers = refuse  # type: ignore[method-assign]
    for asked in (provider.nodes, provider.add):
        with pytest.raises(
            Unavailable, match=r"container engine unix:///e.sock does not answer \(look at the nodes of the pool\): refused"
        ):
            await asked()
    assert engine.left() == (set(), set())
