"""Container runtimes as values: paths as the engine sees them, strays, causes of ends; and what the engine is asked."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import docker
import pytest
import requests
from docker.errors import APIError, DockerException, NotFound

from tessera.domain.errors import FailedPrecondition, Unavailable
from tessera.domain.ids import RuntimeId, TrustDomain
from tessera.node_agent.adapters.engine import Engine, arguments_of
from tessera.node_agent.adapters.surroundings import admit, own_mounts, store_identity
from tessera.node_agent.config import NodeAgentConfig
from tessera.node_agent.core.containers import (
    ContainerSpec,
    ContainerState,
    EngineSource,
    FoundContainer,
    Limits,
    Mount,
    Owner,
    adoptable,
    engine_path,
    own_container_id,
    strays,
    words_of_end,
)

ID = "c8dc32f74b2a8061d118a6dd4f8e666377ad53859f8a61df002f351a8216a9c9"
LIMITS = Limits(256 << 20, 1.5, 100)
RUN = Mount("volume", "/var/lib/docker/volumes/run/_data", "/run/tessera", "run")
STORE = Mount("volume", "/var/lib/docker/volumes/store/_data", "/run/tessera/store", "store")
HOME = Mount("bind", "/srv/lab", "/data")


@pytest.mark.parametrize(
    ("mountinfo", "cgroup"),
    [
        (f"349 330 254:0 /var/lib/docker/containers/{ID}/hostname /etc/hostname rw,relatime - ext4 /dev/vda rw", "0::/"),
        (f"349 330 254:0 /containers/{ID}/resolv.conf /etc/resolv.conf rw - ext4 /dev/vda rw", ""),
        ("1 0 254:0 / / rw - ext4 /dev/vda rw", f"9:name=systemd:/docker/{ID}\n8:pids:/docker/{ID}"),
        ("", f"0::/system.slice/docker-{ID}.scope"),
    ],
)
def test_a_process_finds_its_own_container(mountinfo: str, cgroup: str) -> None:
    assert own_container_id(mountinfo, cgroup) == ID


@pytest.mark.parametrize(
    ("mountinfo", "cgroup"),
    [
        ("1 0 254:0 / / rw - ext4 /dev/vda rw", "0::/user.slice/session-1.scope"),
        # The engine's machine shows what it mounts for containers; none of it is this process's own.
        (f"90 25 0:50 / /var/lib/docker/containers/{ID}/mounts/shm rw - tmpfs shm rw", "8:pids:/"),
        ("349 330 254:0 /etc/hostname.real /etc/hostname rw - ext4 /dev/vda rw", ""),
        ("", ""),
    ],
)
def test_a_process_outside_finds_none(mountinfo: str, cgroup: str) -> None:
    assert own_container_id(mountinfo, cgroup) is None


@pytest.mark.parametrize(
    ("path", "mounts", "found"),
    [
        ("/run/tessera/rt-1", None, EngineSource("bind", "/run/tessera/rt-1")),
        ("/run/tessera/rt-1", [RUN, STORE], EngineSource("bind", "/var/lib/docker/volumes/run/_data/rt-1")),
        ("/run/tessera/store", [RUN, STORE], EngineSource("volume", "store")),
        ("/run/tessera/store/blobs", [STORE, RUN], EngineSource("bind", "/var/lib/docker/volumes/store/_data/blobs")),
        ("/run/tessera/storey", [RUN, STORE], EngineSource("bind", "/var/lib/docker/volumes/run/_data/storey")),
        ("/data", [HOME], EngineSource("bind", "/srv/lab")),
        ("/data/a/b", [HOME], EngineSource("bind", "/srv/lab/a/b")),
    ],
)
def test_paths_as_the_engine_sees_them(path: str, mounts: list[Mount] | None, found: EngineSource) -> None:
    assert engine_path(path, mounts) == found


@pytest.mark.parametrize(
    ("mounts", "words"),
    [([], "in its own file system"), ([HOME, Mount("tmpfs", "", "/run/tessera")], "on a tmpfs of its own at /run/tessera")],
)
def test_a_path_that_no_other_container_can_have_is_refused(mounts: list[Mount], words: str) -> None:
    with pytest.raises(FailedPrecondition, match=words):
        engine_path("/run/tessera/rt-1", mounts)


@pytest.mark.parametrize(
    ("state", "words"),
    [
        (None, "its container was removed"),
        (ContainerState(False, 137, True), "out of memory: killed at its limit of 256 MiB (runtime_memory_bytes)"),
        (ContainerState(False, 137), "killed by signal 9"),
        (ContainerState(False, 2), "exit code 2"),
        (ContainerState(False, 127, False, "no such file"), "no such file"),
    ],
)
def test_why_a_container_ended(state: ContainerState | None, words: str) -> None:
    assert words_of_end(state, LIMITS) == words


A, B = TrustDomain("a"), TrustDomain("b")
OWNER = Owner("n1", "bind:/run/n1", A, "10:2", frozenset({A, B}))


def found(name: str, running: bool = True, **labels: str) -> FoundContainer:
    own = OWNER.labels("ort", RuntimeId(name))
    return FoundContainer(name, running, own | {f"tessera.{key.replace('_', '-')}": value for key, value in labels.items()})


def test_what_is_adopted_and_what_is_swept() -> None:
    here = [
        found("live"),
        found("silent"),
        found("dead", running=False),
        found("old", store="9:2"),
        found("of-b", trust_domain="b"),
        found("of-b-dead", running=False, trust_domain="b"),
        found("of-c", trust_domain="c"),
        found("elsewhere", run="bind:/run/other"),
        found("elsewhere-dead", running=False, run="bind:/run/other"),
        found("of-another-node", node="n2"),
    ]
    assert [item.container_id for item in adoptable(OWNER, here)] == ["live", "silent"]
    swept = {item.container_id: reason for item, reason in strays(OWNER, here, [RuntimeId("live")])}
    assert set(swept) == {"silent", "dead", "old", "of-c", "elsewhere-dead"}
    assert swept["old"] == "it holds an older store"
    assert swept["of-c"] == "trust domain 'c' is not served any more"


# the engine


class FakeClient:
    """As the SDK's, without an engine: `fail` is raised by whatever is asked next."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, Any]] = []
        self.fail: list[Exception] = []
        self.closed = False

    create_host_config = docker.APIClient.create_host_config
    create_container_config = docker.APIClient.create_container_config
    _version = "1.41"

    def __getattr__(self, name: str) -> Callable[..., Any]:
        def ask(*arguments: Any, **more: Any) -> Any:
            self.asked.append((name, arguments))
            if self.fail:
                raise self.fail.pop()
            return {"Id": "c1"} if name.startswith("create_container") else {}

        return ask

    def close(self) -> None:
        self.closed = True


