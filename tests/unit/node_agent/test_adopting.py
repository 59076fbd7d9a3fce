"""Runtimes that answer as none should, which somebody may have taken over: an agent adopts what lives all the same, without them."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tessera.clock import SystemClock
from tessera.domain.errors import FailedPrecondition, InvalidInput, Unavailable
from tessera.domain.ids import InstanceId, RuntimeId, TrustDomain
from tessera.node_agent.adapters import container_runtimes, process_runtimes
from tessera.node_agent.adapters import processes as processes_adapter
from tessera.node_agent.adapters.container_runtimes import ContainerRuntimes, ContainerSettings
from tessera.node_agent.adapters.control import ControlClient
from tessera.node_agent.adapters.controlled import hello_of
from tessera.node_agent.adapters.process_runtimes import ProcessRuntimes
from tessera.node_agent.adapters.processes import kill_listener
from tessera.node_agent.adapters.surroundings import store_identity
from tessera.node_agent.core.containers import FoundContainer, Limits, Owner
from tessera.program import Stop, Tasks

DOMAIN = TrustDomain("default")
RUNTIME = RuntimeId("rt-ort-37a8ee-01")
OTHER = RuntimeId("rt-ort-37a8ee-02")

HELLO: dict[str, Any] = {
    "runtime_id": RUNTIME,
    "pid": 7,
    "flavour": "ort",
    "trust_domain": DOMAIN,
    "threads": 1,
    "holds": [],
    "mapped": [],
    "instances": [],
}
HELD = {"instance_id": "i1", "generation": f"{7:016x}", "artifact": "", "variant": "m@1/v"}
BAD: dict[str, Any] = {
    "an error of its own": {"error": {"kind": "failed_precondition", "message": "no"}},
    "an error that is none": {"error": "no"},
    "no answer": {"ok": None},
    "another trust domain": {"ok": HELLO | {"trust_domain": "other"}},
    "another runtime": {"ok": HELLO | {"runtime_id": OTHER}},
    "no flavour": {"ok": {name: value for name, value in HELLO.items() if name != "flavour"}},
    "holds that are no list": {"ok": HELLO | {"holds": 7}},
    "a digest that is none": {"ok": HELLO | {"holds": ["../../etc/passwd"]}},
    "an instance that is none": {"ok": HELLO | {"instances": ["i1"]}},
    "an instance of no variant": {"ok": HELLO | {"instances": [HELD | {"variant": "../x"}]}},
    "a generation beyond 64 bits": {"ok": HELLO | {"instances": [HELD | {"generation": "f" * 17}]}},
}

SPEAKER = """
import json, socket, struct, sys

path, answer = sys.argv[1], json.loads(sys.argv[2])
listener = socket.socket(socket.AF_UNIX)
listener.bind(path)
listener.listen()
print("listens", flush=True)
while True:
    connection, _ = listener.accept()
    try:
        while header := connection.recv(4):
            asked = json.loads(connection.recv(struct.unpack("<I", header)[0]))
            data = json.dumps({"id": asked["id"], **answer}).encode()
            connection.sendall(struct.pack("<I", len(data)) + data)
    except OSError:
        pass
