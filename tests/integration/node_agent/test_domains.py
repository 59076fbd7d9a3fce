"""Two trust domains on one node: the same bytes twice, and nothing of one for the other."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

from tessera.api.common.v1 import common_pb2
from tessera.api.node.v1 import node_pb2
from tessera.domain.errors import FailedPrecondition
from tessera.domain.ids import TrustDomain, domain_tag
from tessera.tensorstore.mount import shm_folder_for

ALPHA, BETA = "alpha", "beta"
STORES = [{"trust_domain": ALPHA, "budget_bytes": 64 << 20}, {"trust_domain": BETA, "budget_bytes": 32 << 20}]


def store_of(agent: Any, domain: str) -> Path:
    return Path(agent.run / f"store-{domain_tag(TrustDomain(domain))}")


def folder_of(agent: Any, domain: str) -> Path:
    return Path(agent.run / f"d-{domain_tag(TrustDomain(domain))}")


def variant(domain: str, model: str = "linear") -> common_pb2.VariantKey:
    return common_pb2.VariantKey(trust_domain=domain, model=model, version=1, variant="any")


def user_of(pid: int) -> int:
    return int(psutil.Process(pid).uids().effective)


def as_user(user: int, script: str, *arguments: str) -> str:
    """What a process of that user prints. (It becomes that user by itself: the interpreter may lie where only root can read it.)"""
    words = f"import os, sys, socket\nfrom tessera.runtime.users import become\nbecome({user})\nassert os.getuid() == {user}\n{script}"
    command = [sys.executable, "-c", words, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False, cwd="/")
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


OPEN = "try: print(len(open(sys.argv[1], 'rb').read()))\nexcept OSError as error: print(type(error).__name__)"
LIST = "try: print(len(os.listdir(sys.argv[1])))\nexcept OSError as error: print(type(error).__name__)"
CONNECT = """
try:
    socket.socket(socket.AF_UNIX).connect(sys.argv[1])
    print("connected")
except OSError as error:
    print(type(error).__name__)