def spec(**changes: Any) -> ContainerSpec:
    fields: dict[str, Any] = {
        "name": "tessera-rt-1",
        "image": "tessera-runtime-ort:dev",
        "command": ("python", "-m", "tessera.runtime.container"),
        "user": "20001:20001",
        "environment": {"OPENBLAS_NUM_THREADS": "1"},
        "labels": OWNER.labels("ort", RuntimeId("rt-1")),
        "store": EngineSource("volume", "store"),
        "store_target": "/store",
        "folder": EngineSource("bind", "/run/n1/rt-1"),
        "folder_target": "/run/tessera/rt-1",
        "limits": LIMITS,
    }
    return ContainerSpec(**(fields | changes))


def test_a_container_is_asked_for_with_everything_taken_away() -> None:
    asked = arguments_of(FakeClient(), spec())
    host = asked["HostConfig"]
    assert asked["User"] == "20001:20001"
    assert asked["NetworkDisabled"] is True
    assert asked["Labels"]["tessera.runtime-id"] == "rt-1"
    assert (host["NetworkMode"], host["ReadonlyRootfs"], host["CapDrop"], host["IpcMode"], host["Init"]) == (
        "none",
        True,
        ["ALL"],
        "none",
        True,
    )
    assert (host["Memory"], host["MemorySwap"], host["NanoCpus"], host["PidsLimit"]) == (256 << 20, 256 << 20, 1_500_000_000, 100)
    assert host["SecurityOpt"] == ["no-new-privileges"]
    assert host["Tmpfs"]["/tmp"] == "rw,noexec,nosuid,nodev,size=16777216,mode=1777"
    store, folder = host["Mounts"]
    assert (store["Type"], store["Source"], store["Target"], store["ReadOnly"]) == ("volume", "store", "/store", True)
    assert (folder["Type"], folder["Source"], folder["Target"], folder["ReadOnly"]) == ("bind", "/run/n1/rt-1", "/run/tessera/rt-1", False)
    assert "DeviceRequests" not in host


def test_gpus_are_asked_for_where_the_node_has_them() -> None:
    (request,) = arguments_of(FakeClient(), spec(gpus=True))["HostConfig"]["DeviceRequests"]
    assert (request["Count"], request["Capabilities"]) == (-1, [["gpu"]])


@pytest.fixture
def client() -> FakeClient:
    return FakeClient()


@pytest.fixture
async def engine(client: FakeClient) -> Any:
    made = Engine("unix:///run/e.sock", lambda url: client)
    yield made
    await made.close()


def api_error(status: int, words: str) -> APIError:
    response = requests.Response()
    response.status_code = status
    return (NotFound if status == 404 else APIError)("failed", response, words)