"""


@pytest.fixture
def speak() -> Iterator[Callable[[Path, Any], subprocess.Popen[str]]]:
    """Starts a process that listens at a control socket and answers everything with one answer."""
    begun = []

    def start(path: Path, answer: Any) -> subprocess.Popen[str]:
        path.parent.mkdir(exist_ok=True)
        process = subprocess.Popen([sys.executable, "-c", SPEAKER, str(path), json.dumps(answer)], stdout=subprocess.PIPE, text=True)
        begun.append(process)
        assert process.stdout is not None
        assert process.stdout.readline() == "listens\n"
        return process

    yield start
    for process in begun:
        process.kill()
        process.wait()
        assert process.stdout is not None
        process.stdout.close()


def processes(run: Path) -> ProcessRuntimes:
    return ProcessRuntimes(run, run, run, ["ort"], DOMAIN, None, 1, 0, 1.0, True, 60.0, 10.0, 60.0, SystemClock())


class FakeEngine:
    """Runs one container, whose process is given."""

    def __init__(self, labels: dict[str, str], process: subprocess.Popen[str]) -> None:
        self._labels = labels
        self._process: subprocess.Popen[str] | None = process

    async def check(self, images: set[str]) -> None:
        pass

    async def containers_of(self, node_id: str) -> tuple[FoundContainer, ...]:
        return (FoundContainer("c1", True, self._labels),) if self._process is not None else ()

    async def remove(self, container_id: str) -> None:
        assert container_id == "c1"
        assert self._process is not None
        self._process.kill()
        self._process = None

    async def close(self) -> None:
        pass


@pytest.fixture
async def tasks() -> AsyncIterator[Tasks]:
    stop = Stop()
    async with Tasks(stop) as found:
        yield found
    assert stop.error is None


@pytest.fixture
def containers(tmp_path: Path, tasks: Tasks, monkeypatch: pytest.MonkeyPatch) -> Callable[[subprocess.Popen[str]], ContainerRuntimes]:
    """Over an engine that runs the given process as the container of `RUNTIME`."""
    run, store = tmp_path / "run", tmp_path / "store"
    (store / "blobs").mkdir(parents=True)

    async def no_container(*where: Any) -> None:
        return None

    monkeypatch.setattr(container_runtimes, "own_mounts", no_container)

    def make(process: subprocess.Popen[str]) -> ContainerRuntimes:
        owner = Owner("n1", f"bind:{run}", DOMAIN, store_identity(store), frozenset({DOMAIN}))
        settings = ContainerSettings(
            {"ort": "none"}, (os.geteuid(), os.getegid()), Limits(1, 1.0, 1), False, 1, 0, 1.0, True, 60.0, 10.0, 60.0
        )
        engine: Any = FakeEngine(owner.labels("ort", RUNTIME), process)
        return ContainerRuntimes("n1", run, store, DOMAIN, frozenset({DOMAIN}), settings, engine, SystemClock(), tasks)

    return make


@pytest.fixture
def run(tmp_path: Path) -> Path:
    (tmp_path / "run").mkdir()
    return tmp_path / "run"


@pytest.mark.parametrize("answer", BAD.values(), ids=BAD.keys())
async def test_a_process_that_answers_as_no_runtime_does_is_ended_and_the_others_are_adopted(run: Path, speak: Any, answer: Any) -> None:
    bad = speak(run / RUNTIME / "control.sock", answer)
    good = speak(run / OTHER / "control.sock", {"ok": HELLO | {"runtime_id": OTHER, "instances": [HELD]}})
    runtimes = processes(run)
    (found,) = await runtimes.adopt()
    assert (found.hello.runtime_id, found.hello.pid, [held.instance_id for held in found.hello.instances]) == (OTHER, good.pid, ["i1"])
    await asyncio.to_thread(bad.wait, 5)
    assert sorted(path.name for path in run.iterdir()) == [OTHER]
    await runtimes.leave()


@pytest.mark.parametrize("answer", BAD.values(), ids=BAD.keys())
async def test_a_container_in_which_nobody_answers_as_a_runtime_does_is_removed(
    run: Path, speak: Any, containers: Any, answer: Any
) -> None:
    bad = speak(run / RUNTIME / "control.sock", answer)
    runtimes = containers(bad)
    assert await runtimes.adopt() == ()
    await asyncio.to_thread(bad.wait, 5)
    assert list(run.iterdir()) == []
    await runtimes.leave()


async def test_an_agent_that_cannot_see_processes_ends_and_leaves_them_alone(
    run: Path, speak: Any, containers: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    process = speak(run / RUNTIME / "control.sock", {"ok": HELLO})
    monkeypatch.setattr(ControlClient, "peer_pid", 0)
    for runtimes in (processes(run), containers(process)):
        with pytest.raises(FailedPrecondition, match="pid: host"):
            await runtimes.adopt()
        await runtimes.leave()
    assert process.poll() is None
    assert (run / RUNTIME).exists()


async def test_an_adopted_runtime_that_answers_with_nonsense_later_is_as_good_as_silent(run: Path, speak: Any) -> None:
    speak(run / RUNTIME / "control.sock", {"ok": HELLO | {"mapped": 7, "released": 7}})
    runtimes = processes(run)
    (found,) = await runtimes.adopt()
    for call in (found.declare(), found.activity(1.0, 0.0), found.unload(InstanceId("i1"), 0), found.measure([], 1, 0.1, 1, 0.0)):
        with pytest.raises(Unavailable, match="makes no sense"):
            await call
    await runtimes.leave()


def test_what_a_hello_must_say() -> None:
    assert hello_of(HELLO | {"instances": [HELD]}, 9).pid == 9
    for answer in ("another trust domain", "another runtime"):
        hello_of(BAD[answer]["ok"], 9)  # whoever asked compares
    with pytest.raises(InvalidInput, match="hello: "):
        hello_of(HELLO | {"instances": 7}, 9)


async def test_an_instance_that_two_runtimes_have_ends_with_the_second_that_does_not_unload_it(
    node: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    await node.start("a", node.make_artifact())
    (first,) = node.runtimes.live
    second = await node.runtimes.create("ort", RuntimeId("rt-ort-37a8ee-99"), 1)
    second.loaded, second.mapped = dict(first.loaded), dict(first.mapped)

    async def unload(*what: Any) -> None:
        raise Unavailable("no")

    monkeypatch.setattr(second, "unload", unload)
    restarted = type(node)(node.folder, node.agent._tasks, node.store, node.runtimes, node.clock)
    monkeypatch.setattr(node.runtimes, "adopt", lambda: asyncio.sleep(0, (first, second)))
    await restarted.adoption.adopt()
    assert node.runtimes.live == [first]
    assert restarted.table.get(InstanceId("a")).runtime_id == first.hello.runtime_id


@pytest.mark.parametrize("answer", [{"error": {"kind": "failed_precondition"}}, {"error": 7}, {}])
async def test_a_zygote_that_answers_with_an_error_is_none(run: Path, speak: Any, answer: Any) -> None:
    speak(run / "zygote-ort.sock", answer)
    runtimes = processes(run)
    assert await runtimes.adopt() == ()
    assert list(run.iterdir()) == [], "the next one has its place"
    assert runtimes._zygotes == {}
    await runtimes.leave()


async def test_a_zygote_is_the_process_that_listens_whatever_it_says(run: Path, speak: Any) -> None:
    process = speak(run / "zygote-ort.sock", {"ok": {"pid": os.getpid(), "flavour": "ort"}})
    runtimes = processes(run)
    await runtimes.adopt()
    assert runtimes._zygotes["ort"].watched.pid == process.pid
    await runtimes.leave()


async def test_a_zygote_is_told_how_long_it_lives_without_an_agent(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def refuse(command: list[str], *more: Any) -> int:
        asked.extend(command)
        raise FailedPrecondition("no more processes")

    monkeypatch.setattr(process_runtimes, "spawn_detached", refuse)
    with pytest.raises(FailedPrecondition, match="no more processes"):
        await processes(run).create("ort", RUNTIME, 1)
    assert asked[asked.index("--orphan-s") + 1] == "60.0"


async def test_a_new_runtime_is_the_process_that_listens_whatever_its_zygote_says(run: Path, speak: Any) -> None:
    stranger = speak(run / "stranger" / "some.sock", {})
    speak(run / "zygote-ort.sock", {"ok": {"pid": stranger.pid}})
    child = speak(run / RUNTIME / "control.sock", {"ok": {}})
    runtimes = processes(run)
    found: Any = await runtimes.create("ort", RUNTIME, 1)
    assert found.hello.pid == child.pid
    found.kill()
    await asyncio.to_thread(child.wait, 5)
    assert stranger.poll() is None
    await runtimes.leave()


def other_users_runtimes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever listens at a runtime's socket is another user's from here on."""
    listening = ControlClient._peer

    def peer(client: ControlClient) -> tuple[int, int]:
        pid, user = listening(client)
        return pid, user + client._name.startswith("runtime")

    monkeypatch.setattr(ControlClient, "_peer", peer)