"""
WRITE = "try: print(open(sys.argv[1], 'ab').write(b'x'))\nexcept OSError as error: print(type(error).__name__)"


@pytest.fixture(scope="session")
def readable(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """The environment of a Python whose library and packages every user can read, wherever they lie: what others cannot pass through to is
    bound to a place that they can, to be read only: who clears away what a killed run has left must not delete the library itself."""
    with tempfile.TemporaryDirectory(prefix="tspy-", dir="/tmp") as folder, ExitStack() as stack:
        root = Path(folder)
        root.chmod(0o755)

        def bound(source: Path, target: Path) -> Path:
            target.mkdir(parents=True)
            subprocess.run(["mount", "--bind", str(source), str(target)], check=True)
            stack.callback(subprocess.run, ["umount", "-l", str(target)], check=True)
            subprocess.run(["mount", "-o", "remount,bind,ro", str(target)], check=True)
            return target

        library = Path(os.__file__).parent
        bound(library, root / "home" / "lib" / library.name)
        entries = [Path(entry) for entry in sys.path if entry and Path(entry).is_dir() and library not in (Path(entry), Path(entry).parent)]
        paths = [bound(entry, root / str(index)) for index, entry in enumerate(entries)]
        yield {"PYTHONHOME": str(root / "home"), "PYTHONPATH": os.pathsep.join(map(str, paths))}


@pytest.fixture
def agent(agent: Any, readable: dict[str, str]) -> Any:
    agent.environment |= readable
    return agent


@pytest.mark.root
async def test_the_same_model_in_two_domains_is_stored_twice_and_shares_nothing(agent: Any, kit: Any) -> None:
    model = kit.make_linear(agent.repository, "ort")
    await agent.start(stores=STORES)
    first = await agent.start_instance("a", model.artifact, variant=variant(ALPHA))
    second = await agent.start_instance("b", model.artifact, variant=variant(BETA))
    assert (first.fetched, second.fetched) == (True, True)
    files = [store_of(agent, domain) / "blobs" / model.tensor for domain in (ALPHA, BETA)]
    assert len({file.stat().st_dev for file in files}) == 2
    assert first.runtime_id != second.runtime_id
    assert user_of(first.pid) != user_of(second.pid)
    assert 0 not in (user_of(first.pid), user_of(second.pid))
    x = np.ones((3, kit.width), np.float32)
    for instance in (first, second):
        for way in (kit.direct, kit.relayed):
            client = await way(instance)
            np.testing.assert_allclose(await kit.ask(client, instance.generation, x), model.expected(x), atol=1e-4)
            client.close()
    await agent.stop_instance("a")
    assert (await agent.instance("b")).state == "ready"


@pytest.mark.root
async def test_what_one_domain_asks_names_nothing_of_the_other(agent: Any, kit: Any) -> None:
    secret, own = kit.make_linear(agent.repository, "ort", 1), kit.make_linear(agent.repository, "ort", 2)
    await agent.start(stores=STORES)
    await agent.start_instance("a", secret.artifact, variant=variant(ALPHA, "secret"))
    await agent.start_instance("b", own.artifact, variant=variant(BETA, "own"))
    status = (await agent.stub.GetStatus(node_pb2.GetStatusRequest(trust_domain=BETA))).status
    said = status.SerializeToString()
    assert [store.trust_domain for store in status.stores] == [BETA]
    assert bytes.fromhex(own.tensor) in said
    for word in (bytes.fromhex(secret.tensor), secret.tensor.encode(), secret.artifact.encode(), b"secret", ALPHA.encode()):
        assert word not in said
    with pytest.raises(FailedPrecondition, match="no store of trust domain 'gamma'"):
        await agent.stub.GetStatus(node_pb2.GetStatusRequest(trust_domain="gamma"))
    whole = await agent.status()
    assert {store.trust_domain: store.budget_bytes for store in whole.stores} == {ALPHA: 64 << 20, BETA: 32 << 20}


@pytest.mark.root
async def test_a_process_of_one_domain_cannot_reach_the_others_bytes_and_sockets(agent: Any, kit: Any) -> None:
    model = kit.make_linear(agent.repository, "ort")
    await agent.start(stores=STORES)
    theirs = await agent.start_instance("a", model.artifact, variant=variant(ALPHA))
    mine = await agent.start_instance("b", model.artifact, variant=variant(BETA))
    me = user_of(mine.pid)
    runtime, zygote = folder_of(agent, ALPHA) / theirs.runtime_id, folder_of(agent, ALPHA) / "zygote-ort.sock"
    blob = store_of(agent, ALPHA) / "blobs" / model.tensor
    assert as_user(me, OPEN, str(store_of(agent, BETA) / "blobs" / model.tensor)) == str(model.weight.nbytes)
    assert as_user(me, CONNECT, mine.endpoint.unix_path) == "connected"
    assert as_user(me, OPEN, str(blob)) == "PermissionError"
    for folder in (store_of(agent, ALPHA), folder_of(agent, ALPHA), agent.run, agent.run / "notes"):
        assert as_user(me, LIST, str(folder)) == "PermissionError"
    for socket in (runtime / "control.sock", runtime / "data.sock", zygote):
        assert socket.exists()
        assert as_user(me, CONNECT, str(socket)) == "PermissionError"
    for domain in (ALPHA, BETA):  # a runtime reads its store; it writes to none
        assert as_user(me, WRITE, str(store_of(agent, domain) / "blobs" / model.tensor)) == "PermissionError"
    assert as_user(me, OPEN, f"/proc/{theirs.pid}/maps") == "PermissionError"
    own = Path("/proc/self/ns/net").readlink()
    assert own not in {Path(f"/proc/{instance.pid}/ns/net").readlink() for instance in (theirs, mine)}
    host, _, port = agent.address.rpartition(":")
    ask = f"try: socket.socket().connect(({host!r}, {port}))\nexcept OSError as error: print(error.strerror)"
    assert as_user(me, ask) == "Network is unreachable"
    assert as_user(me, OPEN, str(agent.folder / "state" / "term")) == "PermissionError"
    assert (await agent.instance("a")).state == (await agent.instance("b")).state == "ready"


@pytest.mark.root
async def test_a_bake_runs_as_its_domains_user(agent: Any, kit: Any) -> None:
    export = kit.make_linear(agent.repository, "onnx")
    await agent.start(stores=STORES)
    request = node_pb2.BakeRequest(trust_domain=BETA, artifact_digest=export.artifact, max_batch=2)
    users: set[int] = set()
    baked = ""
    async for event in agent.stub.Bake(request, timeout=120):
        users |= {
            user_of(process.pid) for process in kit.processes_of(store_of(agent, BETA)) if "tessera.runtime.bake" in process.cmdline()
        }
        baked = event.baked.artifact_digest or baked
    assert baked
    assert len(users) == 1
    assert users.isdisjoint({0, user_of(next(process.pid for process in kit.processes_of(folder_of(agent, ALPHA))))})
    stores = {store.trust_domain: store for store in (await agent.status()).stores}
    assert stores[ALPHA].files == 0
    assert stores[BETA].files > 0


@pytest.mark.root
async def test_a_domain_that_this_node_does_not_have_is_refused(agent: Any) -> None:
    await agent.start(stores=STORES)
    with pytest.raises(FailedPrecondition, match="this node has no store of trust domain 'gamma'; it has alpha, beta"):
        await agent.start_instance("a", variant=variant("gamma", "identity"))
    assert await agent.instance("a") is None


@pytest.mark.root
async def test_zygotes_of_further_domains_come_with_their_first_start(agent: Any, kit: Any) -> None:
    await agent.start(stores=STORES)

    def zygotes() -> set[str]:
        found = [process for process in kit.processes_of(agent.run) if "tessera.runtime.zygote" in process.cmdline()]
        return {path.name for path in agent.run.glob("d-*") for process in found if str(path) in " ".join(process.cmdline())}

    assert zygotes() == {folder_of(agent, ALPHA).name}
    await agent.start_instance("b", variant=variant(BETA, "identity"))
    assert zygotes() == {folder_of(agent, ALPHA).name, folder_of(agent, BETA).name}
    agent.kill()
    await agent.hang_up()
    await agent.start(stores=STORES)
    shown = await agent.instance("b")
    assert (shown.state, shown.variant.trust_domain) == ("ready", BETA)
    await agent.stop_instance("b")
    assert await agent.terminate() == 0
    assert kit.processes_of(agent.run) == []
    assert not agent.run.exists()
    assert str(agent.run) not in Path("/proc/self/mounts").read_text()


@pytest.mark.root
async def test_without_the_right_to_mount_a_second_domain_is_refused(agent: Any, kit: Any) -> None:
    process = agent.spawn(stores=STORES, may_mount=False)
    assert await asyncio.to_thread(process.wait, 30) == 1
    assert "2 trust domains need a tmpfs of their own each, and this process may not mount one for 'alpha'" in agent.log.read_text()
    assert kit.processes_of(agent.run) == []
    assert not list(Path("/dev/shm").glob(f"{shm_folder_for(store_of(agent, ALPHA)).name}*"))
    await agent.start(stores=STORES[:1], may_mount=False)  # one may lie in /dev/shm
    assert (await agent.start_instance("a", variant=variant(ALPHA, "identity"))).state == "ready"


@pytest.fixture
def foreign(agent: Any) -> Iterator[Path]:
    """Somebody else's tmpfs where a store could lie."""
    found = Path(agent.run / "store-ffffff")
    found.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "other", str(found)], check=True)
    yield found
    subprocess.run(["umount", str(found)], check=True)