async def test_a_container_that_does_not_start_is_removed(engine: Engine, client: FakeClient) -> None:
    client.start = lambda container_id: (_ for _ in ()).throw(api_error(400, "no such mount"))  # type: ignore[attr-defined]
    with pytest.raises(FailedPrecondition, match="refuses to start tessera-rt-1: no such mount"):
        await engine.run(spec())
    assert client.asked[-1] == ("remove_container", ("c1",))


@pytest.mark.parametrize(
    ("error", "kind", "words"),
    [
        (api_error(500, "disk full"), Unavailable, "refuses to list containers: disk full"),
        (requests.exceptions.ConnectionError("refused"), Unavailable, r"unix:///run/e.sock does not answer \(list containers\): refused"),
        (DockerException("no version"), Unavailable, "no version"),
    ],
)
async def test_an_engine_that_fails_is_unavailable(
    engine: Engine, client: FakeClient, error: Exception, kind: type[Exception], words: str
) -> None:
    client.fail.append(error)
    with pytest.raises(kind, match=words):
        await engine.containers_of("n1")
    client.containers = lambda **more: []  # type: ignore[attr-defined]
    assert await engine.containers_of("n1") == ()  # and the next call finds it back


async def test_what_is_gone_already_needs_no_removing(engine: Engine, client: FakeClient) -> None:
    client.fail.append(api_error(404, "no such container"))
    await engine.remove("c1")
    client.fail.append(api_error(409, "removal is in progress"))
    await engine.remove("c1")
    client.fail.append(api_error(404, "no such container"))
    assert await engine.state("c1") is None


async def test_a_closed_engine_is_unavailable(client: FakeClient) -> None:
    engine = Engine("unix:///run/e.sock", lambda url: client)
    await engine.remove("c1")
    await engine.close()
    assert client.closed
    with pytest.raises(Unavailable, match="was let go"):
        await engine.remove("c1")


async def test_the_agents_own_mounts_are_the_engines_answer(engine: Engine, client: FakeClient, tmp_path: Path) -> None:
    mount = {"Type": "volume", "Source": "/var/lib/docker/volumes/run/_data", "Destination": str(tmp_path), "Name": "run"}
    client.inspect_container = lambda container_id: {"Mounts": [mount] if container_id == ID else []}  # type: ignore[attr-defined]
    assert await own_mounts(engine, [tmp_path], "", f"0::/docker/{ID}") == (
        Mount("volume", "/var/lib/docker/volumes/run/_data", str(tmp_path), "run"),
    )
    assert await own_mounts(engine, [tmp_path], "", "0::/user.slice") is None


async def test_a_folder_that_the_engine_cannot_see_is_refused(engine: Engine, client: FakeClient) -> None:
    """Mounted by the agent itself inside its container: another device than the volume around it."""
    client.inspect_container = lambda container_id: {  # type: ignore[attr-defined]
        "Mounts": [{"Type": "volume", "Source": "/v", "Destination": "/", "Name": "v"}]
    }
    with pytest.raises(FailedPrecondition, match="/proc is a mount of the agent's own below /, which the container engine cannot see"):
        await own_mounts(engine, [Path("/proc")], "", f"0::/docker/{ID}")


async def test_a_container_of_another_engine_counts_as_none(engine: Engine, client: FakeClient, tmp_path: Path) -> None:
    client.fail.append(api_error(404, "no such container"))
    assert await own_mounts(engine, [tmp_path], "", f"0::/docker/{ID}") is None


def test_a_store_is_told_from_another_one(tmp_path: Path) -> None:
    for name in "ab":
        (tmp_path / name).mkdir()
    assert store_identity(tmp_path / "a") == store_identity(tmp_path / "a")
    assert store_identity(tmp_path / "a") != store_identity(tmp_path / "b")


def test_a_container_can_read_the_store_of_an_agent_with_a_closed_umask(tmp_path: Path) -> None:
    root = tmp_path / "store"
    before = os.umask(0o077)
    try:
        (root / "blobs").mkdir(parents=True)
    finally:
        os.umask(before)
    admit(root, os.getegid())
    assert stat.S_IMODE((root / "blobs").stat().st_mode) == 0o755


def test_every_flavour_needs_an_image_where_runtimes_are_containers() -> None:
    common: dict[str, Any] = {"repository_url": "file:///r", "state_folder": "/s", "run_folder": "/r", "runtime_images": {"ort": "x"}}
    NodeAgentConfig(**common)
    with pytest.raises(ValueError, match="runtime_images names no image for flavour aten"):
        NodeAgentConfig(**common, runtimes="container")
    with pytest.raises(ValueError, match="runtime_memory_bytes"):
        NodeAgentConfig(**common, runtime_memory_bytes=1)