def numbers_of_others(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever listened first has ended, and its number is another user's process by now."""
    monkeypatch.setattr(processes_adapter, "_users_of", lambda pid: {os.geteuid() + 1})


@pytest.mark.parametrize("whose", [other_users_runtimes, numbers_of_others])
async def test_a_process_of_another_user_is_no_runtime_and_is_left_alone(
    run: Path, speak: Any, monkeypatch: pytest.MonkeyPatch, whose: Any
) -> None:
    process = speak(run / RUNTIME / "control.sock", {"ok": {}})
    speak(run / "zygote-ort.sock", {"ok": {"pid": process.pid}})
    runtimes = processes(run)
    await runtimes.prepare(["ort"])
    whose(monkeypatch)
    with pytest.raises(Unavailable, match="belongs to user"):
        await runtimes.create("ort", RUNTIME, 1)
    assert process.poll() is None
    assert runtimes._live == {}
    await runtimes.leave()


async def test_a_lost_connection_is_made_anew_to_the_same_process_only(run: Path, speak: Any) -> None:
    socket = run / RUNTIME / "control.sock"
    first = speak(socket, {"ok": HELLO})
    runtimes = processes(run)
    (found,) = await runtimes.adopt()
    found._client.close()  # type: ignore[attr-defined]
    assert (await found.declare()).holds == frozenset()
    found._client.close()  # type: ignore[attr-defined]
    socket.unlink()
    second = speak(socket, {"ok": HELLO})
    with pytest.raises(Unavailable, match=f"process {second.pid} listens in place of {first.pid}"):
        await found.declare()
    await runtimes.leave()


async def test_a_new_zygote_of_another_user_is_none(run: Path, speak: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def start(command: list[str], *more: Any) -> int:
        return int(speak(run / "zygote-ort.sock", {"ok": {}}).pid)

    monkeypatch.setattr(process_runtimes, "spawn_detached", start)
    monkeypatch.setattr(ControlClient, "peer_user", os.geteuid() + 1)
    with pytest.raises(FailedPrecondition, match="zygote ort belongs to user"):
        await processes(run).create("ort", RUNTIME, 1)


async def test_who_listens_is_killed_where_it_may_be_a_runtime_only(run: Path, speak: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    me, socket = os.geteuid(), run / RUNTIME / "control.sock"
    process = speak(socket, {})
    (run / "link.sock").symlink_to(socket)
    (run / "file.sock").touch()
    for path, user in ((run / "link.sock", me), (run / "file.sock", me), (socket, me + 1)):
        assert await kill_listener(path, user, 5.0) is None
    with monkeypatch.context() as patched:
        patched.setattr(os, "getpid", lambda: process.pid)
        assert await kill_listener(socket, me, 5.0) is None, "nobody ends itself"
    with monkeypatch.context() as patched:
        numbers_of_others(patched)
        assert await kill_listener(socket, me, 5.0) is None
    assert process.poll() is None
    assert await kill_listener(socket, me, 5.0) == process.pid
    await asyncio.to_thread(process.wait, 5)


@pytest.mark.root
async def test_a_process_is_not_killed_for_a_socket_of_another_user(run: Path, speak: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    process = speak(run / "control.sock", {})
    os.chown(run / "control.sock", 60600, -1)
    assert await kill_listener(run / "control.sock", 0, 5.0) is None, "root's process at another's socket"
    monkeypatch.setattr(processes_adapter, "_users_of", lambda pid: {60600})
    assert await kill_listener(run / "control.sock", 60600, 5.0) is None, "it began to listen as root"
    assert process.poll() is None


@pytest.mark.parametrize("link", [RUNTIME, f"{RUNTIME}/control.sock"])
async def test_a_link_to_another_service_does_not_end_it_and_goes_with_the_strays(
    tmp_path: Path, run: Path, speak: Any, monkeypatch: pytest.MonkeyPatch, link: str
) -> None:
    service = speak(tmp_path / "service" / "control.sock", {"ok": {}})
    place = run / link
    place.parent.mkdir(exist_ok=True)
    place.symlink_to(tmp_path / "service" if link == RUNTIME else tmp_path / "service" / "control.sock")
    monkeypatch.setattr(ControlClient, "peer_user", os.geteuid() + 1)
    numbers_of_others(monkeypatch)
    assert await processes(run).adopt() == ()
    assert service.poll() is None
    assert list(run.iterdir()) == []
    assert (tmp_path / "service" / "control.sock").exists()