@pytest.mark.root
async def test_the_store_of_a_domain_that_leaves_goes_with_its_last_runtime(agent: Any, kit: Any, sigkill: Any, foreign: Path) -> None:
    model = kit.make_linear(agent.repository, "ort")
    await agent.start(stores=STORES)
    staying = await agent.start_instance("a", model.artifact, variant=variant(ALPHA))
    leaving = await agent.start_instance("b", model.artifact, variant=variant(BETA))
    agent.kill()
    await agent.hang_up()
    gone, kept = store_of(agent, BETA), store_of(agent, ALPHA)
    await agent.start(stores=STORES[:1])
    await agent.until(lambda: logged(agent, f"mapped by process {leaving.pid}"))
    x = np.ones((1, kit.width), np.float32)
    for instance in (staying, leaving):  # whose domain is gone still answers, until it ends
        client = await kit.direct(instance)
        np.testing.assert_allclose(await kit.ask(client, instance.generation, x), model.expected(x), atol=1e-4)
        client.close()
    assert gone.is_mount()
    sigkill(leaving.pid)
    await agent.until(lambda: logged(agent, "was unmounted"))
    assert not gone.exists()
    assert kept.is_mount()
    assert foreign.is_mount()
    assert (await agent.instance("a")).pid == staying.pid
    assert agent.log.read_text().count("that is not configured stays") == 1


async def logged(agent: Any, words: str) -> bool:
    return words in agent.log.read_text()
